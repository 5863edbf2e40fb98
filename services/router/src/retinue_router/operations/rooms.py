"""Where a queue is full: how often a tenant's is counted, and what is said where no more may wait."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from retinue_kit import metrics
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_router.domain.load import RETRY_AFTER_MAX_S, RETRY_AFTER_MIN_S, retry_after_s
from retinue_router.operations.load import Loads
from retinue_router.store.runs import Room, RunStore

COUNT_PART = 8
"""A tenant's queue is counted again after one part in so many of the room that was left, since counting takes as long
as the queue is. Near the bound that is every run. The bound is exceeded by runs that are accepted at the same instant
and each see the last place: as many as routers have connections to the database. With more than so many routers, each
further one may add an eighth of the room that it saw last."""

TENANTS_MAX = 10_000
"""Tenants whose room is remembered; those that asked last are kept, and any other is counted anew."""

CLOSED_S = 0.5
"""For so long after a queue was found full it is taken for full: a flood of callers who are refused must not cost a
count each. Shorter than any answer's Retry-After, so that whoever heeds that is counted for."""

ACCEPTING_MAX = 256
"""Runs that one process accepts at the same time; all but a few of them wait for a connection to the database. At a
hundred a second, the last of them is accepted within half of the 5 s that its caller waits; a caller who is refused
knows at least that nothing was accepted."""

BUSY_RETRY_AFTER_S = 2.0
NO_ROOM = Room(0, 0)
"""Nothing is counted, nothing new accepted; a run whose key was used before is still answered."""

refused = metrics.counter("runs_refused", "Runs that were not accepted because a queue was full.", ["reason"])


class Place(NamedTuple):
    """What to ask of the store: None, not to count. `whole_full`: it is the whole queue that has no room."""

    room: Room | None
    whole_full: bool = False


@dataclass(slots=True)
class _Known:
    """Of one tenant: runs that may be accepted uncounted; until when its queue is taken for full, and likely is."""

    uncounted: int = 0
    closed_until: float = 0.0
    full_until: float = 0.0


class Rooms:
    """How much room queues have, as far as this process knows."""

    def __init__(self, store: RunStore, loads: Loads, clock: Clock) -> None:
        self._store = store
        self._loads = loads
        self._clock = clock
        self._known: OrderedDict[tuple[str, bool], _Known] = OrderedDict()
        self._accepting = 0

    @contextmanager
    def accepting(self) -> Iterator[None]:
        """Count a run in while it is accepted. Raises QUEUE_FULL where as many are as may be."""
        if self._accepting >= ACCEPTING_MAX:
            refused.labels(Reason.QUEUE_FULL).inc()
            raise RetinueError(
                Reason.QUEUE_FULL,
                f"Too many runs come at once; try again in {BUSY_RETRY_AFTER_S:.0f} s.",
                retry_after_s=BUSY_RETRY_AFTER_S,
            )
        self._accepting += 1
        try:
            yield
        finally:
            self._accepting -= 1

    def ask(self, tenant_id: str, run_at: datetime | None = None) -> Place:
        """Tell what a run is to be accepted under."""
        if self._loads.full:
            return Place(NO_ROOM, whole_full=True)
        known = self._of(tenant_id, self._is_later(run_at))
        if self._clock.monotonic() < known.closed_until:
            return Place(NO_ROOM)
        if known.uncounted > 0:
            known.uncounted -= 1
            return Place(None)
        bounds = self._loads.bounds
        return Place(Room(bounds.tenant_waiting, bounds.tenant_later))

    def hear(self, tenant_id: str, run_at: datetime | None, queued: int | None) -> None:
        """Take note of how many waited before a run that was accepted, if they were counted."""
        if queued is not None and not self._is_later(run_at):
            self._of(tenant_id, later=False).uncounted = (self._loads.bounds.tenant_waiting - queued) // COUNT_PART

    async def refusal(self, tenant_id: str, run_at: datetime | None, place: Place) -> RetinueError:
        """Say that there is no room, and when there will be: once a tenth has drained, or a time has come."""
        if place.whole_full:
            refused.labels(Reason.QUEUE_FULL).inc()
            load = self._loads.last
            wait_s = math.ceil(retry_after_s(load.waiting, load.ended, load.window_s))
            return RetinueError(Reason.QUEUE_FULL, f"The queue is full; try again in {wait_s} s.", retry_after_s=wait_s)
        refused.labels(Reason.QUOTA_EXCEEDED).inc()
        later = self._is_later(run_at)
        known, now = self._of(tenant_id, later), self._clock.monotonic()
        if now >= known.closed_until:
            drain = await self._store.drain(tenant_id, self._loads.bounds.tenant_waiting)
            if later:
                full_s = min(max(drain["later_s"] or 0.0, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
            else:
                full_s = retry_after_s(drain["waiting"], drain["ended"], drain["window_s"])
            known.closed_until, known.full_until = now + CLOSED_S, now + full_s
        wait_s = math.ceil(max(known.full_until - now, RETRY_AFTER_MIN_S))
        bounds = self._loads.bounds
        if later:
            quota, limit, what = "later_runs", bounds.tenant_later, "runs waiting for their time"
        else:
            quota, limit, what = "waiting_runs", bounds.tenant_waiting, "runs waiting"
        return RetinueError(
            Reason.QUOTA_EXCEEDED,
            f"The tenant has {limit} {what}, as many as it may; try again in {wait_s} s.",
            retry_after_s=wait_s,
            quota=quota,
            limit=str(limit),
        )

    def _is_later(self, run_at: datetime | None) -> bool:
        return run_at is not None and run_at.timestamp() > self._clock.now()

    def _of(self, tenant_id: str, later: bool) -> _Known:
        key = (tenant_id, later)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known()
            if len(self._known) > TENANTS_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return known
