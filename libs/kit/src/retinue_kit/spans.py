"""The local store of spans: one file of JSON lines a process, small enough not to matter."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util.types import AttributeValue

FILE_SIZE_MAX_BYTES = 4 * 1024 * 1024
"""Then the file becomes `.1`, replacing the one before: a process keeps 4 to 8 MiB, some 20,000 spans."""


class StoredSpan(msgspec.Struct, omit_defaults=True):
    """A span as the local store keeps it; times in nanoseconds since the epoch, ids in hex."""

    trace: str
    span: str
    parent: str
    service: str
    name: str
    start: int
    end: int
    kind: str = "INTERNAL"
    error: str = ""
    attributes: dict[str, str | int | float | bool | list[str]] = {}


class SpanFile:
    """Appends spans to a file that is cut in time. Several threads may write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._encoder = msgspec.json.Encoder()

    def write(self, spans: Sequence[StoredSpan]) -> None:
        """Append spans; OSError if the folder is gone."""
        lines = b"".join(self._encoder.encode(span) + b"\n" for span in spans)
        with self._lock:
            if self._path.exists() and self._path.stat().st_size + len(lines) > FILE_SIZE_MAX_BYTES:
                self._path.replace(self._path.with_suffix(".jsonl.1"))
            with self._path.open("ab") as file:
                file.write(lines)


def read_trace(folder: Path, trace: str) -> list[StoredSpan]:
    """Gather a trace's spans from all files of a folder, by start; torn last lines are passed over."""
    decoder = msgspec.json.Decoder(StoredSpan)
    needle = trace.encode()
    found: list[StoredSpan] = []
    for path in sorted(folder.glob("*.jsonl*")):
        with path.open("rb") as file:
            for line in file:
                if needle not in line:
                    continue
                try:
                    span = decoder.decode(line)
                except msgspec.DecodeError:
                    continue
                if span.trace == trace:
                    found.append(span)
    return sorted(found, key=lambda span: span.start)


def _plain(attributes: Mapping[str, AttributeValue]) -> dict[str, str | int | float | bool | list[str]]:
    return {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in attributes.items()}


class LocalSpanExporter(SpanExporter):
    """Writes OpenTelemetry's spans into the local store."""

    def __init__(self, path: Path, service: str) -> None:
        self._file = SpanFile(path)
        self._service = service

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            self._file.write([self._stored(span) for span in spans])
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _stored(self, span: ReadableSpan) -> StoredSpan:
        context = span.get_span_context()
        assert context is not None
        return StoredSpan(
            trace=f"{context.trace_id:032x}",
            span=f"{context.span_id:016x}",
            parent=f"{span.parent.span_id:016x}" if span.parent else "",
            service=self._service,
            name=span.name,
            start=span.start_time or 0,
            end=span.end_time or 0,
            kind=span.kind.name,
            error=span.status.description or "" if not span.status.is_ok else "",
            attributes=_plain(span.attributes or {}),
        )
