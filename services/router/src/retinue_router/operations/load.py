"""What waits over all tenants, counted again and again; told to operators, and asked by those who accept runs."""

import asyncio
import time

import structlog
from retinue_kit import metrics
from retinue_kit.errors import RetinueError

from retinue_router.domain.load import Bounds, Load
from retinue_router.store.load import LoadStore

COUNT_EVERY_S = 1.0
COUNT_SHARE = 10
"""Counting takes at most one part in so many of the time, however long the queue has become."""

waiting_runs = metrics.gauge("queue_waiting", "Runs whose time has come and that nobody has begun.", ["class"])
oldest_wait = metrics.gauge("queue_oldest_seconds", "For how long the run that waits longest has.", ["class"])
later_runs = metrics.gauge("queue_later", "Runs whose time has not come yet.", ["class"])
dead_letters = metrics.gauge("dead_letters", "Runs that were set aside and nobody has decided about.")
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Loads:
    """The load as it was counted last. While the database is away it stays as it was: nothing is accepted then."""

    def __init__(self, store: LoadStore, bounds: Bounds) -> None:
        self._store = store
        self.bounds = bounds
        self.last = Load()

    @property
    def full(self) -> bool:
        """Whether no more runs may wait, in all. What comes within a second of the last count goes on top."""
        return self.last.room(self.bounds.waiting) <= 0

    async def count(self) -> None:
        """Count once. Raises DEPENDENCY_UNAVAILABLE."""
        self.last = await self._store.count()
        for queue, load in self.last.queues.items():
            waiting_runs.labels(queue).set(load.waiting)
            oldest_wait.labels(queue).set(load.oldest_s)
            later_runs.labels(queue).set(load.later)
        dead_letters.set(self.last.dead)

    async def count_for_ever(self) -> None:
        """Count once a second, or less often where that takes long."""
        while True:
            began = time.monotonic()
            try:
                await self.count()
            except RetinueError as error:
                log.info("queue not counted", detail=error.private)
            took = time.monotonic() - began
            await asyncio.sleep(max(COUNT_EVERY_S, took * COUNT_SHARE))
