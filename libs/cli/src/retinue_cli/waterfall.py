"""A trace as a picture of text: a tree by parent, a bar by time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from retinue_kit.spans import StoredSpan

NAME_WIDTH_MAX = 56
"""Longer names are cut, so that the bars keep the larger half of a usual terminal."""

BAR_WIDTH_MIN = 12
DEPTH_MAX = 40
"""Deeper spans are drawn at this depth; none of ours goes beyond a dozen."""


@dataclass(frozen=True, slots=True)
class Row:
    """A span with its place in the tree and in time."""

    span: StoredSpan
    depth: int
    offset_ms: float
    duration_ms: float

    @property
    def label(self) -> str:
        """The name, indented by depth."""
        return "  " * self.depth + self.span.name


def arrange(spans: Sequence[StoredSpan]) -> list[Row]:
    """Order spans parents first, siblings by start. A span whose parent is not there stands at the top."""
    known = {span.span: span for span in spans}
    children: dict[str, list[StoredSpan]] = defaultdict(list)
    for span in known.values():
        children[span.parent if span.parent in known and span.parent != span.span else ""].append(span)
    if not known:
        return []
    begin = min(span.start for span in known.values())
    rows: list[Row] = []
    waiting = [(span, 0) for span in sorted(children[""], key=lambda s: s.start, reverse=True)]
    while waiting:
        span, depth = waiting.pop()
        offset_ms, duration_ms = (span.start - begin) / 1e6, max(0.0, (span.end - span.start) / 1e6)
        rows.append(Row(span, min(depth, DEPTH_MAX), offset_ms, duration_ms))
        below = sorted(children[span.span], key=lambda s: s.start, reverse=True)
        waiting.extend((child, depth + 1) for child in below)
    return rows


def bar(row: Row, total_ms: float, width: int) -> tuple[int, int]:
    """Place a row's bar: cells before it, and its own, of which there is always one."""
    if total_ms <= 0:
        return 0, 1
    before = min(int(row.offset_ms / total_ms * width), width - 1)
    own = max(1, round(row.duration_ms / total_ms * width))
    return before, min(own, width - before)


def draw(spans: Sequence[StoredSpan], width: int) -> list[str]:
    """Draw a trace in lines of at most `width` cells; a failed span's line begins with a cross and ends with why."""
    rows = arrange(spans)
    if not rows:
        return []
    total_ms = max(row.offset_ms + row.duration_ms for row in rows)
    name_width = min(NAME_WIDTH_MAX, max(len(row.label) for row in rows), max(20, width // 2))
    service_width = max(len(row.span.service) for row in rows)
    bar_width = max(BAR_WIDTH_MIN, width - name_width - service_width - 16)
    lines = []
    for row in rows:
        before, own = bar(row, total_ms, bar_width)
        drawn = (" " * before + "█" * own).ljust(bar_width)
        label = row.label if len(row.label) <= name_width else row.label[: name_width - 1] + "…"
        mark = "✗" if row.span.error else " "
        line = f"{mark} {label:<{name_width}} {row.span.service:<{service_width}} {drawn} {row.duration_ms:>8.2f} ms"
        lines.append(f"{line}  {row.span.error}" if row.span.error else line)
    return lines
