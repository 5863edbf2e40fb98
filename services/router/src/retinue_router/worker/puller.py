"""Takes logs from the ring as slots are free."""

import asyncio

import redis.asyncio
import structlog
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError

from retinue_router.crash_points import Point
from retinue_router.domain.queues import QueueClass
from retinue_router.ring import Rings, Ticket
from retinue_router.worker.runner import Runner
from retinue_router.worker.sweeper import SWEEP_S, Sweeper

RELEASE_S = 3.0
"""Time to give runs back when the process ends: a call and a commit each. Orchestrators kill after thirty seconds."""

BELL_WAIT_S = 1
"""A worker looks by itself this often, even where the bell hands it all its work: slots that expired ring no bell, and
only who looks finds that the ring was emptied."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Puller:
    """Fills this process's slots of one class."""

    def __init__(
        self,
        queue: QueueClass,
        runner: Runner,
        rings: Rings,
        sweeper: Sweeper,
        blocking: "redis.asyncio.Redis",
        clock: Clock,
        slots: int,
    ) -> None:
        self._queue = queue
        self._runner = runner
        self._ring = rings.of(queue)
        self._sweeper = sweeper
        self._blocking = blocking
        self._clock = clock
        self._slots = asyncio.Semaphore(slots)
        self._dry = False
        self._looked_at = clock.monotonic()
        self._tasks: dict[asyncio.Task[None], Ticket] = {}

    async def pull_for_ever(self) -> None:
        """Start a task for each log taken, as long as slots are free."""
        while True:
            if self._slots.locked():
                self._runner.crowded.add(self._queue)
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
        if self._dry and self._clock.monotonic() < self._looked_at + BELL_WAIT_S:
            ticket = await self._ring.wait_for_bell(self._blocking, BELL_WAIT_S)
            if ticket is not None:
                self._start(ticket, made=True)
                return True
        self._looked_at = self._clock.monotonic()
        popped = await self._ring.pop()
        self._dry = popped is None or not popped.more
        # As long as slots are free here, whatever waits is taken at once: nobody needs to make room.
        if self._dry:
            self._runner.crowded.discard(self._queue)
        else:
            self._runner.crowded.add(self._queue)
        if popped is None:
            return False
        self._start(popped.ticket, made=popped.made)
        return True

    async def _pull_without_ring(self) -> None:
        busy = set(self._tasks.values())
        try:
            due = await self._sweeper.due_now(self._queue)
        except RetinueError as error:
            log.warning("no log either", detail=error.private)
            return
        for ticket in due:
            if self._slots.locked():
                return
            if ticket not in busy:
                await self._slots.acquire()
                self._start(ticket, made=False)

    def _start(self, ticket: Ticket, *, made: bool) -> None:
        task = asyncio.create_task(self._work(ticket, made=made))
        self._tasks[task] = ticket
        task.add_done_callback(self._ended)

    async def _work(self, ticket: Ticket, *, made: bool) -> None:
        """Work on a log, whose slot in the ring was made with its ticket or is that of whoever holds the log."""
        mine = made
        try:
            mine = await self._runner.work(ticket) or made
        finally:
            if mine:
                await self._give_back(ticket)

    async def _give_back(self, ticket: Ticket) -> None:
        """Give the slot back to the ring that it was taken from; an older process puts tasks into that of chats."""
        reach(Point.GIVING_BACK)
        try:
            await self._ring.done(ticket)
            reach(Point.GIVEN_BACK)
        except RetinueError as error:
            log.info("slot not given back; it expires", detail=error.private)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        del self._tasks[task]
        self._slots.release()
        if not task.cancelled() and task.exception() is not None:
            log.error("a run's task broke", exc_info=task.exception())

    async def drain(self, grace_s: float) -> None:
        """Wait for runs under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)

    async def leave(self) -> None:
        """Wait for runs that are given back; what hangs even then is left to its lease's end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=RELEASE_S)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
