"""A small load generator: one connection a client, answers read as they come, times taken at the socket."""

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

READ_SIZE_BYTES = 65536
TURN_TIMEOUT_S = 60.0


@dataclass
class Sample:
    """Times of turns in milliseconds, and what went wrong."""

    first_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    failed: int = 0
    wall_s: float = 0.0

    @property
    def turns_per_s(self) -> float:
        """Turns that ended well, a second."""
        return len(self.whole_ms) / self.wall_s if self.wall_s else 0.0


def percentile(values: list[float], share: float) -> float:
    """The value below which this share lies; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass(frozen=True)
class Target:
    """Where to send a turn, and how to see its first token and its end."""

    url: str
    headers: dict[str, str]
    body: bytes
    first: bytes
    last: bytes

    def request(self) -> bytes:
        """The whole HTTP request."""
        parts = urlsplit(self.url)
        lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json"]
        lines += [f"content-length: {len(self.body)}", *(f"{k}: {v}" for k, v in self.headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body


async def _turn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, sample: Sample) -> None:
    began = time.perf_counter()
    writer.write(target.request())
    seen = b""
    first = 0.0
    # The chunk that ends a chunked body; the connection serves the next turn.
    while not seen.endswith(b"0\r\n\r\n"):
        data = await reader.read(READ_SIZE_BYTES)
        if not data:
            raise ConnectionError("closed in the middle")
        seen += data
        if not first and target.first in seen:
            first = time.perf_counter()
    if not first or target.last not in seen:
        raise ConnectionError(seen[:300].decode(errors="replace"))
    sample.first_ms.append((first - began) * 1000)
    sample.whole_ms.append((time.perf_counter() - began) * 1000)


async def _client(target: Target, until: float, sample: Sample, warm: int, pause_s: float) -> None:
    parts = urlsplit(target.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**22)
    try:
        for _ in range(warm):
            await asyncio.wait_for(_turn(reader, writer, target, Sample()), TURN_TIMEOUT_S)
        while time.perf_counter() < until:
            await asyncio.wait_for(_turn(reader, writer, target, sample), TURN_TIMEOUT_S)
            await asyncio.sleep(pause_s)
    except (ConnectionError, TimeoutError) as error:
        sample.failed += 1
        print("turn failed:", str(error)[:200])
    finally:
        writer.close()


async def drive(targets: list[Target], seconds: float, warm: int = 2, pause_s: float = 0.0) -> Sample:
    """Let one client per target send turn after turn for so many seconds, with a pause behind each."""
    sample = Sample()
    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(_client(target, 0.0, Sample(), warm, 0.0))
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(_client(target, began + seconds, sample, 0, pause_s))
    sample.wall_s = time.perf_counter() - began
    return sample
