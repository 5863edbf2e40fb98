"""Rings what nobody rang, stands in for Redis, and removes what was kept long enough."""

import asyncio
import random
import time
from datetime import datetime, timedelta

import asyncpg
import structlog
from retinue_kit import postgres
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError

from retinue_router.crash_points import Point
from retinue_router.domain.queues import QueueClass
from retinue_router.ring import Rings, Ticket

SWEEP_S = 0.5
SWEEP_GRACE_S = 0.5
"""What is due for less than this was most likely rung and is on its way; only for a lease that ran out nobody rings."""

SWEEP_ROWS_MAX = 1000
SWEEP_PAGES_MAX = 5
"""Pages of so many logs that are looked at in a row; the next time goes on behind them, so that no flood hides what is
due since later. Those in the ring already cost a few microseconds each."""

STAND_IN_ROWS_MAX = 5000
"""Logs among which tenants take turns while there is no ring."""

_SWEEP_LOCK = 0x52E7_1BE1

KEY_AGE_MAX = timedelta(days=30)
"""Keys of deleted contacts are kept for this long: 7 days were promised, and a month's end passes at least once."""

PURGE_EVERY_S = 60.0
PURGE_ROWS_MAX = 1000
"""Keys removed at once: a few milliseconds, and more in a day than a busy tenant can leave behind."""

_DUE = """select tenant_id, log_id, due_time from logs
  where due_time < clock_timestamp()
    and (holder is not null or due_time < clock_timestamp() - make_interval(secs => $1))
    and ($2::timestamptz is null or due_time >= $2)
  order by due_time limit $3"""
_DUE_IN_TURNS = """select t.tenant_id, t.log_id from (
    select d.*, row_number() over (partition by d.tenant_id order by d.due_time) as turn from (
      select tenant_id, log_id, due_time from logs
      where due_time < clock_timestamp() and starts_with(log_id, 'tsk_') = $1 order by due_time limit $2) d) t
  order by t.turn, random() limit $3"""
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Sweeper:
    """Sees ids of what is due, of all tenants."""

    def __init__(self, pool: "asyncpg.Pool", rings: Rings) -> None:
        self._pool = pool
        self._rings = rings
        self._after: datetime | None = None
        self._purged = time.monotonic() - PURGE_EVERY_S * random.random()  # noqa: S311

    async def sweep_for_ever(self) -> None:
        """Ring what is due and was not rung; one process of the mesh at a time does it."""
        while True:
            await asyncio.sleep(SWEEP_S * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                for _ in range(SWEEP_PAGES_MAX):
                    tickets = await self._due_alone()
                    if tickets:
                        reach(Point.SWEPT)
                        await self._rings.push_all(tickets)
                        reach(Point.SWEEP_RUNG)
                    if len(tickets) < SWEEP_ROWS_MAX:
                        break
                if time.monotonic() - self._purged > PURGE_EVERY_S:
                    self._purged = time.monotonic()
                    await self.purge()
            except RetinueError as error:
                log.info("not swept", detail=error.private)

    async def purge(self) -> int:
        """Remove keys of deleted contacts that were kept long enough, the oldest first; answers how many."""
        with postgres.translating():
            async with self._pool.acquire(timeout=postgres.ACQUIRE_TIMEOUT_S) as connection:
                count: int = await connection.fetchval("select purge_keys_1($1, $2)", KEY_AGE_MAX, PURGE_ROWS_MAX)
        return count

    async def _due_alone(self) -> list[Ticket]:
        """Read the next page of what is due, from the first again behind the last."""
        with postgres.translating():
            async with self._pool.acquire(timeout=postgres.ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
                if not await connection.fetchval("select pg_try_advisory_xact_lock($1)", _SWEEP_LOCK):
                    return []
                rows = await connection.fetch(_DUE, SWEEP_GRACE_S, self._after, SWEEP_ROWS_MAX)
        self._after = rows[-1]["due_time"] if len(rows) == SWEEP_ROWS_MAX else None
        return [Ticket(row["tenant_id"], row["log_id"]) for row in rows]

    async def due_now(self, queue: QueueClass) -> list[Ticket]:
        """What is due in a class while there is no ring: tenants take turns.

        Among equals the order is random, since several workers should not all begin with the same.
        """
        with postgres.translating():
            async with self._pool.acquire(timeout=postgres.ACQUIRE_TIMEOUT_S) as connection:
                rows = await connection.fetch(
                    _DUE_IN_TURNS, queue is QueueClass.TASK, STAND_IN_ROWS_MAX, SWEEP_ROWS_MAX
                )
        return [Ticket(row["tenant_id"], row["log_id"]) for row in rows]
