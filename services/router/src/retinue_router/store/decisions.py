"""What policy has decided, of all tenants: asked as a role that sees ids and decisions and nothing else."""

from datetime import datetime

import asyncpg

from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

# Tenants are stepped through by the index, and of each the runs since an id of that time: no row is looked at in vain
# but for those that have no decision yet.
LIST = (
    "with recursive t (tenant_id) as ("
    " (select r.tenant_id from runs r where r.tenant_id >= $1 and ($5 = '' or r.tenant_id = $5)"
    "   order by r.tenant_id limit 1)"
    " union all"
    " select (select r.tenant_id from runs r where r.tenant_id > t.tenant_id order by r.tenant_id limit 1)"
    "   from t where t.tenant_id is not null and $5 = '')"
    " select d.* from t cross join lateral (select r.tenant_id, r.run_id, r.create_time, r.decision from runs r"
    "   where r.tenant_id = t.tenant_id and r.run_id >= $3 and (r.tenant_id, r.run_id) > ($1, $2)"
    "   and r.create_time >= $4 and r.decision is not null order by r.run_id limit $6) d"
    " where t.tenant_id is not null order by d.tenant_id, d.run_id limit $6"
)


class DecisionStore:
    """Decisions of all tenants; `sweep_pool` is of the role that sees them."""

    def __init__(self, sweep_pool: "asyncpg.Pool") -> None:
        self._pool = sweep_pool

    async def page(
        self, tenant_id: str, since: datetime, first_id: str, after: tuple[str, str], limit: int
    ) -> tuple[list[Row], bool]:
        """List decisions by tenant and then the oldest first, of one tenant where one is named, and whether there are
        more. No run that was accepted since then has an id below `first_id`."""
        start = max(after[0], tenant_id)
        query = bounded(LIST, "octet_length(p.decision::text)", "tenant_id, run_id")
        with guarding():
            rows = await self._pool.fetch(query, start, after[1], first_id, since, tenant_id, limit + 1)
        return page_of(rows, limit)
