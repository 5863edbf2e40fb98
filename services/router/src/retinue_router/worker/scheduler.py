"""Accepts the tasks of schedules whose time has come: each tick once, whoever dies, and however many look."""

import asyncio
import random
import time
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import msgspec
import structlog
from retinue_kit import ids, postgres
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.metrics import counter

from retinue_router import cron
from retinue_router.crash_points import Point
from retinue_router.domain.contacts import log_id_of
from retinue_router.domain.queues import TASK_LOG
from retinue_router.domain.submission import Submission
from retinue_router.doorbell import Doorbell
from retinue_router.operations.load import COUNT_EVERY_S, COUNT_SHARE
from retinue_router.operations.runs import body_of
from retinue_router.store.guard import guarding
from retinue_router.store.load import LoadStore
from retinue_router.store.runs import NewIds, Room
from retinue_router.store.schedules import ScheduleStore

LOOK_S = 0.5
"""How often somebody looks: what is to come at a minute comes within its first second."""

BATCH_MAX = 100
"""Schedules fired between two looks; while more are due, the next look follows at once."""

PUT_OFF_S = 30.0
"""A tick that finds the queue full, its tenant's or the whole, or cannot be fired, comes again after this, or with the
next tick if that is earlier: often enough to be in time for what comes daily, and those that can be fired do not stand
behind it."""

_LOOK_LOCK = 0x52E7_1BE2
ticks = counter("schedule_ticks", "Times that came for schedules, by what became of them.", ["outcome"])
"""Outcomes: accepted, full (put off), failed (put off)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Due(NamedTuple):
    """A schedule whose time has come."""

    tenant_id: str
    schedule_id: str
    tick: datetime


class WholeRoom:
    """Whether one more run may wait, over all tenants: counted when it is asked, and not again within a second."""

    def __init__(self, store: LoadStore, waiting_max: int) -> None:
        self._store = store
        self._waiting_max = waiting_max
        self._left = 0
        self._good_until = 0.0

    async def left(self) -> bool:
        """Ask. Raises DEPENDENCY_UNAVAILABLE if Postgres is away."""
        began = time.monotonic()
        if began >= self._good_until:
            self._left = (await self._store.count()).room(self._waiting_max)
            took = time.monotonic() - began
            self._good_until = began + max(COUNT_EVERY_S, took * COUNT_SHARE)
        return self._left > 0

    def take(self) -> None:
        """Count one that was accepted since."""
        self._left -= 1


class Scheduler:
    """Sees ids of what is due, of all tenants; fires as each tenant."""

    def __init__(
        self, sweep_pool: "asyncpg.Pool", store: ScheduleStore, doorbell: Doorbell, room: Room, whole: WholeRoom
    ) -> None:
        self._sweep_pool = sweep_pool
        self._store = store
        self._doorbell = doorbell
        self._room = room
        self._whole = whole

    async def fire_for_ever(self) -> None:
        """Fire what is due. One process of the mesh at a time looks; that two fire the same does no harm."""
        more = False
        while True:
            if not more:
                await asyncio.sleep(LOOK_S * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                more = await self.fire_due() == BATCH_MAX
            except RetinueError as error:
                more = False
                log.info("schedules not looked at", detail=error.private)

    async def fire_due(self) -> int:
        """Fire what is due now, at most BATCH_MAX; answers how many have moved on.

        Raises DEPENDENCY_UNAVAILABLE if Postgres is away.
        """
        moved = 0
        for due in await self._due_alone():
            try:
                moved += await self._fire(due)
            except RetinueError as error:
                if error.reason is Reason.DEPENDENCY_UNAVAILABLE:
                    raise
                ticks.labels("failed").inc()
                log.error("schedule not fired", schedule_id=due.schedule_id, detail=error.private or error.message)
                now = await self._store.now()
                moved += await self._store.put_off(*due, now + timedelta(seconds=PUT_OFF_S))
        return moved

    async def _due_alone(self) -> list[Due]:
        with guarding():
            async with (
                self._sweep_pool.acquire(timeout=postgres.ACQUIRE_TIMEOUT_S) as connection,
                connection.transaction(),
            ):
                if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", _LOOK_LOCK):
                    return []
                rows = await connection.fetch(
                    "select tenant_id, schedule_id, next_time from schedules where next_time <= clock_timestamp()"
                    " order by next_time limit $1",
                    BATCH_MAX,
                )
        return [Due(*row) for row in rows]

    async def _fire(self, due: Due) -> bool:
        """Fire a schedule once for all ticks until now; False if it has moved meanwhile."""
        found = await self._store.look(due.tenant_id, due.schedule_id)
        if found is None:
            return False
        following = cron.next_after(found["cron"], found["time_zone"], found["now"])
        if not await self._whole.left():
            return await self._put_off(due, found["now"], following)
        log_id = log_id_of(due.tenant_id, found["contact"])
        new = NewIds(ids.new_id(TASK_LOG), ids.new_id("ses"), ids.new_id("run"), log_id)
        task = Submission(
            tenant_id=due.tenant_id, contact=found["contact"], kind=found["kind"], principal=found["principal"],
            metadata={}, input=msgspec.json.decode(found["input"]), parameters={},
        )  # fmt: skip
        reach(Point.FIRE_COMMITTING)
        answer = await self._store.fire(*due, following, new, body_of(task), self._room)
        reach(Point.FIRE_COMMITTED)
        if answer["outcome"] == "accepted":
            ticks.labels("accepted").inc()
            self._whole.take()
            await self._doorbell.ring(due.tenant_id, new.log_id)
            reach(Point.FIRE_RUNG)
            return True
        return answer["outcome"] == "full" and await self._put_off(due, found["now"], following)

    async def _put_off(self, due: Due, now: datetime, following: datetime | None) -> bool:
        ticks.labels("full").inc()
        log.warning("schedule put off: the queue is full", schedule_id=due.schedule_id)
        later = now + timedelta(seconds=PUT_OFF_S)
        return await self._store.put_off(*due, min(later, following or later))
