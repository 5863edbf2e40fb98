"""Watching streams: one connection a process, however many watch what; `watch.py` says what each of them is told."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from retinue_kit.errors import RetinueError
from retinue_kit.loops import keep
from retinue_kit.streams import Bus, Cursor, Entry, channel
from retinue_kit.watch import Durable, Watch

TICK_S = 2.0
"""How often the last durable cursors are asked for, for the case that a commit was never published."""

RECONNECT_S = (0.05, 1.0)
"""First and longest pause between attempts to reach Redis again."""

LINGER_S = 20.0
"""How long a stream is still subscribed to after its last watcher has left: the next message of a conversation finds
its subscription made, which saves it a round trip."""

LINGER_KEYS_MAX = 2000
"""Streams that linger; beyond, the one that was left first is let go."""

SUBSCRIBE_KEYS_MAX = 1000
"""Streams named in one command, after a reconnect above all."""

Cursors = Callable[[Sequence[str]], Awaitable[dict[str, Cursor]]]
"""Reads the last durable cursor of streams, by key; those without one are left out."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Subscriber:
    """Hears streams over one connection. Use as an async context manager.

    `client` must be a blocking one (streams.connect(blocking=True)); `cursors` answers the tick, None switches it off.
    """

    def __init__(self, client: "redis.asyncio.Redis", bus: Bus, cursors: Cursors | None = None) -> None:
        self._redis = client
        self._bus = bus
        self._cursors = cursors
        self._watches: dict[str, set[Watch]] = {}
        self._heard: dict[str, asyncio.Event] = {}
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        """Streams that nobody watches but that are still subscribed to, the one left first first."""
        self._commands: deque[tuple[str, str]] = deque()
        """What is still to be sent; two for each watch at most, and emptied when the connection is lost."""
        self._has_commands = asyncio.Event()
        self._connected = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Subscriber":
        self._tasks.append(keep("listen", self._listen_for_ever))
        if self._cursors is not None:
            self._tasks.append(keep("tick", self._tick_for_ever, self._cursors))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(self, key: str, after: Cursor, durable: Durable, *, known: Cursor | None = None) -> Watch:
        """Begin to watch a stream's entries after a cursor: each durable one comes once and in order.

        `known` is the log's last durable cursor where the caller has just read it: nothing older needs to be asked for.
        """
        watch = Watch(self._bus, key, after, durable, known is None or known > after)
        self._watches.setdefault(key, set()).add(watch)
        timer = self._lingering.pop(key, None)
        if timer is not None:
            timer.cancel()
        heard = self._heard.get(key)
        if heard is None:
            heard = self._heard[key] = asyncio.Event()
            self._send("SUBSCRIBE", key)
        try:
            if not heard.is_set():
                async with asyncio.timeout(RECONNECT_S[1]):
                    await heard.wait()
        except TimeoutError:
            # Redis is away. The watcher reads the log; on reconnection everyone catches up.
            log.info("subscribing takes long")
        except BaseException:
            self.close(watch)
            raise
        watch.joined = True
        return watch

    def close(self, watch: Watch) -> None:
        """End a watch."""
        watches = self._watches.get(watch.key, set())
        watches.discard(watch)
        if watches or watch.key not in self._watches:
            return
        del self._watches[watch.key]
        if self._connected:
            later = asyncio.get_running_loop().call_later
            self._lingering[watch.key] = later(LINGER_S, self._let_go, watch.key)
            if len(self._lingering) > LINGER_KEYS_MAX:
                self._let_go(next(iter(self._lingering)))
        else:
            self._heard.pop(watch.key, None)

    def _let_go(self, key: str) -> None:
        """Hear a stream no longer that nobody watches."""
        timer = self._lingering.pop(key, None)
        if timer is not None:
            timer.cancel()
            self._heard.pop(key, None)
            self._send("UNSUBSCRIBE", key)

    async def watch(
        self, key: str, after: Cursor, durable: Durable, *, known: Cursor | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Yield a stream's entries one by one, for ever; arguments as in `open`, errors as in `Watch.next`."""
        watch = await self.open(key, after, durable, known=known)
        try:
            while True:
                for entry in await watch.next():
                    yield entry
        finally:
            self.close(watch)

    def _send(self, command: str, key: str) -> None:
        if self._connected:
            self._commands.append((command, key))
            self._has_commands.set()

    async def _listen_for_ever(self) -> None:
        pause = RECONNECT_S[0]
        while True:
            connection = self._redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()
                pause = RECONNECT_S[0]
                await self._serve(connection)
            except* (RedisError, OSError) as errors:
                log.warning("bus connection lost", detail=str(errors.exceptions[0])[:200])
            finally:
                for key in list(self._lingering):
                    self._let_go(key)
                self._connected = False
                self._commands.clear()
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECONNECT_S[1])

    async def _serve(self, connection: "redis.asyncio.Connection") -> None:
        """Subscribe to all that is watched, then hand out what is heard until the connection fails."""
        self._connected = True
        for key in self._watches:
            self._send("SUBSCRIBE", key)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._speak(connection))
            while True:
                kind, name, data = await connection.read_response(disconnect_on_error=True)
                key = name.decode().removesuffix(":live")
                if kind == b"message":
                    self._hand_out(key, data)
                elif kind == b"subscribe" and key in self._heard:
                    self._heard[key].set()
                    for watch in self._watches.get(key, ()):
                        if watch.joined:
                            watch.ask_catch_up()  # what was said before was not heard

    async def _speak(self, connection: "redis.asyncio.Connection") -> None:
        """Send commands in the order in which they were wanted."""
        while True:
            await self._has_commands.wait()
            self._has_commands.clear()
            while self._commands:
                command = self._commands[0][0]
                keys: list[str] = []
                while self._commands and self._commands[0][0] == command and len(keys) < SUBSCRIBE_KEYS_MAX:
                    keys.append(self._commands.popleft()[1])
                await connection.send_command(command, *map(channel, keys))

    def _hand_out(self, key: str, data: bytes) -> None:
        watches = self._watches.get(key)
        if not watches:
            return
        cursor, _, value = data.partition(b" ")
        try:
            entry = Entry.decode(Cursor.parse(cursor.decode()), value)
        except (ValueError, RetinueError):
            log.warning("unreadable entry on the bus", size_bytes=len(data))
            return
        for watch in watches:
            watch.put(entry)

    async def _tick_for_ever(self, cursors: Cursors) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            keys = list(self._watches)
            if not keys:
                continue
            try:
                found = await cursors(keys)
            except RetinueError as error:
                log.info("tick failed", detail=error.message)
                continue
            for key, cursor in found.items():
                for watch in self._watches.get(key, ()):
                    watch.tell(cursor)
