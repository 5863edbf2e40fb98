"""A trace drawn in text."""

from hypothesis import given
from hypothesis import strategies as st
from retinue_cli.waterfall import arrange, bar, draw
from retinue_kit.spans import StoredSpan

MS = 1_000_000


def span(
    name: str, parent: str = "", begin: int = 0, end: int = 10, error: str = "", service: str = "router"
) -> StoredSpan:
    return StoredSpan("t" * 32, name, parent, service, name, begin * MS, end * MS, error=error)


def test_children_stand_below_their_parent_in_the_order_of_their_start() -> None:
    rows = arrange([span("c", "a", 5, 8), span("d", "b", 2, 3), span("a", "", 0, 10), span("b", "a", 1, 4)])
    assert [(row.span.name, row.depth) for row in rows] == [("a", 0), ("b", 1), ("d", 2), ("c", 1)]
    assert [(row.offset_ms, row.duration_ms) for row in rows] == [(0, 10), (1, 3), (2, 1), (5, 3)]


def test_a_span_whose_parent_is_elsewhere_stands_at_the_top() -> None:
    rows = arrange([span("late", "", 4, 5), span("lost", "gone", 1, 2)])
    assert [(row.span.name, row.depth) for row in rows] == [("lost", 0), ("late", 0)]


def test_a_span_that_came_twice_is_drawn_once() -> None:
    assert len(arrange([span("a"), span("a")])) == 1


def test_bars_are_to_scale_and_a_failure_says_why() -> None:
    whole, half, broken = draw([span("a"), span("b", "a", 5, 10), span("c", "a", 9, 9, error="MODEL_TIMEOUT")], 80)
    assert abs(half.count("█") * 2 - whole.count("█")) <= 1
    assert half.index("█") > whole.index("█")
    assert broken.startswith("✗ ")
    assert broken.endswith("MODEL_TIMEOUT")
    assert broken.count("█") == 1
    assert "10.00 ms" in whole


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw([], 80) == []


@given(
    spans=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 1000), st.integers(0, 1000))),
    width=st.integers(20, 300),
)
def test_any_set_of_spans_can_be_drawn(spans: list[tuple[int, int, int, int]], width: int) -> None:
    """Also parents that are their own descendants, and spans that end before they begin."""
    made = [span(str(n), str(parent), begin, end) for n, parent, begin, end in spans]
    rows = arrange(made)
    drawn = draw(made, width)
    assert len(drawn) == len(rows)
    total_ms = max((row.offset_ms + row.duration_ms for row in rows), default=0)
    for row in rows:
        before, own = bar(row, total_ms, 40)
        assert before >= 0
        assert own >= 1
        assert before + own <= 40
