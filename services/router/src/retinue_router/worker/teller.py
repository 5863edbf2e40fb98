"""Telling what happens in an attempt: numbering, batching, fencing."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.metrics import stale_writes_refused
from retinue_kit.streams import Appended, Bus, Cursor, Entry, Kind, Opening, log_key

from retinue_router.crash_points import Point
from retinue_router.domain.events import instant, render
from retinue_router.ring import Ticket
from retinue_router.worker.leases import Held
from retinue_router.worker.remains import UNSENT_ENTRIES_MAX, Remains

FLUSH_GAP_S = 0.004
"""Deltas that come within this after others are told together: a reader sees no difference, the bus has a third of the
work. The first is never held back."""

EVENTS_BEFORE_SLOWING = 5_000
"""After so many events of one attempt they are gathered for longer, so that a chatty runtime cannot fill the stream."""

SLOW_FLUSH_S = 0.1

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def lost() -> RetinueError:
    """The error of a holder whose lease went to another."""
    return RetinueError(Reason.STALE_FENCING_TOKEN, "The lease was lost to another worker.")


class Teller:
    """Tells the events of one attempt on the bus, in order; durable ones only once they are committed.

    `confirm` asks Postgres whether the lease still holds. Trouble with the bus never stops a run: the log has it all.
    What the attempt could not tell by its end goes to `remains`, and what is there of the log is told first.
    """

    def __init__(
        self, bus: Bus, ticket: Ticket, held: Held, confirm: Callable[[], Awaitable[bool]], remains: Remains
    ) -> None:
        self._bus = bus
        self._remains = remains
        self._key = log_key(*ticket)
        self._held = held
        self._confirm = confirm
        self._n = held.events[-1].cursor.n if held.events else 0
        self._prev = held.events[-1].cursor if held.events else held.prev
        self._pending: list[tuple[str, dict[str, Any], bool]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._gap: asyncio.Future[None] | None = None
        self._next_flush = 0.0
        self._opened = False
        self._paused = False
        self._frozen: list[Entry] = []
        self._unrecorded: list[dict[str, object]] = []
        self._promised: list[Entry] = []
        """Told, and to be recorded by the next commit: until then only the bus can show them."""
        self._refused = False
        self._told: Cursor | None = None
        """The last entry that the bus has taken: a stream that lacks it was lost meanwhile."""
        self._unsent: list[Entry] = []

    async def open(self) -> None:
        """Tell the mark and what the claim made a fact, where nothing else will be told."""
        self._start_flush()
        await self.settle()

    def tell(self, type_: str, data: dict[str, Any], *, recorded: bool = False) -> None:
        """Tell something soon; texts that follow one another are joined while the bus is busy.

        What is `recorded` will be written by the next commit under the same cursor; all else is tentative.
        """
        if not self._pending or not self._joined(type_, data):
            self._pending.append((type_, data, recorded))
        self._start_flush()

    def _start_flush(self) -> None:
        # One that was cancelled before it began is done as well, and has told nothing.
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    def _joined(self, type_: str, data: dict[str, Any]) -> bool:
        last_type, last, _ = self._pending[-1]
        if type_ != last_type or type_ not in ("assistant.delta", "reasoning.delta") or "replace" in data:
            return False
        last["text"] += data["text"]
        return True

    def record(self, type_: str, data: dict[str, Any], n: int, time: datetime | None = None) -> None:
        """Put an event into the next commit."""
        event: dict[str, object] = {
            "n": n,
            "type": type_,
            "data": data,
            "run_id": self._held.run_id,
            "session_id": self._held.session_id,
        }
        if time is not None:
            event["time"] = time.isoformat()
        self._unrecorded.append(event)

    def next_n(self) -> int:
        """Number the next durable event. Everything told before must have settled."""
        self._n += 1
        return self._n

    def unrecorded(self) -> bytes:
        """The events that the next commit is to record, as JSON."""
        return msgspec.json.encode(self._unrecorded)

    async def settle(self) -> None:
        """Wait until all that was told so far is on the bus."""
        while self._flushing is not None and not self._flushing.done():
            self._hurry()
            await self._flushing

    async def freeze(self) -> None:
        """Number what was told so far, so that a commit can number its facts behind it.

        What is not on its way yet is told together with the facts: one call to the bus less in each turn.
        """
        self._paused = True
        try:
            if self._flushing is not None and not self._flushing.done():
                self._hurry()
                await self._flushing
        finally:
            self._paused = False
        self._number()

    async def publish(self, entries: list[Entry]) -> None:
        """Publish what a commit made facts; repeats of what was told before are ignored."""
        self._unrecorded.clear()
        self._promised.clear()
        if entries:
            self._prev = entries[-1].cursor
            # A commit also writes what was told before, such as run.started: in a stream that is gone it comes first.
            facts = {entry.cursor: entry for entry in [*self._take_frozen(), *entries]}
            batch = [facts[cursor] for cursor in sorted(facts)]
            await self._append(batch, Opening.CLAIM if batch[0].kind is Kind.MARK else Opening.COMMITTED)

    def leave(self) -> None:
        """Say that nothing more will be told: what the bus has not taken is kept for when it answers."""
        self._remains.keep(self._key, self._unsent)

    def _hurry(self) -> None:
        if self._gap is not None and not self._gap.done():
            self._gap.set_result(None)

    def _entry(self, n: int, type_: str, data: dict[str, Any], time: str) -> Entry:
        cursor = Cursor(self._held.token, n)
        json = render(cursor, type_, self._held.session_id, self._held.run_id, time, data)
        return Entry(cursor, Kind.TENTATIVE, None, self._held.run_id, type_, json)

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while not self._paused and (self._frozen or self._pending or not self._opened):
                if self._opened and loop.time() < self._next_flush:
                    self._gap = loop.create_future()
                    timer = loop.call_at(self._next_flush, _wake, self._gap)
                    await self._gap
                    timer.cancel()
                    if self._paused:
                        return
                self._number()
                entries = self._take_frozen()
                if entries[-1].type == "assistant.delta":
                    slow = self._n > EVENTS_BEFORE_SLOWING
                    self._next_flush = loop.time() + (SLOW_FLUSH_S if slow else FLUSH_GAP_S)
                await self._append(entries, Opening.CLAIM if entries[0].kind is Kind.MARK else Opening.NO)
        except RetinueError as error:
            log.info("events not told", detail=error.private)

    def _number(self) -> None:
        """Give cursors to what waits. The mark and the claim's facts come first in an attempt."""
        if not self._opened:
            self._opened = True
            mark = Entry(Cursor(self._held.token, 0), Kind.MARK, self._held.prev, "", "", b"")
            self._frozen += [mark, *self._held.events]
        pending, self._pending = self._pending, []
        now = datetime.now(UTC)
        time = instant(now)
        for type_, data, recorded in pending:
            self._n += 1
            entry = self._entry(self._n, type_, data, time)
            if recorded:
                self.record(type_, data, self._n, now)
                self._promised.append(entry)
            self._frozen.append(entry)

    def _take_frozen(self) -> list[Entry]:
        frozen, self._frozen = self._frozen, []
        return frozen

    async def _append(self, entries: list[Entry], opening: Opening) -> None:
        """Append, and follow up on a refusal. A lost lease is remembered; the commit will say so with certainty."""
        if self._refused and opening is not Opening.COMMITTED:
            return
        if self._unsent:
            # A bus that has missed something is told that first; what has become a fact meanwhile is told as one.
            found = {entry.cursor: entry for entry in [*self._unsent, *entries]}
            entries = [found[cursor] for cursor in sorted(found)]
            if entries[0].kind is Kind.MARK:
                opening = Opening.CLAIM
        # Until the bus has said that it took them: a call that is cut off by a wish to stop has told nothing for sure.
        self._unsent = entries if len(entries) <= UNSENT_ENTRIES_MAX else self._needed(entries)
        try:
            await self._remains.tell(self._key)
            keep = self._held.keep_token if opening is Opening.CLAIM else 0
            reach(Point.APPENDING)
            answer = await self._bus.append(self._key, entries, opening=opening, keep_token=keep, told=self._told)
            reach(Point.APPENDED)
            if answer is Appended.OK:
                self._took(entries)
                return
            stale_writes_refused.labels("stream").inc(answer is Appended.STALE)
            if opening is Opening.COMMITTED:
                # Another has spoken since: watchers find these facts in the log, by its `prev`.
                self._refused, self._unsent = True, []
            else:
                await self._open_again(entries, answer)
        except RetinueError as error:
            log.warning("bus does not answer; the log has it", detail=error.private)

    def _needed(self, entries: list[Entry]) -> list[Entry]:
        """Of more than is kept for later: what watchers are not to miss."""
        promised = {entry.cursor for entry in self._promised}
        needed = [entry for entry in entries if entry.kind is not Kind.TENTATIVE or entry.cursor in promised]
        return needed[:UNSENT_ENTRIES_MAX]

    def _took(self, entries: list[Entry]) -> None:
        self._unsent, self._told = [], entries[-1].cursor

    async def _open_again(self, entries: list[Entry], answer: Appended) -> None:
        """Tell what was refused in a stream of its own, if Postgres says that the lease holds."""
        # Asked before Postgres is: who speaks after that is a successor, whose stream stays.
        top = await self._bus.top(self._key) if answer is Appended.STALE else None
        if not await self._confirm():
            self._refused, self._unsent = True, []
            return
        if top is not None:
            # Postgres says that our token is the highest: the stream outlived the database that it told of.
            await self._bus.delete(self._key, top=top)
        # A watcher that joined meanwhile has seen what the log holds; what is only promised to it comes again.
        again = {entry.cursor: entry for entry in [*self._promised, *entries]}
        batch = [again[cursor] for cursor in sorted(again)]
        if batch[0].kind is not Kind.MARK:
            first = batch[0].cursor
            batch.insert(0, Entry(Cursor(first.token, first.n - 1), Kind.MARK, self._prev, "", "", b""))
        if await self._bus.append(self._key, batch, opening=Opening.CLAIM) is Appended.OK:
            self._took(batch)


def _wake(gap: "asyncio.Future[None]") -> None:
    if not gap.done():
        gap.set_result(None)
