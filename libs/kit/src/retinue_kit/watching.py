"""Watching streams: one connection a process, a bounded queue a watcher, replay whenever something may be missing."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import READ_COUNT_MAX, Bus, Cursor, Entry, Kind, channel

QUEUE_SIZE_MAX_BYTES = 1024 * 1024
"""What may wait for one watcher. A slower one is cut off and resumes by its cursor: memory stays bounded."""

QUEUE_ENTRIES_MAX = 4096

TICK_S = 2.0
"""How often the last durable cursors are asked for, for the case that a commit was never published."""

RECONNECT_S = (0.05, 1.0)
"""First and longest pause between attempts to reach Redis again."""

REPLAY_PAGES_MAX = 10_000
"""Pages of one replay: at 500 entries a page far more than any stream holds; a guard against a log that grows faster
than it is read."""

DurablePage = tuple[Sequence[Entry], bool]
Durable = Callable[[Cursor], Awaitable[DurablePage]]
"""Reads durable entries after a cursor from the log itself: a page in order, and whether there is more."""

Cursors = Callable[[Sequence[str]], Awaitable[dict[str, Cursor]]]
"""Reads the last durable cursor of streams, by key; those without one are left out."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Watcher:
    """What waits for one watcher: entries, a wish to replay, the news that it was too slow."""

    queue: deque[Entry] = field(default_factory=deque)
    size_bytes: int = 0
    replay: bool = False
    overflow: bool = False
    known: Cursor | None = None
    last: Cursor | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, entry: Entry) -> None:
        if self.overflow:
            return
        self.size_bytes += len(entry.json)
        if self.size_bytes > QUEUE_SIZE_MAX_BYTES or len(self.queue) >= QUEUE_ENTRIES_MAX:
            self.overflow = True
            self.queue.clear()
        else:
            self.queue.append(entry)
        self.wake.set()

    def ask_replay(self) -> None:
        self.replay = True
        self.wake.set()

    def tell(self, cursor: Cursor) -> None:
        """Hear that the log's last durable cursor is this."""
        if self.last is None or cursor > self.last:
            self.known = cursor
            self.wake.set()

    def take(self) -> Entry:
        entry = self.queue.popleft()
        self.size_bytes -= len(entry.json)
        return entry


class Subscriber:
    """Hears streams over one connection. Use as an async context manager around its task.

    `client` must be a blocking one (streams.connect(blocking=True)); `cursors` answers the tick, None switches it off.
    """

    def __init__(self, client: "redis.asyncio.Redis", bus: Bus, cursors: Cursors | None = None) -> None:
        self._redis = client
        self._bus = bus
        self._cursors = cursors
        self._watchers: dict[str, set[_Watcher]] = {}
        self._heard: dict[str, asyncio.Event] = {}
        self._connection: redis.asyncio.Connection | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Subscriber":
        self._tasks.append(asyncio.create_task(self._listen_for_ever(), name="subscriber"))
        if self._cursors is not None:
            self._tasks.append(asyncio.create_task(self._tick_for_ever(self._cursors), name="tick"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            await self._connection.disconnect()

    async def watch(
        self, key: str, after: Cursor, durable: Durable, *, known: Cursor | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Yield a stream's entries after a cursor, for ever: each durable one once and in order, marks left out.

        `known` is the log's last durable cursor where the caller has just read it: nothing older needs to be asked for.
        Raises RetinueError(SLOW_CONSUMER) if the caller is slower than the stream, DEPENDENCY_UNAVAILABLE if neither
        bus nor log can be read.
        """
        watcher = _Watcher(last=after, replay=True)
        await self._join(key, watcher)
        state = _Reading(self._bus, key, after, durable)
        try:
            async for entry in state.replay(ask_log=known is None or known > after):
                watcher.last = state.last
                yield entry
            watcher.replay = False
            while True:
                async for entry in _next(watcher, state):
                    watcher.last = state.last
                    yield entry
                watcher.last = state.last
        finally:
            await self._leave(key, watcher)

    async def _join(self, key: str, watcher: _Watcher) -> None:
        watchers = self._watchers.setdefault(key, set())
        watchers.add(watcher)
        heard = self._heard.get(key)
        if heard is None:
            heard = self._heard[key] = asyncio.Event()
            await self._send("SUBSCRIBE", [key])
        try:
            async with asyncio.timeout(RECONNECT_S[1]):
                await heard.wait()
        except TimeoutError:
            # Redis is away. The watcher reads the log; on reconnection everyone replays.
            log.info("subscribing takes long")

    async def _leave(self, key: str, watcher: _Watcher) -> None:
        watchers = self._watchers.get(key, set())
        watchers.discard(watcher)
        if not watchers and key in self._watchers:
            del self._watchers[key]
            self._heard.pop(key, None)
            await self._send("UNSUBSCRIBE", [key])

    async def _send(self, command: str, keys: Iterable[str]) -> None:
        if self._connection is None:
            return
        try:
            await self._connection.send_command(command, *(channel(key) for key in keys))
        except (RedisError, OSError) as error:
            log.info("bus connection lost", detail=str(error))  # the listener meets the same and reconnects

    async def _listen_for_ever(self) -> None:
        pause = RECONNECT_S[0]
        while True:
            try:
                await self._listen()
                pause = RECONNECT_S[0]
            except (RedisError, OSError) as error:
                log.warning("bus connection lost", detail=str(error)[:200])
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECONNECT_S[1])

    async def _listen(self) -> None:
        """Subscribe to all that is watched, then hand out what is heard until the connection fails."""
        connection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        self._connection = connection
        keys = list(self._watchers)
        if keys:
            await self._send("SUBSCRIBE", keys)
            for key in keys:
                for watcher in self._watchers.get(key, ()):
                    watcher.ask_replay()  # what was said in the meantime was not heard
        while True:
            message = await connection.read_response(disconnect_on_error=True)
            kind, name, data = message[0], message[1].decode().removesuffix(":live"), message[2]
            if kind == b"subscribe":
                heard = self._heard.get(name)
                if heard is not None:
                    heard.set()
            elif kind == b"message":
                cursor, _, value = data.partition(b" ")
                entry = Entry.decode(Cursor.parse(cursor.decode()), value)
                for watcher in self._watchers.get(name, ()):
                    watcher.put(entry)

    async def _tick_for_ever(self, cursors: Cursors) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            keys = list(self._watchers)
            if not keys:
                continue
            try:
                found = await cursors(keys)
            except RetinueError as error:
                log.info("tick failed", detail=error.message)
                continue
            for key, cursor in found.items():
                for watcher in self._watchers.get(key, ()):
                    watcher.tell(cursor)


async def _next(watcher: _Watcher, state: "_Reading") -> AsyncGenerator[Entry, None]:
    """Wait for something to happen and yield what comes of it."""
    await watcher.wake.wait()
    watcher.wake.clear()
    while True:
        if watcher.overflow:
            raise RetinueError(
                Reason.SLOW_CONSUMER, "The reader is slower than the stream; resume with the last cursor."
            )
        if watcher.replay:
            watcher.replay = False
            async for entry in state.replay(ask_log=True):
                yield entry
        elif watcher.queue:
            async for entry in state.follow(watcher.take()):
                yield entry
        elif watcher.known is not None:
            known, watcher.known = watcher.known, None
            if known > state.last:
                async for entry in state.replay(ask_log=True):
                    yield entry
        else:
            return


class _Reading:
    """Where a watcher stands in a stream, and how it goes on."""

    def __init__(self, bus: Bus, key: str, after: Cursor, durable: Durable) -> None:
        self._bus = bus
        self._key = key
        self._durable = durable
        self.last = after

    async def replay(self, *, ask_log: bool) -> AsyncGenerator[Entry, None]:
        """Yield what the stream holds after the last cursor; then, where asked, what only the log holds."""
        try:
            for _ in range(REPLAY_PAGES_MAX):
                entries = await self._bus.read(self._key, self.last)
                for entry in entries:
                    async for due in self._deliver(entry):
                        yield due
                if len(entries) < READ_COUNT_MAX:
                    break
        except RetinueError as error:
            if error.metadata.get("dependency") != "redis":
                raise
            ask_log = True  # the bus is away: the log alone tells what happened
        if ask_log:
            async for due in self._from_log(None):
                yield due

    async def follow(self, entry: Entry) -> AsyncGenerator[Entry, None]:
        """Yield a live entry, and before it what was missed."""
        if entry.cursor <= self.last:
            return
        same = entry.cursor.token == self.last.token
        if entry.cursor.n > (self.last.n + 1 if same else 0):
            async for due in self.replay(ask_log=False):
                yield due
        if entry.cursor > self.last:
            async for due in self._deliver(entry):
                yield due

    async def _deliver(self, entry: Entry) -> AsyncGenerator[Entry, None]:
        if entry.prev is not None and entry.prev > self.last:
            async for due in self._from_log(entry.prev):
                yield due
        if entry.cursor > self.last:
            self.last = entry.cursor
            if entry.kind is not Kind.MARK:
                yield entry

    async def _from_log(self, upto: Cursor | None) -> AsyncGenerator[Entry, None]:
        """Yield durable entries after the last cursor, no further than `upto`."""
        for _ in range(REPLAY_PAGES_MAX):
            entries, more = await self._durable(self.last)
            for entry in entries:
                if upto is not None and entry.cursor > upto:
                    return
                if entry.cursor > self.last:
                    self.last = entry.cursor
                    yield entry
            if not more or not entries:
                return
