"""Dead letters: listed, read, asked anew, dropped, and counted over all tenants."""

import asyncpg
from retinue_kit import postgres

from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding
from retinue_router.store.runs import COLUMNS, NewIds, Room

_DEAD = "r.dead, r.dead_time, r.retried_as"
GET = (
    f"select {COLUMNS}, {_DEAD}, r.input ->> 'text' as asked from runs r"  # noqa: S608
    " where r.tenant_id = $1 and r.run_id = $2 and r.dead is not null"
)
LIST = (
    f"select {COLUMNS}, {_DEAD} from runs r where r.tenant_id = $1 and r.dead is not null"  # noqa: S608
    " and ($2 = '' or r.run_id < $2) and ($3 = '' or r.dead = $3) and ($4 = '' or r.contact = $4)"
    " order by r.run_id desc limit $5"
)
_RETRY = "select * from retry_dead_letter_1($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_DROP = "select * from drop_dead_letter_1($1, $2)"
COUNTED_MAX = 1000
"""Open dead letters of a tenant that are counted; whoever has that many has them or more."""

LOOKED_MAX = 2000
"""Tenants with open dead letters that are looked at, in the order of their ids. With what is counted of each this is a
second's work at most."""

# The one question that spans tenants: asked as a role that sees no name and no text. Jumps from tenant to tenant in the
# index, so that it costs no more than is counted, however much there is.
_COUNT = f"""
with recursive t (tenant_id, i) as (
  (select r.tenant_id, 1 from runs r where r.dead = 'open' order by r.tenant_id limit 1)
  union all
  (select x.tenant_id, t.i + 1 from t, lateral (
    select r.tenant_id from runs r where r.dead = 'open' and r.tenant_id > t.tenant_id order by r.tenant_id limit 1) x
    where t.i < {LOOKED_MAX}))
select t.tenant_id, c.open_count from t, lateral (
    select count(*) as open_count from (
      select from runs r where r.dead = 'open' and r.tenant_id = t.tenant_id limit $2) o) c
  order by c.open_count desc, t.tenant_id limit $1
"""  # noqa: S608


class DeadLetterStore:
    """Dead letters of tenants, behind the wall; `sweep_pool` is of the role that sees ids and states of all."""

    def __init__(self, pool: "asyncpg.Pool", sweep_pool: "asyncpg.Pool") -> None:
        self._pool = pool
        self._sweep_pool = sweep_pool

    async def get(self, tenant_id: str, run_id: str) -> Row | None:
        """Read a dead letter with what was asked."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row | None = await connection.fetchrow(GET, tenant_id, run_id)
        return row

    async def page(self, tenant_id: str, state: str, contact: str, before: str, limit: int) -> tuple[list[Row], bool]:
        """List dead letters, newest run first, in one state and of one contact where given; and whether more are."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                query = bounded(LIST, "octet_length(coalesce(p.output, ''))", "run_id desc")
                rows = await connection.fetch(query, tenant_id, before, state, contact, limit + 1)
        return page_of(rows, limit)

    async def retry(
        self, tenant_id: str, run_id: str, ids: NewIds, by: str, traceparent: str, room: Room | None = None
    ) -> Row | None:
        """Accept what was asked anew, if there is room; a row of retry_dead_letter_1, None if there is none such.

        A task gets `ids.log_id` as its log.
        """
        with guarding():
            row: Row | None = await self._pool.fetchrow(
                _RETRY, tenant_id, run_id, ids.run_id, ids.log_id, ids.session_id, by, traceparent,
                room and room.waiting_max, room and room.later_max,
            )  # fmt: skip
        return row

    async def drop(self, tenant_id: str, run_id: str) -> str | None:
        """Take a dead letter off the list; answers the state that it is in then, None if there is none such."""
        with guarding():
            state: str | None = await self._pool.fetchval(_DROP, tenant_id, run_id)
        return state

    async def count(self, limit: int, counted_max: int = COUNTED_MAX) -> list[Row]:
        """Count open dead letters by tenant, up to so many of each, those with most first."""
        with guarding():
            return list(await self._sweep_pool.fetch(_COUNT, limit, counted_max))
