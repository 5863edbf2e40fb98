"""Asks a process whether it serves, in its own tongue."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 1.0
"""A process on this machine that takes longer is not serving."""

LINE_SIZE_MAX_BYTES = 4096
_RECONNECT_MS = 50
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
    ("grpc.min_reconnect_backoff_ms", _RECONNECT_MS),
    ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
]

Check = Callable[[], Awaitable[bool]]


async def _say(path: Path | None, port: int, line: bytes) -> bytes:
    """Send bytes to a unix socket (or a loopback port) and read one line; empty if nobody answers."""
    connecting = asyncio.open_unix_connection(path) if path else asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await connecting
            try:
                writer.write(line)
                return (await reader.readline())[:LINE_SIZE_MAX_BYTES]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""


async def http(method: str, url: str, path: Path | None = None) -> bool:
    """Make a request, over a unix socket if its path is given; tells whether the answer is 200."""
    parts = urlsplit(url)
    head = (
        f"{method} {parts.path}?{parts.query} HTTP/1.1\r\nhost: local\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    return b" 200 " in await _say(path, parts.port or 0, head.encode())


def by_http(url: str, path: Path | None = None) -> Check:
    """Check by a GET."""
    return lambda: http("GET", url, path)


def by_redis(path: Path) -> Check:
    """Check by a PING."""

    async def check() -> bool:
        return await _say(path, 0, b"PING\r\n") == b"+PONG\r\n"

    return check


class ByGrpc:
    """Check by gRPC's health service, over one channel."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._channel: Any = None
        self._asked = 0

    def place(self) -> int:
        """Tell apart who listens: the socket's inode, which is another with each process; 0 if nobody ever did."""
        try:
            return self._socket.stat().st_ino
        except OSError:
            return 0

    async def __call__(self) -> bool:
        place = self.place()
        if not place:  # cheaper than a channel that tries to connect
            return False
        if place != self._asked:  # a channel stays with whom it has reached
            await self.close()
            self._asked = place
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=_OPTIONS)
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError:
            # A new process listens on a new socket of the same name; the old channel may wait before it looks.
            await self.close()
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()


class ByPostgres:
    """Check by a query, over one connection."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: Any = None

    async def __call__(self) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._connection is None:
                    self._connection = await asyncpg.connect(self._dsn)
                return bool(await self._connection.fetchval("select 1") == 1)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await self.close()
            return False

    async def close(self) -> None:
        """Leave the server."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=TIMEOUT_S)
            connection.terminate()
