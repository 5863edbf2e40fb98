"""What ended attempts could not tell a bus that hung: told once it answers, in the order of the log."""

import asyncio
from collections import deque

import structlog
from retinue_kit.errors import RetinueError
from retinue_kit.streams import Bus, Entry, Opening

UNSENT_ENTRIES_MAX = 1_000
"""Entries kept of one attempt for a bus that does not answer: minutes of an answer, since texts are joined while a call
waits. With more, watchers are left with the facts of the log."""

ATTEMPTS_KEPT_MAX = 1_000
"""Ended attempts that are kept: what a process ends while a bus hangs for some seconds. Of others, watchers are left
with the facts of the log."""

AGAIN_S = 0.5
"""Pause before a bus that did not answer is tried again."""

TRIES_MAX = 120
"""Tries before what is left is dropped: a minute and more, after which nobody watches for how it was said."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Remains:
    """Entries of ended attempts by the stream's key; a stream that a higher token has spoken in refuses them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._kept: dict[str, deque[list[Entry]]] = {}
        self._count = 0
        self._wake = asyncio.Event()

    def keep(self, key: str, entries: list[Entry]) -> None:
        """Take what an attempt leaves, its commit being made."""
        if entries and self._count < ATTEMPTS_KEPT_MAX:
            self._kept.setdefault(key, deque()).append(entries)
            self._count += 1
            self._wake.set()

    async def tell(self, key: str) -> None:
        """Tell what is left of a log. Raises RetinueError(DEPENDENCY_UNAVAILABLE), and keeps it, if the bus hangs."""
        while key in self._kept:
            attempts = self._kept[key]
            entries = attempts[0]
            await self._bus.append(key, entries, opening=Opening.COMMITTED)
            if attempts and attempts[0] is entries:
                attempts.popleft()
                self._count -= 1
                if not attempts:
                    del self._kept[key]

    async def tell_for_ever(self) -> None:
        """Try again and again, with what was kept first."""
        while True:
            await self._wake.wait()
            for _ in range(TRIES_MAX):
                await asyncio.sleep(AGAIN_S)
                try:
                    while self._kept:
                        await self.tell(next(iter(self._kept)))
                    break
                except RetinueError as error:
                    log.info("not told yet", count=self._count, detail=error.private)
            self._kept.clear()
            self._count = 0
            self._wake.clear()
