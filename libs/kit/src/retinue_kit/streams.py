"""The bus: fenced streams of events in Redis, and watching them without missing or repeating a durable one.

A stream is appended to by the holder of a lease, whose fencing token is the first half of every cursor. It keeps what
is recent; what is durable is in Postgres as well, and a watcher asks for it there when the bus cannot have shown it:
each durable entry names its predecessor, so that a gap is noticed whatever was lost.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from importlib import resources
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from retinue_kit.errors import Reason, RetinueError

STREAM_TTL_S = 900
"""A stream lives for a quarter of an hour after its last entry: deltas can be seen again for at least ten minutes, and
an idle session takes no memory."""

READ_COUNT_MAX = 500
"""Entries read in one call, so that a long stream does not hold Redis up."""

_NUMBER_MAX = 2**53 - 1
"""Lua counts in doubles."""


@dataclass(frozen=True, order=True, slots=True)
class Cursor:
    """A place in a log: the fencing token of an attempt, and a number within it."""

    token: int
    n: int

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read "{token}-{n}". Raises RetinueError(CURSOR_INVALID)."""
        token, dash, n = text.partition("-")
        if not (dash and token.isascii() and token.isdigit() and n.isascii() and n.isdigit() and len(text) <= 33):
            raise RetinueError(Reason.CURSOR_INVALID, f"{text[:64]!r} is not a cursor.", field="after")
        cursor = cls(int(token), int(n))
        if max(cursor.token, cursor.n) > _NUMBER_MAX:
            raise RetinueError(Reason.CURSOR_INVALID, f"{text!r} is not a cursor.", field="after")
        return cursor

    def __str__(self) -> str:
        return f"{self.token}-{self.n}"


START = Cursor(0, 0)
"""Before the first event of any log: tokens begin at 1."""


class Kind(StrEnum):
    """What an entry is: a fact that Postgres holds too, something told as it happens, or a mark for watchers only."""

    DURABLE = "d"
    TENTATIVE = "t"
    MARK = "m"


@dataclass(frozen=True, slots=True)
class Entry:
    """An event on the bus.

    `prev` is the cursor of the durable event before it; set on durable entries and marks. `json` is the event as
    clients see it, on one line; empty for marks.
    """

    cursor: Cursor
    kind: Kind
    prev: Cursor | None
    run_id: str
    type: str
    json: bytes

    def encode(self) -> bytes:
        """Write what goes into the stream under this cursor."""
        return f"{self.kind}\t{self.prev or '-'}\t{self.run_id}\t{self.type}\t".encode() + self.json

    @classmethod
    def decode(cls, cursor: Cursor, value: bytes) -> "Entry":
        """Read what `encode` wrote."""
        kind, prev, run_id, type_, json = value.split(b"\t", 4)
        before = None if prev == b"-" else Cursor.parse(prev.decode())
        return cls(cursor, Kind(kind.decode()), before, run_id.decode(), type_.decode(), json)


class Opening(IntEnum):
    """Whether a batch may create its stream."""

    NO = 0
    CLAIM = 1
    """The first batch under a lease that Postgres has just confirmed."""
    COMMITTED = 2
    """Only facts that are committed already."""


class Appended(StrEnum):
    """How an append ended."""

    OK = "OK"
    STALE = "STALE"
    """A higher token has spoken: nothing was written, the lease is lost."""
    GONE = "GONE"
    """The stream is not there (any more): nothing was written; ask Postgres whether the lease still holds."""


def log_key(tenant_id: str, log_id: str) -> str:
    """Name the stream of a tenant's log."""
    return f"t:{tenant_id}:log:{log_id}"


def channel(key: str) -> str:
    """Name the channel on which a stream's entries are heard."""
    return key + ":live"


class Bus:
    """Appending to streams, and reading them. Every method raises RetinueError(DEPENDENCY_UNAVAILABLE) on trouble."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._redis = client
        self._append = client.register_script(_source("append.lua"))
        self._delete = client.register_script(_source("delete.lua"))

    async def append(
        self,
        key: str,
        entries: Sequence[Entry],
        *,
        opening: Opening = Opening.NO,
        keep_token: int = 0,
        told: Cursor | None = None,
    ) -> Appended:
        """Append entries of one token in order and publish them, or do neither.

        An opener drops entries below `keep_token` from the stream. Repeating a batch changes nothing. For one who does
        not open it, a stream is gone also where it lacks what the same token has `told`: it was lost and made anew.
        """
        if not entries:
            return Appended.OK
        token = entries[0].cursor.token
        arguments: list[bytes | str | int] = [
            int(opening), token, STREAM_TTL_S, keep_token, told.n if told is not None and told.token == token else -1
        ]  # fmt: skip
        for entry in entries:
            arguments += (entry.cursor.n, entry.encode())
        try:
            answer = await self._append(keys=[key, channel(key)], args=arguments)
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        return Appended(answer.decode())

    async def read(self, key: str, after: Cursor, count: int = READ_COUNT_MAX) -> list[Entry]:
        """Read entries after a cursor in order, at most `count`; empty if the stream is not there."""
        try:
            rows: list[tuple[bytes, dict[bytes, bytes]]] = await self._redis.xrange(key, f"({after}", "+", count)  # type: ignore[assignment]
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        return [Entry.decode(Cursor.parse(row.decode()), fields[b"e"]) for row, fields in rows]

    async def top(self, key: str) -> Cursor | None:
        """The last cursor that was told in a stream, whether it is still kept or not; None if there is no stream."""
        try:
            info = await self._redis.xinfo_stream(key)
        except ResponseError:
            return None
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        return Cursor.parse(info["last-generated-id"].decode())

    async def delete(self, key: str, *, through: int = 0, top: Cursor | None = None) -> None:
        """Remove a stream, or of it what tokens up to `through` told: nothing more of theirs will be taken in.

        With `top`, nothing is removed if anything was told since.
        """
        try:
            await self._delete(keys=[key], args=[through, STREAM_TTL_S, "" if top is None else str(top)])
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error


def _source(name: str) -> str:
    return resources.files(__package__ or "retinue_kit").joinpath(name).read_text("utf-8")


class _BoundedClient(redis.asyncio.Redis):
    """A client whose commands take a bounded time and a bounded number of connections.

    redis-py's own timeout swallows a cancellation that races with an answer (one in three), and its pool refuses at its
    limit instead of waiting. Here a command above the limit waits its turn within the same time.
    """

    slots: asyncio.Semaphore

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with asyncio.timeout(CALL_TIMEOUT_S), self.slots:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


CALL_TIMEOUT_S = 2.0
"""A command of ours takes well under a millisecond; two seconds is a Redis that hangs."""

CONNECTIONS_SPARE = 64
"""Connections beyond the commands' own: for subscriptions."""


def connect(url: str, *, blocking: bool = False, max_connections: int = 64) -> "redis.asyncio.Redis":
    """Open a client; it connects when first used. TimeoutError and RedisError are what its commands fail with.

    `blocking` clients wait as long as their command asks for.
    """
    kind = redis.asyncio.Redis if blocking else _BoundedClient
    client = kind.from_url(
        url,
        max_connections=max_connections + CONNECTIONS_SPARE,
        socket_timeout=None,
        socket_connect_timeout=CALL_TIMEOUT_S,
        # The older protocol: subscriptions come as plain answers, in whichever version of Redis.
        protocol=2,
    )
    if isinstance(client, _BoundedClient):
        client.slots = asyncio.Semaphore(max_connections)
    return client
