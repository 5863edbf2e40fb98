"""How much waits over all tenants, as the role that sees ids, times and states only."""

from datetime import UTC, datetime, timedelta

import asyncpg
from retinue_kit.postgres import ACQUIRE_TIMEOUT_S

from retinue_router.domain.load import Load, QueueLoad
from retinue_router.domain.queues import QueueClass
from retinue_router.store.guard import guarding

COUNTED_MAX = 200_000
"""Runs and dead letters that are counted. With more the queue is taken for full, whatever its bound."""

WINDOW_S = 10.0
"""What ended within this shows the pace. Shorter, one pause of a model would look like a standstill."""


class LoadStore:
    """Counts what waits."""

    def __init__(self, sweep_pool: "asyncpg.Pool") -> None:
        self._pool = sweep_pool

    async def count(self) -> Load:
        """Count what waits now."""
        with guarding():
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                rows = await connection.fetch("select * from load_1($1)", COUNTED_MAX)
                # No longer than the queue has been there for: what ended before was no part of it.
                window_s = min(max([1.0, *(row["oldest_s"] for row in rows)]), WINDOW_S)
                moved = await connection.fetchrow(
                    "select * from moved_1($1, $2)", COUNTED_MAX, timedelta(seconds=window_s)
                )
        queues = {queue: QueueLoad() for queue in QueueClass}
        for row in rows:
            queue = QueueClass.TASK if row["task"] else QueueClass.CHAT
            queues[queue] = QueueLoad(row["waiting"], row["oldest_s"], row["later"])
        whole = sum(row["counted"] for row in rows) < COUNTED_MAX
        return Load(queues, moved["dead"], moved["ended"], window_s, whole, datetime.now(UTC))
