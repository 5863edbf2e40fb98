"""What the runtimes say of themselves: whether they can take runs, how busy they are, what they can do.

They are asked beforehand, so that a decision never waits for it.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import RetinueError
from retinue_kit.metrics import gauge

from retinue_policy.domain.snapshot import Load

LOOK_S = 1.0
"""How often the runtimes are asked: one that can take runs again is used, and one that cannot is left alone, within
this."""

FIRST_LOOK_S = 0.1
"""The first pause, doubled up to LOOK_S until an answer has come: a mesh that starts is not left guessing for long."""

LAST_KNOWN_S = 5.0
"""Without an answer, what was said last holds for so long; then every runtime is taken to be there and to have room,
and runs find out for themselves. A restart of the runtime-adapter is over within this."""

NO_SUCH = "The runtime-adapter has no such runtime."
"""Why a runtime is away that is on here and not there: its installation failed, or settings differ."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_away = gauge("runtimes_away", "Whether a runtime that is on can take no runs.", ["runtime"])


@dataclass(frozen=True, slots=True)
class Described:
    """What a runtime says of itself.

    `away` says why it can take no runs; None if it can. `windows` has what each of its models can read, in tokens, by
    the model's name, 0 where that is not known; its default comes first.
    """

    away: str | None = None
    load: Load = field(default_factory=Load)
    tools: bool = False
    windows: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ability:
    """What a runtime can do for a run; `window_tokens` is 0 if it is not known."""

    runtime: str
    tools: bool
    window_tokens: int


class Describing(Protocol):
    """Where the runtimes are."""

    async def describe(self) -> Mapping[str, Described]:
        """The runtimes that there are. Raises RetinueError."""
        ...


class Presence:
    """What the runtimes of one deployment say of themselves; nothing without `describing`."""

    def __init__(self, describing: Describing | None, clock: Clock, runtimes: Sequence[str]) -> None:
        self._describing = describing
        self._clock = clock
        self._runtimes = runtimes
        self._described: dict[str, Described] = {}
        self._away: dict[str, str] = {}
        self._load: dict[str, Load] = {}
        self._heard = False
        self._heard_at = clock.monotonic()
        for runtime in runtimes:
            _away.labels(runtime).set(0)

    async def look_for_ever(self) -> None:
        """Ask again and again; trouble with the runtime-adapter is waited out."""
        pause_s = FIRST_LOOK_S
        while True:
            await self.look()
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311
            pause_s = LOOK_S if self._heard else min(2 * pause_s, LOOK_S)

    async def look(self) -> None:
        """Ask once."""
        if self._describing is None:
            return
        try:
            there = await self._describing.describe()
        except RetinueError as error:
            log.debug("runtimes not described", detail=error.private or error.message)
            if self._clock.monotonic() - self._heard_at > LAST_KNOWN_S:
                # What they can do is as it was: that changes with a release, not with a silence.
                self._take({}, dict.fromkeys(self._runtimes))
            return
        self._heard, self._heard_at = True, self._clock.monotonic()
        self._described = {runtime: there[runtime] for runtime in self._runtimes if runtime in there}
        load = {runtime: one.load for runtime, one in self._described.items()}
        away = {runtime: there[runtime].away if runtime in there else NO_SUCH for runtime in self._runtimes}
        self._take(load, away)

    def _take(self, load: dict[str, Load], found: Mapping[str, str | None]) -> None:
        """Take in how busy each runtime is, and why it can take no runs."""
        away = {runtime: why for runtime, why in found.items() if why is not None}
        for runtime in self._runtimes:
            if (runtime in away) is not (runtime in self._away):
                log.info("runtime", runtime=runtime, available=runtime not in away, detail=away.get(runtime, ""))
            _away.labels(runtime).set(runtime in away)
        self._away, self._load = away, load

    def away(self) -> dict[str, float]:
        """Runtimes that can take no runs now, each with the seconds until it is worth asking again."""
        return dict.fromkeys(self._away, LOOK_S)

    def load(self) -> Mapping[str, Load]:
        """How busy runtimes are, where they say so."""
        return self._load

    def abilities(self, model: str) -> list[Ability]:
        """What the runtimes that are on can do for a run with a model, or with each one's own if it names none."""
        return [Ability(name, one.tools, _window(one.windows, model)) for name, one in self._described.items()]


def _window(windows: Mapping[str, int], model: str) -> int:
    return windows.get(model or next(iter(windows), ""), 0)
