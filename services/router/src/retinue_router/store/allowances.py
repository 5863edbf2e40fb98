"""What tenants have allowed their tools for good: listed, taken back. Answers to approvals write it."""

import asyncpg
from retinue_kit import postgres

from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

LIST = (
    "select a.allowance_id, a.tool, a.pattern, a.principal, a.create_time from allowances a"
    " where a.tenant_id = $1 and ($2 = '' or a.allowance_id < $2) order by a.allowance_id desc limit $3"
)
_DELETE = "delete from allowances a where a.tenant_id = $1 and a.allowance_id = $2 returning a.allowance_id"


class AllowanceStore:
    """Allowances of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def page(self, tenant_id: str, before: str, limit: int) -> tuple[list[Row], bool]:
        """List allowances, newest first, and whether there are more."""
        query = bounded(LIST, "octet_length(p.pattern)", "allowance_id desc")
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                rows = await connection.fetch(query, tenant_id, before, limit + 1)
        return page_of(rows, limit)

    async def delete(self, tenant_id: str, allowance_id: str) -> bool:
        """Take one back; False if there is no such allowance."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return await connection.fetchval(_DELETE, tenant_id, allowance_id) is not None
