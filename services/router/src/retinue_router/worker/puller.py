"""Takes logs from the ring as slots are free; the sweeper rings what nobody rang, and stands in for Redis."""

import asyncio
import random

import asyncpg
import redis.asyncio
import structlog
from retinue_kit import postgres
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError

from retinue_router.crash_points import Point
from retinue_router.ring import Ring, Ticket
from retinue_router.worker.runner import Runner

BELL_WAIT_S = 1
"""A blocked worker looks by itself this often: slots that expired ring no bell."""

SWEEP_S = 0.5
SWEEP_GRACE_S = 0.5
"""What is due for less than this was most likely rung and is on its way."""

SWEEP_ROWS_MAX = 500
_SWEEP_LOCK = 0x52E7_1BE1
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Sweeper:
    """Sees ids of what is due, of all tenants."""

    def __init__(self, pool: "asyncpg.Pool", ring: Ring) -> None:
        self._pool = pool
        self._ring = ring

    async def sweep_for_ever(self) -> None:
        """Ring what is due and was not rung; one process of the mesh at a time does it."""
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                for ticket in await self._due_alone():
                    reach(Point.SWEPT)
                    await self._ring.push(*ticket)
                    reach(Point.SWEEP_RUNG)
            except RetinueError as error:
                log.info("not swept", detail=error.private)

    async def _due_alone(self) -> list[Ticket]:
        with postgres.translating():
            async with self._pool.acquire(timeout=postgres.ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", _SWEEP_LOCK):
                    return []
                return await _due(connection, SWEEP_GRACE_S)

    async def due_now(self) -> list[Ticket]:
        """What is due, in random order: several workers without a ring should not all begin with the same."""
        with postgres.translating():
            async with self._pool.acquire(timeout=postgres.ACQUIRE_TIMEOUT_S) as connection:
                tickets = await _due(connection, 0.0)
        random.shuffle(tickets)
        return tickets


async def _due(connection: "asyncpg.Connection", grace_s: float) -> list[Ticket]:
    rows = await connection.fetch(
        "select tenant_id, log_id from logs where due_time < clock_timestamp() - make_interval(secs => $1)"
        " order by due_time limit $2",
        grace_s,
        SWEEP_ROWS_MAX,
    )
    return [Ticket(row["tenant_id"], row["log_id"]) for row in rows]


class Puller:
    """Fills this process's slots."""

    def __init__(
        self, runner: Runner, ring: Ring, sweeper: Sweeper, blocking: "redis.asyncio.Redis", slots: int
    ) -> None:
        self._runner = runner
        self._ring = ring
        self._sweeper = sweeper
        self._blocking = blocking
        self._slots = asyncio.Semaphore(slots)
        self._dry = False
        self._tasks: dict[asyncio.Task[None], Ticket] = {}

    async def pull_for_ever(self) -> None:
        """Start a task for each log taken, as long as slots are free."""
        while True:
            if self._slots.locked():
                self._runner.crowded = True
            await self._slots.acquire()
            taken = False
            try:
                taken = await self._pull()
            except RetinueError as error:
                self._dry = False
                log.warning("no ring; looking into the log", detail=error.private)
                await self._pull_without_ring()
                await asyncio.sleep(SWEEP_S)
            finally:
                if not taken:
                    self._slots.release()

    async def _pull(self) -> bool:
        if self._dry:
            ticket = await self._ring.wait_for_bell(self._blocking, BELL_WAIT_S)
            if ticket is not None:
                self._start(ticket)
                return True
        popped = await self._ring.pop()
        self._dry = popped is None or not popped.more
        # As long as slots are free here, whatever waits is taken at once: nobody needs to make room.
        self._runner.crowded = not self._dry
        if popped is None:
            return False
        self._start(popped.ticket)
        return True

    async def _pull_without_ring(self) -> None:
        busy = set(self._tasks.values())
        try:
            due = await self._sweeper.due_now()
        except RetinueError as error:
            log.warning("no log either", detail=error.private)
            return
        for ticket in due:
            if self._slots.locked():
                return
            if ticket not in busy:
                await self._slots.acquire()
                self._start(ticket)

    def _start(self, ticket: Ticket) -> None:
        task = asyncio.create_task(self._runner.work(ticket))
        self._tasks[task] = ticket
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self._tasks[task]
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("a run's task broke", exc_info=task.exception())

    async def drain(self, grace_s: float) -> None:
        """Wait for runs under way, then leave them to others: their leases run out."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
