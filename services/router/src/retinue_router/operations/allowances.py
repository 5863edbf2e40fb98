"""Allowances: what a person has allowed tools for good, until somebody takes it back."""

from retinue_kit.errors import Reason, RetinueError

from retinue_router.domain import pages
from retinue_router.store.allowances import AllowanceStore
from retinue_router.store.guard import Row

PAGE = "w"


class Allowances:
    """Allowances of tenants."""

    def __init__(self, store: AllowanceStore) -> None:
        self._store = store

    async def page(self, tenant_id: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List allowances, newest first; answers the page and the token of the next one. Raises CURSOR_INVALID."""
        before = pages.read_id(PAGE, page_token)
        rows, more = await self._store.page(tenant_id, before, pages.size_of(page_size))
        return rows, pages.write(PAGE, rows[-1]["allowance_id"]) if more else ""

    async def delete(self, tenant_id: str, allowance_id: str) -> None:
        """Take one back, for attempts that begin from now on. Raises ALLOWANCE_NOT_FOUND."""
        if not await self._store.delete(tenant_id, allowance_id):
            raise RetinueError(Reason.ALLOWANCE_NOT_FOUND, "There is no such allowance.")
