"""Approvals: listed, read, answered."""

import asyncpg
from retinue_kit import ids, postgres

from retinue_router.domain.allowances import ALLOWANCE, ALLOWANCES_MAX, ALLOWANCES_SIZE_MAX_BYTES
from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

# One whose time is over is closed, whether the run has heard of it or not.
_STATE = "case when a.state = 'pending' and a.expire_time <= clock_timestamp() then 'expired' else a.state end"
_COLUMNS = (
    f"a.approval_id, a.run_id, a.contact, a.call_id, a.tool, a.summary, {_STATE} as state, a.expire_time, a.pattern"
    " from approvals a where a.tenant_id = $1"
)
GET = f"select {_COLUMNS} and a.approval_id = $2"
LIST = (
    f"select {_COLUMNS} and ($2 = '' or {_STATE} = $2) and ($3 = '' or a.approval_id < $3)"
    " order by a.approval_id desc limit $4"
)
_DECIDE = "select * from decide_approval_2($1, $2, $3, $4, $5, $6, $7)"


class ApprovalStore:
    """Approvals of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def get(self, tenant_id: str, approval_id: str) -> Row | None:
        """Read an approval."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row | None = await connection.fetchrow(GET, tenant_id, approval_id)
        return row

    async def page(self, tenant_id: str, state: str, before: str, limit: int) -> tuple[list[Row], bool]:
        """List approvals, newest first, in one state where given, and whether there are more."""
        query = bounded(LIST, "octet_length(p.pattern)", "approval_id desc")
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                rows = await connection.fetch(query, tenant_id, state, before, limit + 1)
        return page_of(rows, limit)

    async def decide(self, tenant_id: str, approval_id: str, decision: str, by: str) -> Row | None:
        """Answer an approval; a row of decide_approval_2, None if there is no such approval."""
        with guarding():
            row: Row | None = await self._pool.fetchrow(
                _DECIDE, tenant_id, approval_id, decision, by, ids.new_id(ALLOWANCE), ALLOWANCES_MAX,
                ALLOWANCES_SIZE_MAX_BYTES,
            )  # fmt: skip
        return row
