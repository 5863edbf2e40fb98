"""What policy has decided, for operators who try other rules on it."""

from datetime import datetime, timedelta

from retinue_kit import ids

from retinue_router.domain import pages
from retinue_router.store.decisions import DecisionStore
from retinue_router.store.guard import Row

PAGE = "d"

PAGE_SIZE_DEFAULT = 200

CLOCKS_APART = timedelta(minutes=10)
"""Ids are made by the clock of whoever accepts a run, times by the database's: this is far more than they differ by."""


class Decisions:
    """Decisions about runs of all tenants."""

    def __init__(self, store: DecisionStore) -> None:
        self._store = store

    async def page(self, since: datetime, tenant_id: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List decisions; answers the page and the token of the next one. Raises CURSOR_INVALID."""
        last = pages.read(PAGE, page_token)
        tenant, slash, run_id = last.partition("/")
        if last and (not slash or not run_id):
            raise pages.invalid()
        first_id = ids.first_id("run", (since - CLOCKS_APART).timestamp())
        size = page_size or PAGE_SIZE_DEFAULT
        rows, more = await self._store.page(tenant_id, since, first_id, (tenant, run_id), size)
        return rows, pages.write(PAGE, f"{rows[-1]['tenant_id']}/{rows[-1]['run_id']}") if more else ""
