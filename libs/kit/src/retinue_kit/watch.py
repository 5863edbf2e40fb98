"""One watcher of a stream: what comes next, with nothing durable missed or repeated.

A watcher stands at a cursor. What comes next without a gap it takes from its queue, which the subscription fills. At
the start, after a reconnect, or where an entry does not follow the last one, it catches up: it reads the log, where
needed, then the bus, and merges them. In that order, because whatever the log tells was published after the tentative
entries before it, so that the bus, read later, holds those.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from heapq import merge

import msgspec

from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import READ_COUNT_MAX, START, Bus, Cursor, Entry, Kind

QUEUE_SIZE_MAX_BYTES = 1024 * 1024
"""What may wait for one watcher. A slower one is cut off and resumes by its cursor: memory stays bounded."""

QUEUE_ENTRIES_MAX = 4096

BATCH_ENTRIES_MAX = 256
"""Entries handed out at once: few enough to be written as one small chunk."""

BATCH_SIZE_MAX_BYTES = 256 * 1024
"""Handed out at once, but for a single larger entry."""

READ_SIZE_BYTES = 1024 * 1024
"""About what one read of the bus is to answer; how many entries that are is learned from the last answer."""

READ_COUNT_FIRST = 128

HOLD_S = 2.0
"""A fact of the log waits so long after its commit for the tentative entries before it: as long as one call of its
holder to a bus that hangs. Then it is told without them; it holds the whole of what they said."""

HOLD_LOOK_S = 0.25
"""While a fact is held back, log and bus are looked at this often; what is published meanwhile is heard at once."""

DurablePage = tuple[Sequence[Entry], bool]
Durable = Callable[[Cursor], Awaitable[DurablePage]]
"""Reads durable entries after a cursor from the log itself: a page in order, and whether there is more."""


class _Dated(msgspec.Struct):
    """What is read of an event here."""

    time: datetime | None = None


_dated = msgspec.json.Decoder(_Dated)


class Watch:
    """One watcher of a stream; made by Subscriber.open, to be closed. One task at a time may ask for what is next."""

    def __init__(self, bus: Bus, key: str, after: Cursor, durable: Durable, ask_log: bool) -> None:
        self.key = key
        self.last = after
        """Cursor of the last entry handed out."""
        self._bus = bus
        self._durable = durable
        self._queue: deque[Entry] = deque()
        self._size_bytes = 0
        self._wake = asyncio.Event()
        self._catch_up = True
        self._ask_log = ask_log
        self._asked = 0
        """Counts the wishes to catch up, so that one that comes while catching up is not forgotten."""
        self._sure = START
        """The log is asked after entries up to here were seen: they need not follow one another."""
        self.joined = False
        """Whether the watch has begun; before, there is nothing that it may have missed."""
        self._count = READ_COUNT_FIRST
        self._poked = False
        self._held_back = False
        self._failure: RetinueError | None = None

    async def next(self) -> list[Entry]:
        """Wait for the next entries and answer them in order, marks left out; none if poked. May be cancelled.

        Raises RetinueError(SLOW_CONSUMER) if the caller is slower than the stream, DEPENDENCY_UNAVAILABLE if neither
        bus nor log can be read, and what `fail` was given.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            entries: list[Entry] = []
            if self._catch_up:
                if self._held_back:
                    await self._wait_a_little()
                entries = await self._read()
            elif self._queue:
                entries = self._take()
            elif self._poked:
                self._poked = False
                return []
            else:
                self._wake.clear()
                await self._wake.wait()
            if entries:
                return entries

    async def _wait_a_little(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(HOLD_LOOK_S):
                await self._wake.wait()

    def poke(self) -> None:
        """Make `next` answer, with an empty list if there is nothing."""
        self._poked = True
        self._wake.set()

    def fail(self, error: RetinueError) -> None:
        """Make `next` raise an error from now on."""
        self._failure = error
        self._queue.clear()
        self._wake.set()

    def put(self, entry: Entry) -> None:
        """Hear an entry."""
        if self._failure is not None:
            return
        self._size_bytes += len(entry.json)
        if self._size_bytes > QUEUE_SIZE_MAX_BYTES or len(self._queue) >= QUEUE_ENTRIES_MAX:
            text = "The reader is slower than the stream; resume with the last cursor."
            self.fail(RetinueError(Reason.SLOW_CONSUMER, text))
        else:
            self._queue.append(entry)
            self._wake.set()

    def ask_catch_up(self) -> None:
        """Hear that something may have been missed."""
        self._asked += 1
        self._catch_up = self._ask_log = True
        self._wake.set()

    def tell(self, cursor: Cursor) -> None:
        """Hear that the log's last durable cursor is this."""
        heard = max(self.last, self._queue[-1].cursor) if self._queue else self.last
        if cursor > heard:
            self.ask_catch_up()

    def _follows(self, entry: Entry, last: Cursor) -> bool:
        """Whether nothing durable can lie between."""
        if entry.prev is not None:
            return entry.prev <= last
        return entry.cursor.token == last.token and entry.cursor.n == last.n + 1

    def _take(self) -> list[Entry]:
        """Take from the queue what follows without a gap."""
        entries: list[Entry] = []
        last = self.last
        size_bytes = 0
        while self._queue and len(entries) < BATCH_ENTRIES_MAX and size_bytes < BATCH_SIZE_MAX_BYTES:
            entry = self._queue[0]
            if entry.cursor > last:
                if entry.cursor > self._sure and not self._follows(entry, last):
                    if not entries:
                        self._sure = entry.cursor
                        self.ask_catch_up()
                    break
                last = entry.cursor
                if entry.kind is not Kind.MARK:
                    entries.append(entry)
            self._queue.popleft()
            self._size_bytes -= len(entry.json)
            size_bytes += len(entry.json)
        self.last = last
        return entries

    async def _read(self) -> list[Entry]:
        """Catch up by one page. Nothing has changed if this is cancelled or fails."""
        self._wake.clear()
        asked, ask_log, sure = self._asked, self._ask_log, self._sure
        page, more = await self._durable(self.last) if ask_log else ((), False)
        if page:
            sure = max(sure, page[-1].cursor)
        heard: list[Entry] = []
        reached: Cursor | None = None
        waiting = self._queue[-1].cursor if self._queue else START
        try:
            heard = await self._bus.read(self.key, self.last, self._count)
            reached = heard[-1].cursor if heard else self.last
        except RetinueError:
            if not ask_log:  # the bus is away: the log alone tells what happened
                self._ask_log = True
                return []
        full = len(heard) >= self._count
        if heard:
            mean = sum(len(entry.json) for entry in heard) // len(heard)
            self._count = max(1, min(READ_COUNT_MAX, READ_SIZE_BYTES // max(1, mean)))
        ends = [entries[-1].cursor for entries, cut in ((page, more), (heard, full)) if cut and entries]
        merged = self._merge(page, heard, min(ends) if ends else None, sure, reached)
        self.last = merged.last
        # Of what the log told, only the part that was handed out is sure: the next page may come from the bus alone.
        # Where the bus could not be read, what waits in the queue may still follow something that only the bus knows.
        # Likewise where the bus has lost what was heard already: its holder tells again what is not recorded yet.
        lost = reached is not None and not full and waiting > max(reached, merged.last) and self._may_lack()
        unread = lost or (reached is None and bool(self._queue))
        self._sure = merged.gap or (merged.last if ends or merged.cut or merged.behind or unread else sure)
        again = self._asked != asked
        behind = self._held_back = merged.behind or unread
        self._ask_log = bool(again or merged.gap or behind or (more and page) or (merged.cut and ask_log))
        self._catch_up = self._ask_log or full or merged.cut
        return merged.entries

    def _may_lack(self) -> bool:
        """Whether something that was told a moment ago is missing before what waits in the queue."""
        first = next((entry for entry in self._queue if entry.cursor > self.last), None)
        return first is not None and bool(first.json) and not self._follows(first, self.last) and _is_fresh(first)

    def _merge(
        self, page: Sequence[Entry], heard: list[Entry], end: Cursor | None, sure: Cursor, reached: Cursor | None
    ) -> "_Merged":
        """Put entries of log and bus in order, up to an end, or to one before which something may be missing.

        The bus has told up to `reached`; None if it could not be read.
        """
        merged = _Merged([], self.last)
        size_bytes = 0
        for entry in merge(page, heard, key=lambda entry: entry.cursor):
            if end is not None and entry.cursor > end:
                break
            if entry.cursor > merged.last:
                if entry.cursor > sure and not self._follows(entry, merged.last):
                    merged.gap = entry.cursor
                    break
                if reached is not None and entry.cursor > reached and _lacks(entry, merged.last) and _is_fresh(entry):
                    merged.behind = True
                    break
                size_bytes += len(entry.json)
                if merged.entries and size_bytes > BATCH_SIZE_MAX_BYTES:
                    merged.cut = True
                    break
                merged.last = entry.cursor
                if entry.kind is not Kind.MARK:
                    merged.entries.append(entry)
        return merged


@dataclass(slots=True)
class _Merged:
    """A page of log and bus together, and why it ends where it does."""

    entries: list[Entry]
    last: Cursor
    gap: Cursor | None = None
    """An entry before which something may be missing."""
    cut: bool = False
    """Whether there is more than is handed out at once."""
    behind: bool = False
    """Whether the bus has still to tell what comes before the next fact of the log."""


def _lacks(entry: Entry, last: Cursor) -> bool:
    """Whether something was numbered between: cursors of one token are dense."""
    return entry.cursor.n > (last.n if entry.cursor.token == last.token else 0) + 1


def _is_fresh(entry: Entry) -> bool:
    told = _dated.decode(entry.json).time
    # A database whose clock is ahead holds nothing up for long.
    return told is not None and abs(time.time() - told.timestamp()) < HOLD_S
