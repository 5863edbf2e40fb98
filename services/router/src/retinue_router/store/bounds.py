"""Pages whose rows may be large: cut where they would not fit a message between services any more."""

from collections.abc import Sequence

from retinue_router.store.guard import Row

PAGE_SIZE_MAX_BYTES = 2 * 1024 * 1024
"""Rows begin within this; what follows comes with the next page. The last row may be larger by itself, and a message
between services still holds it."""


def bounded(query: str, size: str, order: str, most: int = PAGE_SIZE_MAX_BYTES) -> str:
    """Cut a query's rows, in the given order, by the sum of a size; each row's `found` says how many there would be."""
    return (
        f"select q.* from (select p.*, sum({size}) over (order by {order}) - {size} as before,"  # noqa: S608
        f" count(*) over () as found from ({query}) p) q where q.before < {most} order by {order}"
    )


def page_of(rows: Sequence[Row], limit: int) -> tuple[list[Row], bool]:
    """Take at most so many rows of a bounded query, and say whether there are more."""
    shown = list(rows[:limit])
    return shown, bool(rows) and rows[0]["found"] > len(shown)
