"""One record for each execution and each change of a file: who, in what, which limits, how it ended.

Records hold digests, sizes and names, never what was read, written or said. A record is written before whoever asked is
told the end, so that nothing that somebody knows of is missing; it is left to the operating system when it reaches the
disk.
"""

import hashlib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog
from retinue_kit import telemetry
from retinue_kit.clock import Clock

from retinue_sandbox import metrics

FIELDS = (
    "time",
    "kind",
    "tenant_id",
    "session_id",
    "fencing_token",
    "principal",
    "run_id",
    "call_id",
    "tool",
    "approval_id",
    "backend",
    "isolation",
    "one_shot",
    "egress",
    "argv",
    "argv_digest",
    "source_digest",
    "stdin_digest",
    "cwd",
    "env_names",
    "limits",
    "outcome",
    "exit_code",
    "duration_ms",
    "cpu_ms",
    "memory_size_bytes",
    "output_size_bytes",
    "omitted_size_bytes",
    "output_digest",
    "root",
    "path",
    "size_bytes",
    "digest_before",
    "digest",
    "removed_count",
    "box",
    "host",
    "effect",
    "method",
    "status",
    "address",
    "sent_size_bytes",
    "received_size_bytes",
    "trace_id",
)
"""What a record may hold, in the order in which it is written. Names stay what they are."""

TEXT_LENGTH_MAX = 512
"""Characters of one value; a longer one is cut."""

ITEMS_MAX = 64
"""Values of one list."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()

Value = str | int | float | bool | Sequence[str] | dict[str, float]


def digest(data: bytes | str) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def _bounded(value: Value) -> object:
    if isinstance(value, str):
        return value[:TEXT_LENGTH_MAX]
    if isinstance(value, (int, float, dict)):
        return value
    return [item[:TEXT_LENGTH_MAX] for item in list(value)[:ITEMS_MAX]]


class Audit:
    """Appends records to `sandbox-YYYYMMDD.jsonl` (days of UTC) in a folder; to the log where there is no folder."""

    def __init__(self, folder: str, clock: Clock) -> None:
        self._folder = Path(folder) if folder else None
        self._clock = clock
        self._day = ""
        self._fd = -1
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def record(self, kind: str, /, **facts: Value) -> None:
        """Write a record of `execution`, `file_write`, `file_edit`, `file_delete` or `egress`; the names of facts are
        of FIELDS. One that cannot be written to its file is logged instead.
        """
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        facts = {"time": now.isoformat(timespec="milliseconds"), "kind": kind, "trace_id": telemetry.trace_id()} | facts
        unknown = facts.keys() - set(FIELDS)
        if unknown:
            raise TypeError(f"a record holds no {', '.join(sorted(unknown))}")
        line = {name: _bounded(facts[name]) for name in FIELDS if name in facts}
        if self._folder is not None:
            try:
                self._append(self._folder, f"{now:%Y%m%d}", msgspec.json.encode(line) + b"\n")
                return
            except OSError as error:
                metrics.audit_failures.inc()
                log.error("a record was not written to its file", detail=str(error)[:TEXT_LENGTH_MAX])
        log.info("audit", **{f"audit_{name}": value for name, value in line.items()})

    def _append(self, folder: Path, day: str, line: bytes) -> None:
        if day != self._day:
            self.close()
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(folder / f"sandbox-{day}.jsonl", flags, 0o600)
            self._day = day
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"{written} of {len(line)} bytes were written")

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._day = -1, ""
