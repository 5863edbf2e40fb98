"""Which runtimes may be used, as the breakers of all processes say. Looking costs nothing: it is done beforehand."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.metrics import counter, gauge

from retinue_policy.domain import breaker as rules
from retinue_policy.domain.breaker import AGAINST, Breaker, Result, Scope, State

LOOK_S = 0.5
"""How often the breakers are read: a runtime that was found dead elsewhere is used here for so long at most."""

LAST_KNOWN_S = 10.0
"""Without Redis, what was known last holds for so long, which is the longest that a breaker stays open; then all are
closed, and runs find out for themselves."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()
_open = gauge("breakers_open", "Breakers that are not closed, of tenants and of the runtime as a whole.", ["runtime"])
_transitions = counter("breaker_transitions", "Changes of breakers, by what they became.", ["runtime", "to"])


class Key(NamedTuple):
    """Which breaker; without a tenant it is that of the whole runtime."""

    runtime: str
    tenant_id: str


class Changed(NamedTuple):
    """What a change found and what it left."""

    before: Breaker | None
    after: Breaker | None


class Store(Protocol):
    """Where breakers are kept. Raises RetinueError(DEPENDENCY_UNAVAILABLE)."""

    async def read(self, runtimes: Iterable[str], now: float) -> dict[Key, Breaker]:
        """Read what is known of whole runtimes, and the tenants' breakers that are not forgotten."""
        ...

    async def change(
        self, key: Key, change: Callable[[Breaker | None], Breaker | None], known: Breaker | None, now: float
    ) -> Changed:
        """Change a breaker as a whole: nobody else's change comes in between."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt went; `reason` says why it failed."""

    tenant_id: str
    runtime: str
    run_id: str
    result: Result
    reason: Reason | None = None


class Admission(NamedTuple):
    """Whether a run may use a runtime now: only after `wait_s` if that is not 0; as a probe."""

    wait_s: float = 0.0
    probes: bool = False


def _transition(changed: Changed) -> State | None:
    """What a breaker has become; None if it is what it was."""
    before, after = changed.before or Breaker(), changed.after or Breaker()
    if after.open_count > before.open_count:
        return State.OPEN
    if before.open_count and not after.open_count:
        return State.CLOSED
    return State.HALF_OPEN if after.probe and after.probe != before.probe else None


class Breakers:
    """The breakers of one deployment."""

    def __init__(self, store: Store, clock: Clock, runtimes: Sequence[str]) -> None:
        self._store = store
        self._clock = clock
        self._runtimes = runtimes
        self._known: dict[Key, Breaker] = {}
        self._looked_at = clock.monotonic()
        for runtime in runtimes:
            _open.labels(runtime).set(0)

    async def look_for_ever(self) -> None:
        """Read the breakers again and again; trouble with Redis is waited out."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Read the breakers once."""
        try:
            self._known = await self._store.read(self._runtimes, self._clock.now())
            self._looked_at = self._clock.monotonic()
        except RetinueError as error:
            log.info("breakers not read", detail=error.private)
            if self._clock.monotonic() - self._looked_at > LAST_KNOWN_S:
                self._known = {}
        for runtime in self._runtimes:
            _open.labels(runtime).set(
                sum(b.open_count > 0 and key.runtime == runtime for key, b in self._known.items())
            )

    def failing(self, tenant_id: str, run_id: str) -> dict[str, float]:
        """Runtimes that a run may not use now, each with the seconds until it is worth asking again."""
        if not self._known:
            return {}
        now, found = self._clock.now(), {}
        for runtime in self._runtimes:
            known = [self._known.get(key) for key in _keys(runtime, tenant_id)]
            wait_s = max((one.wait_s(now, run_id) for one in known if one is not None), default=0.0)
            if wait_s:
                found[runtime] = wait_s
        return found

    def watched(self, runtime: str, tenant_id: str) -> bool:
        """Whether a runtime failed lately, so that a success is worth knowing."""
        return any(key in self._known for key in _keys(runtime, tenant_id))

    async def admit(self, runtime: str, tenant_id: str, run_id: str) -> Admission:
        """Let a run use a runtime; where it is half open, as the one that probes, if nobody else does."""
        now = self._clock.now()
        half_open = [
            key
            for key in _keys(runtime, tenant_id)
            if key in self._known and self._known[key].state(now) is not State.CLOSED
        ]
        taken: list[Key] = []
        for key in half_open:
            try:
                changed = await self._change(key, lambda found: rules.probing(found, run_id, now) or found)
            except RetinueError as error:
                # Probes that nobody counts are better than a runtime that nobody uses.
                log.info("probe not leased", runtime=runtime, detail=error.private)
                return Admission(probes=True)
            if changed.after is None or not changed.after.open_count:
                continue  # closed meanwhile
            if changed.after.probe != run_id:
                for mine in taken:
                    await self._change(mine, partial(rules.abandoned, run_id=run_id))
                return Admission(wait_s=changed.after.wait_s(now, run_id) or rules.PROBE_LOOK_S)
            taken.append(key)
        return Admission(probes=bool(taken))

    async def report(self, outcomes: Iterable[Outcome]) -> None:
        """Take in how attempts went, in order. Raises RetinueError(DEPENDENCY_UNAVAILABLE)."""
        for outcome in outcomes:
            against = AGAINST.get(outcome.reason) if outcome.reason is not None else None
            for key in _keys(outcome.runtime, outcome.tenant_id):
                await self._change(key, self._judged(outcome, key, against[0] if against else None))

    def _judged(self, outcome: Outcome, key: Key, scope: Scope | None) -> Callable[[Breaker | None], Breaker | None]:
        """What an outcome means for one breaker."""
        run_id, now = outcome.run_id, self._clock.now()
        if outcome.result is Result.SUCCEEDED:
            return lambda found: rules.succeeded(found, run_id)
        if outcome.result is Result.ABANDONED or scope is None or (scope is Scope.TENANT and not key.tenant_id):
            return lambda found: rules.abandoned(found, run_id)
        limits = rules.limits_of(outcome.reason, of_all=not key.tenant_id)
        return lambda found: rules.failed(found, outcome.tenant_id, run_id, now, limits)

    async def _change(self, key: Key, change: Callable[[Breaker | None], Breaker | None]) -> Changed:
        changed = await self._store.change(key, change, self._known.get(key), self._clock.now())
        if changed.after is None:
            self._known.pop(key, None)
        else:
            self._known[key] = changed.after
        became = _transition(changed)
        if became is not None:
            runtime = key.runtime if key.runtime in self._runtimes else "other"
            _transitions.labels(runtime, str(became)).inc()
            log.warning("breaker", runtime=key.runtime, tenant_id=key.tenant_id, state=str(became))
        return changed

    async def list(self) -> "list[tuple[Key, Breaker, State]]":
        """All that are not closed, as they are now, those of whole runtimes first.

        Raises RetinueError(DEPENDENCY_UNAVAILABLE).
        """
        now = self._clock.now()
        found = await self._store.read(self._runtimes, now)
        opened = [(key, one, one.state(now)) for key, one in found.items() if one.open_count]
        return sorted(opened, key=lambda each: (each[0].tenant_id, each[0].runtime))


def _keys(runtime: str, tenant_id: str) -> tuple[Key, Key]:
    """The breakers that a run of a tenant meets with a runtime: everybody's, and the tenant's own."""
    return Key(runtime, ""), Key(runtime, tenant_id)
