"""Calls of OpenClaw's that may change something: recorded before they begin, and never asked for by a second run."""

import asyncio

import pytest
from fake_authority import FakeAuthority
from pretend_places import FakeGateway, FakePool, FakeProxy, assistant, events_of, final, kinds, request
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.wire import from_status
from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import permits as module
from retinue_runtime_adapter.openclaw.adapter import OpenClawAdapter
from retinue_runtime_adapter.openclaw.permits import Permits
from retinue_runtime_adapter.openclaw.ports import Frame
from retinue_runtime_adapter.openclaw.under_way import read_begun
from retinue_runtime_adapter.tools.ports import Call

LOST = Trouble(Reason.RUNTIME_UNAVAILABLE, "The gateway is gone.", retry_after_s=1.0)
EXEC = Call("c1", "exec", {"command": "echo x >> f"})
TOOLS = ["exec", "read"]


class Box:
    """Notes which tokens are fenced."""

    def __init__(self):
        self.fenced = []

    async def fence(self, scope):
        self.fenced.append(scope.fencing_token)
        if scope.fencing_token == 3:
            raise RetinueError(Reason.STALE_FENCING_TOKEN, "Another attempt has begun.")


class World:
    """An adapter over a gateway that plays a script, and the bridge's way to ask."""

    def __init__(self):
        self.gateway, self.box, self.active = FakeGateway(), Box(), {}
        self.permits = Permits(FakeAuthority())
        self.adapter = self.anew()

    def anew(self):
        """An adapter of a new process."""
        catalogue = Catalogue([Model("small", "p", "m")], "small")
        pool = FakePool(self.gateway)
        return OpenClawAdapter(
            pool, FakeProxy(), catalogue, self.active, orphan_s=60.0, version="2026.9.6", box=self.box
        )

    def call(self, call=EXEC):
        """A gateway asks whether a call may be made."""
        (run,) = self.active.values()
        return asyncio.create_task(self.permits.open(run, call))

    async def paused(self, call=EXEC, *, token=7):
        """Begin a run, and a call in it; answers the call, what was told, and the state that is to be recorded."""
        stream = self.adapter.invoke(request(tools=TOOLS, fencing_token=token))
        told = list(await anext(stream))
        asked = self.call(call)
        told += [event async for batch in stream for event in batch]
        return asked, told, told[-1].paused.state


@pytest.fixture
async def world():
    made = World()
    made.gateway.script = [assistant("Let me see."), None, LOST]
    yield made
    made.gateway.gate.set()
    await made.adapter.close()


async def test_one_effect_a_call_begins_once_it_is_recorded_and_its_run_is_not_asked_anew(world):
    call, told, state = await world.paused()
    assert kinds(told) == ["text_delta", "message_completed", "tool_started", "paused"]
    assert (told[2].tool_started.call_id, told[2].tool_started.tool) == ("c1", "exec")
    assert not call.done(), "the worker has not recorded it yet"
    stream = world.adapter.invoke(request(tools=TOOLS, fencing_token=7, checkpoint=state))
    going_on = asyncio.create_task(anext(stream))
    await call
    world.gateway.gate.set()
    last = (await going_on)[-1]
    error = from_status(last.failed.error)
    assert (error.reason, last.failed.retryable, error.retry_after_s) == (Reason.RUNTIME_UNAVAILABLE, False, None)
    assert "what they did stays done" in error.message
    assert [batch async for batch in stream] == []
    again = await events_of(world.adapter, request(tools=TOOLS, attempt=2, fencing_token=9, checkpoint=state))
    assert (kinds(again), again[0].failed.retryable) == (["failed"], False)
    assert len(world.gateway.calls) == 1
    assert world.box.fenced == [9], "what may be left of the run is refused by the box"


async def test_one_effect_an_adapter_that_has_died_leaves_a_run_that_no_other_asks_anew(world):
    _, _, state = await world.paused()
    other = world.anew()
    for token in (8, 3):
        (event,) = await events_of(other, request(tools=TOOLS, attempt=2, fencing_token=token, checkpoint=state))
        assert not event.failed.retryable
    assert from_status(event.failed.error).reason is Reason.STALE_FENCING_TOKEN
    assert (len(world.gateway.calls), world.box.fenced) == (1, [8, 3])


async def test_after_the_pause_the_same_attempt_hears_the_rest_and_nothing_again(world):
    world.gateway.script = [assistant("Let me see."), None, assistant("Done."), final("Done.")]
    call, told, state = await world.paused()
    world.gateway.gate.set()
    rest = await events_of(world.adapter, request(tools=TOOLS, fencing_token=7, checkpoint=state))
    await call
    assert (kinds(rest).count("tool_finished"), kinds(rest).count("tool_started")) == (1, 0)
    texts = [event.message_completed.text for event in told + rest if event.HasField("message_completed")]
    assert (texts, kinds(rest)[-1]) == (["Let me see.", "Done."], "finished")
    await world.adapter.close()


@pytest.mark.parametrize("has_recorded", [True, False])
async def test_a_worker_that_dies_at_the_pause_is_followed_by_one_that_joins_the_run(world, has_recorded):
    world.gateway.script = [assistant("Let me see."), None, assistant("Done."), final("Done.")]
    call, told, state = await world.paused()
    given = {"tools": TOOLS, "attempt": 2, "fencing_token": 9}
    heard = []
    if not has_recorded:
        heard = await events_of(world.adapter, request(**given))
        assert heard == told, "it pauses again: nobody has recorded that the call begins"
        assert not call.done()
    world.gateway.gate.set()
    heard = heard[:-1] + await events_of(world.adapter, request(**given, checkpoint=state))
    await call
    assert kinds(heard)[:3] == ["text_delta", "message_completed", "tool_started"]
    assert (kinds(heard).count("tool_started"), kinds(heard)[-1]) == (1, "finished")
    assert len(world.gateway.calls) == 1


async def test_a_run_pauses_once_and_later_calls_wait_for_nobody(world):
    world.gateway.script = [assistant("Let me see."), None, final("Let me see.")]
    call, _, state = await world.paused()
    beside = world.call(Call("c2", "exec", {}))
    stream = world.adapter.invoke(request(tools=TOOLS, fencing_token=7, checkpoint=state))
    rest = asyncio.create_task(anext(stream))
    await asyncio.gather(call, beside)
    await world.call(Call("c3", "exec", {}))
    world.gateway.gate.set()
    assert "paused" not in kinds([*(await rest), *[event async for batch in stream for event in batch]])


async def test_a_run_that_has_only_read_is_asked_anew_by_its_next_attempt(world):
    stream = world.adapter.invoke(request(tools=TOOLS, fencing_token=7))
    await anext(stream)
    await world.call(Call("c1", "read", {"path": "f"}))
    world.gateway.gate.set()
    last = [event async for batch in stream for event in batch][-1]
    assert last.failed.retryable
    world.gateway.script = [assistant("yes"), final("yes")]
    again = await events_of(world.adapter, request(tools=TOOLS, attempt=2, fencing_token=9))
    assert kinds(again)[-1] == "finished"
    assert [call.run_id for call in world.gateway.calls] == ["run_1", "run_1.1"]


async def test_a_call_whose_beginning_is_not_recorded_in_time_is_refused_and_may_be_tried_again(world, monkeypatch):
    monkeypatch.setattr(module, "RECORD_TIMEOUT_S", 0.01)
    call, _, state = await world.paused()
    with pytest.raises(RetinueError) as refused:
        await call
    assert (refused.value.reason, "not made" in refused.value.message) == (Reason.DEPENDENCY_UNAVAILABLE, True)
    (run,) = world.active.values()
    assert not run.open, "no command belongs to it"
    stream = world.adapter.invoke(request(tools=TOOLS, fencing_token=7, checkpoint=state))
    rest = asyncio.create_task(anext(stream))
    monkeypatch.setattr(module, "RECORD_TIMEOUT_S", 5.0)
    await world.call()
    assert list(run.open) == ["c1"]
    rest.cancel()


async def test_a_call_that_the_gateway_tells_of_first_is_told_once(world):
    frame = {"stream": "tool", "data": {"toolCallId": "c1", "name": "exec", "args": {}, "phase": "start"}}
    world.gateway.script = [assistant("Let me see."), Frame("event", frame), None, LOST]
    _, told, state = await world.paused()
    assert (kinds(told).count("tool_started"), kinds(told)[-1]) == (1, "paused")
    assert read_begun(state, "openclaw").begun == "exec"


@pytest.mark.parametrize("state", [b"", b"\xff", b"{}", b'{"runtime":"light","begun":"exec"}'])
def test_another_state_says_nothing_of_calls(state):
    assert read_begun(state, "openclaw") is None


def test_a_trouble_after_calls_keeps_its_reason_and_names_no_time():
    trouble = troubles.after_calls(Trouble(Reason.MODEL_RATE_LIMITED, "Slowly.", retry_after_s=3.0))
    assert (trouble.reason, trouble.retryable, trouble.error.retry_after_s) == (Reason.MODEL_RATE_LIMITED, False, None)
    assert trouble.error.message.startswith("Slowly. Tools were called before")
