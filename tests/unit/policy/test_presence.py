"""What policy knows of runtimes that can take no runs, and for how long."""

import pytest
from retinue_kit.errors import RetinueError
from retinue_policy.domain.snapshot import Load
from retinue_policy.operations.presence import LAST_KNOWN_S, LOOK_S, Ability, Described, Presence

BOTH = ("openclaw", "light")
ALL_THERE = {"openclaw": Described(), "light": Described()}
STARTING = {"openclaw": Described("starting"), "light": Described()}


class Clock:
    def __init__(self):
        self.time = 1_000.0

    def monotonic(self):
        return self.time

    def now(self):
        return self.time


class Adapter:
    """Says what a test wants."""

    def __init__(self):
        self.there: dict[str, Described] | None = dict(ALL_THERE)

    async def describe(self):
        if self.there is None:
            raise RetinueError.unavailable("runtime-adapter")
        return self.there


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def adapter():
    return Adapter()


@pytest.fixture
def presence(adapter, clock):
    return Presence(adapter, clock, BOTH)


async def test_before_anything_is_known_every_runtime_is_there(presence, adapter):
    assert presence.away() == {}
    adapter.there = None
    await presence.look()
    assert presence.away() == {}


async def test_a_runtime_that_can_take_no_runs_is_away_until_it_can(presence, adapter):
    adapter.there = STARTING
    await presence.look()
    assert presence.away() == {"openclaw": LOOK_S}
    adapter.there = ALL_THERE
    await presence.look()
    assert presence.away() == {}


async def test_a_runtime_that_is_on_here_and_unknown_there_is_away(presence, adapter):
    adapter.there = {"light": Described(), "other": Described("never asked for")}
    await presence.look()
    assert presence.away() == {"openclaw": LOOK_S}


async def test_a_reason_need_not_be_said(presence, adapter):
    adapter.there = {"openclaw": Described(""), "light": Described()}
    await presence.look()
    assert presence.away() == {"openclaw": LOOK_S}


async def test_what_was_said_last_holds_for_a_while_and_every_runtime_is_there_then(presence, adapter, clock):
    adapter.there = STARTING
    await presence.look()
    adapter.there = None
    clock.time += LAST_KNOWN_S
    await presence.look()
    assert presence.away() == {"openclaw": LOOK_S}
    clock.time += 0.1
    await presence.look()
    assert presence.away() == {}
    adapter.there = {"light": Described()}
    await presence.look()
    assert presence.away() == {"openclaw": LOOK_S}


async def test_without_a_runtime_adapter_to_ask_every_runtime_is_there(clock):
    presence = Presence(None, clock, BOTH)
    await presence.look()
    assert presence.away() == {}


async def test_load_is_what_was_said_last_and_forgotten_with_it(presence, adapter, clock):
    busy = Load(slot_count=4, busy_count=4, waiting_count=9)
    adapter.there = {"light": Described(load=busy), "other": Described(load=busy)}
    await presence.look()
    assert presence.load() == {"light": busy}
    adapter.there = None
    await presence.look()
    assert presence.load() == {"light": busy}
    clock.time += LAST_KNOWN_S + 0.1
    await presence.look()
    assert presence.load() == {}, "a runtime of which nothing is heard is taken to have room"


async def test_abilities_are_those_of_the_runs_model_and_outlast_a_silence(presence, adapter, clock):
    adapter.there = {
        "light": Described(tools=True, windows={"small": 8_000, "large": 200_000}),
        "openclaw": Described("starting"),
        "other": Described(tools=True),
    }
    await presence.look()
    clock.time += LAST_KNOWN_S + 0.1
    for model, window in (("", 8_000), ("large", 200_000), ("unheard-of", 0)):
        adapter.there = None
        await presence.look()
        assert presence.abilities(model) == [Ability("openclaw", False, 0), Ability("light", True, window)]
