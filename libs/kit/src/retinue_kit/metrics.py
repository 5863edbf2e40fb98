"""Numbers about this process in Prometheus' format: counted anywhere, served at one address.

Labels hold values of a small fixed set only, never a tenant's, a contact's or a run's name.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

from retinue_kit.config import SettingError

SETTING = "RETINUE_METRICS_ADDRESS"
"""Where a process tells its numbers, `unix:/path` or `host:port`; nowhere if it is not set."""

PREFIX = "retinue_"
PORT_MAX = 65535
ANSWER_TIMEOUT_S = 5.0
"""For reading a request and telling all: who takes longer is cut off."""

REQUEST_SIZE_MAX_BYTES = 8 * 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def counter(name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
    """Make a counter; its name is told as retinue_{name}_total."""
    return Counter(PREFIX + name, meaning, labels)


def gauge(name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
    """Make a gauge; its name is told as retinue_{name}."""
    return Gauge(PREFIX + name, meaning, labels)


def histogram(name: str, meaning: str, bounds: Sequence[float]) -> Histogram:
    """Make a histogram with these upper bounds; its name is told as retinue_{name}_bucket, _sum and _count."""
    return Histogram(PREFIX + name, meaning, buckets=bounds)


stale_writes_refused = counter(
    "stale_writes_refused",
    "Writes of a holder whose lease had gone to another, refused by their sink.",
    ["sink"],
)
"""Sinks: postgres, stream, workspace, runtime."""

loops_broken = counter("loops_broken", "Loops of a process that broke and began again: each is a bug.", ["loop"])


def _endpoint(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > PORT_MAX:
        raise SettingError(f"{SETTING}={address!r} must be unix:/path or host:port.")
    return host.strip("[]"), int(port)


class Exposition:
    """Serves GET /metrics over HTTP at `unix:/path` or `host:port`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises SettingError for what is no address, OSError if it is taken."""
        if self._address.startswith("unix:"):
            path = Path(self._address.removeprefix("unix:"))
            new = path.with_suffix(".new")  # takes the place of one that a former process still serves on
            new.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._answer, new, limit=REQUEST_SIZE_MAX_BYTES)
            new.rename(path)
        else:
            host, port = _endpoint(self._address)
            self._server = await asyncio.start_server(self._answer, host, port, limit=REQUEST_SIZE_MAX_BYTES)

    @property
    def port(self) -> int:
        """The TCP port that was taken; 0 for a unix socket."""
        if self._server is None or self._address.startswith("unix:"):
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                request = await reader.readuntil(b"\r\n\r\n")
                found = request.startswith((b"GET /metrics ", b"GET /metrics?"))
                body = generate_latest(REGISTRY) if found else b"There is /metrics only.\n"
                kind = CONTENT_TYPE_LATEST if found else "text/plain; charset=utf-8"
                writer.write(
                    f"HTTP/1.1 {'200 OK' if found else '404 Not Found'}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                )
                writer.write(body)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.info("metrics not told", detail=str(error)[:200])
        finally:
            # Else what a peer never reads would be kept for it, and this with it.
            writer.transport.abort()
