"""Server-sent events: how an entry of the bus becomes bytes on the wire."""

from collections.abc import Iterator

import msgspec
from retinue.router.v1 import run_pb2
from retinue_kit import wire
from retinue_kit.errors import RetinueError
from retinue_kit.streams import Entry

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
"""Neither caches nor proxies are to hold events back."""

PIECE_SIZE_MAX_BYTES = 1024 * 1024
"""Written as one message; what gRPC takes is bounded, and a single event may be large."""

_encoder = msgspec.json.Encoder()


def frame(entry: Entry) -> bytes:
    """Write an event; its JSON is one line as it is."""
    head = f"id: {entry.cursor.token}-{entry.cursor.n}\nevent: {entry.type}\ndata: "
    return head.encode() + entry.json + b"\n\n"


def frames(entries: list[Entry]) -> bytes:
    """Write events that wait together as one piece."""
    return b"".join(map(frame, entries))


def pieces(data: bytes) -> Iterator[bytes]:
    """Cut what is to be written; the reader sees one stream of bytes."""
    for start in range(0, len(data), PIECE_SIZE_MAX_BYTES):
        yield data[start : start + PIECE_SIZE_MAX_BYTES]


def queued(run: run_pb2.Run) -> bytes:
    """Write the first event of a streamed POST: the run is durable. It is not in the log, so it has no id."""
    event = {
        "type": "run.queued",
        "session_id": run.session_id,
        "run_id": run.run_id,
        "time": run.create_time.ToJsonString(),
        "data": {"attempt": run.attempt_count, "runtime": run.runtime, "reason": "accepted"},
    }
    return b"event: run.queued\ndata: " + _encoder.encode(event) + b"\n\n"


def failure(error: RetinueError) -> bytes:
    """Write the event that ends a stream because of an error."""
    return b"event: error\ndata: " + _encoder.encode(wire.to_json(wire.to_status(error))) + b"\n\n"
