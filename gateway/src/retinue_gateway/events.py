"""Events: watching logs for callers, for as long as their tokens hold and the process lives."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

import structlog
from retinue.router.v1 import router_service_pb2, router_service_pb2_grpc, run_pb2
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import RETRY_AFTER_S, Reason, RetinueError
from retinue_kit.streams import Cursor, Entry, Kind, log_key
from retinue_kit.watch import DurablePage, Watch
from retinue_kit.watching import Subscriber

from retinue_gateway import encode
from retinue_gateway.credentials import Caller, Credentials

TERMINAL = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
"""Exactly one of these ends a run."""

PAGE_EVENTS = 500
"""Events read from the router at once."""

LOGS_PER_CALL_MAX = 5000
"""Logs that one call of the tick may name, by contract."""

LOOK_S = 1.0
"""How often open streams are looked at: whether their tokens still hold, and whether they have been silent."""

KEEP_ALIVE_S = 10.0
"""Silence after which a comment is sent; with LOOK_S below the 15 s that clients are promised."""

RUN_LOOK_S = 5.0
"""While a caller waits for a run's end, its row is looked at this often. A queued run that is cancelled is over at
once, but its event is written only when the log's holder is done with another run; one that is removed with its contact
ends without a word."""

FindRun = Callable[[], Awaitable[run_pb2.Run]]
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Attendee(Protocol):
    """Something held open for a caller."""

    caller: Caller
    lasting: bool
    """Whether it has no end of its own: a draining process does not wait for it."""

    def end(self, error: RetinueError) -> None:
        """End it soon, for this reason."""

    def look(self, now: float) -> None:
        """Do what is due at an instant of the monotonic clock."""


class Attendance:
    """Who is held open: ends those whose tokens do not count any more, and all of them when the process stops."""

    def __init__(self, credentials: Credentials, clock: Clock) -> None:
        self._credentials = credentials
        self._clock = clock
        self._present: set[Attendee] = set()
        self._empty = asyncio.Event()
        self._draining = False
        self._closing = False

    @property
    def count(self) -> int:
        """How many are held open."""
        return len(self._present)

    def add(self, attendee: Attendee) -> None:
        """Begin to look after someone."""
        self._present.add(attendee)
        if self._closing or (self._draining and attendee.lasting):
            attendee.end(_draining())

    def remove(self, attendee: Attendee) -> None:
        """Let someone go."""
        self._present.discard(attendee)
        if not self._present:
            self._empty.set()

    def look(self) -> None:
        """Look at everyone once."""
        now = self._clock.monotonic()
        for attendee in list(self._present):
            trouble = self._credentials.trouble(attendee.caller)
            if trouble is not None:
                attendee.end(trouble)
            else:
                attendee.look(now)

    async def look_for_ever(self) -> None:
        """Look at everyone again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    async def drain(self, grace_s: float) -> None:
        """End what is lasting at once, and after the grace what is left, or still to come."""
        self._draining = True
        for attendee in list(self._present):
            if attendee.lasting:
                attendee.end(_draining())
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._present:
                    self._empty.clear()
                    await self._empty.wait()
        self._closing = True
        for attendee in list(self._present):
            attendee.end(_draining())


def _draining() -> RetinueError:
    text = "This process is stopping; resume with the last cursor."
    return RetinueError(Reason.DRAINING, text, retry_after_s=RETRY_AFTER_S)


class Stream:
    """An open stream of events; use as a context manager."""

    def __init__(self, events: "Events", caller: Caller, watch: Watch, *, lasting: bool) -> None:
        self.caller = caller
        self.lasting = lasting
        self._events = events
        self._watch = watch
        self._spoke_at = events.clock.monotonic()

    def __enter__(self) -> "Stream":
        self._events.attendance.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._events.attendance.remove(self)
        self._events.subscriber.close(self._watch)

    async def next(self) -> list[Entry]:
        """Wait for events; none means that the stream was silent for long. Raises RetinueError if it is to end."""
        entries = await self._watch.next()
        self._spoke_at = self._events.clock.monotonic()
        return entries

    async def wait_for_end(self, run_id: str, find_run: FindRun) -> run_pb2.Run:
        """Wait until a run is over; answers it as it is then. May be cancelled; errors as `next`, and `find_run`'s."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RUN_LOOK_S):
                    await self._hear_end(run_id)
            run = await find_run()
            if encode.is_over(run):
                return run

    async def _hear_end(self, run_id: str) -> None:
        while True:
            for entry in await self.next():
                if entry.run_id == run_id and entry.type in TERMINAL:
                    return

    def end(self, error: RetinueError) -> None:
        """Make `next` raise."""
        self._watch.fail(error)

    def look(self, now: float) -> None:
        """Make `next` answer if nothing was said for long."""
        if now - self._spoke_at >= KEEP_ALIVE_S:
            self._watch.poke()


class Events:
    """Opens streams of events. Use `subscriber` as a context manager around it."""

    def __init__(self, router: Peer, subscriber: Subscriber, attendance: Attendance, clock: Clock) -> None:
        self.subscriber = subscriber
        self.attendance = attendance
        self.clock = clock
        self._router = router
        self._stub = router_service_pb2_grpc.RouterServiceStub(router.channel)

    async def open(
        self, caller: Caller, log_id: str, after: Cursor, *, known: Cursor | None = None, lasting: bool = False
    ) -> Stream:
        """Watch a log of the caller's tenant after a cursor; `known` is its last durable cursor if just read."""
        watch = await self.watch(caller.tenant_id, log_id, after, known)
        return Stream(self, caller, watch, lasting=lasting)

    async def watch(self, tenant_id: str, log_id: str, after: Cursor, known: Cursor | None) -> Watch:
        """Watch a log without looking after its caller."""
        durable = partial(self._read_log, tenant_id, log_id)
        return await self.subscriber.open(log_key(tenant_id, log_id), after, durable, known=known)

    async def find_log(self, tenant_id: str, contact: str) -> tuple[str, Cursor]:
        """Find a contact's log and its last durable cursor; the contact need not be there."""
        request = router_service_pb2.GetLogRequest(tenant_id=tenant_id, contact=contact)
        answer = await self._router.call(self._stub.GetLog, request)
        return answer.log_id, Cursor.parse(answer.last_cursor or "0-0")

    async def terminal_cursor(self, run: run_pb2.Run) -> Cursor | None:
        """Find the event that ended a run; None if the log does not have it (yet)."""
        after = run.after_cursor
        for _ in range(PAGES_MAX):
            answer = await self._list_events(run.tenant_id, run.log_id, after, run.run_id)
            for event in answer.events:
                if event.type in TERMINAL:
                    return Cursor.parse(event.cursor)
                after = event.cursor
            if not answer.more or not answer.events:
                return None
        return None

    async def _list_events(
        self, tenant_id: str, log_id: str, after: str, run_id: str = ""
    ) -> router_service_pb2.ListEventsResponse:
        request = router_service_pb2.ListEventsRequest(
            tenant_id=tenant_id, log_id=log_id, run_id=run_id, after_cursor=after, page_size=PAGE_EVENTS
        )
        answer: router_service_pb2.ListEventsResponse = await self._router.call(self._stub.ListEvents, request)
        return answer

    async def _read_log(self, tenant_id: str, log_id: str, after: Cursor) -> DurablePage:
        answer = await self._list_events(tenant_id, log_id, str(after))
        return [
            Entry(Cursor.parse(event.cursor), Kind.DURABLE, None, event.run_id, event.type, event.json)
            for event in answer.events
        ], answer.more


PAGES_MAX = 200
"""Pages of one run's durable events: 100,000, a hundred times what a run may record."""


class Tick:
    """Asks the router for the last durable cursors of watched logs."""

    def __init__(self, router: Peer) -> None:
        self._router = router
        self._stub = router_service_pb2_grpc.RouterServiceStub(router.channel)

    async def __call__(self, keys: Sequence[str]) -> dict[str, Cursor]:
        """Read the cursors by key. Raises RetinueError."""
        found: dict[str, Cursor] = {}
        for start in range(0, len(keys), LOGS_PER_CALL_MAX):
            request = router_service_pb2.ListCursorsRequest(logs=_logs(keys[start : start + LOGS_PER_CALL_MAX]))
            answer = await self._router.call(self._stub.ListCursors, request)
            for cursor in answer.cursors:
                found[log_key(cursor.tenant_id, cursor.log_id)] = Cursor.parse(cursor.last_cursor)
        return found


def _logs(keys: Iterable[str]) -> list[router_service_pb2.LogRef]:
    """Read keys as `log_key` writes them; ids hold no colon."""
    parts = (key.split(":") for key in keys)
    return [router_service_pb2.LogRef(tenant_id=tenant_id, log_id=log_id) for _, tenant_id, _, log_id in parts]
