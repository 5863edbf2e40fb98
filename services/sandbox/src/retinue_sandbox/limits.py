"""What one execution may use: the contract's limits with their defaults and maxima."""

from collections.abc import Callable
from typing import Any, NamedTuple

from retinue.sandbox.v1 import execution_pb2 as pb
from retinue_kit.errors import RetinueError

from retinue_sandbox.ports import Isolation, Limits, Profile

SPAN_MIN_S = 0.001
WALL_MAX_S = 600.0
CPU_MAX_S = 600.0
MEMORY_MAX_BYTES = 4 << 30
PROCESS_COUNT_MAX = 512
OUTPUT_MAX_BYTES = 4 << 20
FILE_MAX_BYTES = 256 << 20
OPEN_FILE_COUNT_MAX = 1024

PORT_MAX = 65535


class _Limit(NamedTuple):
    ours: str
    theirs: str
    most: float
    words: str


_SPANS = (
    _Limit("wall_s", "wall_time", WALL_MAX_S, f"must be at most {WALL_MAX_S:g} s"),
    _Limit("cpu_s", "cpu_time", CPU_MAX_S, f"must be at most {CPU_MAX_S:g} s"),
)
_COUNTS = (
    _Limit("memory_bytes", "memory_size_bytes", MEMORY_MAX_BYTES, "must be at most 4 GiB"),
    _Limit("process_count", "process_count", PROCESS_COUNT_MAX, f"must be at most {PROCESS_COUNT_MAX}"),
    _Limit("output_bytes", "output_size_bytes", OUTPUT_MAX_BYTES, "must be at most 4 MiB"),
    _Limit("file_bytes", "file_size_bytes", FILE_MAX_BYTES, "must be at most 256 MiB"),
    _Limit("open_file_count", "open_file_count", OPEN_FILE_COUNT_MAX, f"must be at most {OPEN_FILE_COUNT_MAX}"),
)


def _read(of: tuple[_Limit, ...], value_of: Callable[[str], float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for limit in of:
        value = value_of(limit.theirs)
        if value < 0 or value > limit.most:
            raise RetinueError.field(f"limits.{limit.theirs}", f"{limit.words}, and not negative.")
        if value:
            found[limit.ours] = value
    return found


def read(asked: pb.Limits) -> Limits:
    """Read limits; those not set, or 0, are the defaults. Raises FIELD_INVALID for more than the maximum."""
    spans = _read(_SPANS, lambda name: getattr(asked, name).seconds + getattr(asked, name).nanos / 1e9)
    counts = _read(_COUNTS, lambda name: getattr(asked, name))
    found: dict[str, Any] = {name: max(SPAN_MIN_S, value) for name, value in spans.items()}
    found |= {name: int(value) for name, value in counts.items()}
    return Limits(**found)


def profile(asked: pb.Profile) -> Profile:
    """Read which box. Raises FIELD_INVALID for what is not "host:port"."""
    for pair in asked.egress:
        host, _, port = pair.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= PORT_MAX:
            raise RetinueError.field("profile.egress", 'must be "host:port".')
    return Profile(Isolation(asked.min_isolation or Isolation.NAMESPACE), tuple(sorted(set(asked.egress))))
