"""The durable events of logs, in the bytes that the bus carries them in, and the cursors of logs."""

from collections.abc import Sequence

import asyncpg
import msgspec
from retinue_kit import postgres
from retinue_kit.streams import START, Cursor, Entry, Kind

from retinue_router.domain.events import instant, render
from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

_COLUMNS = "e.token, e.n, e.prev_token, e.prev_n, e.session_id, e.run_id, e.type, e.data, e.time"
_PAGE = "and (e.token, e.n) > ($3, $4) order by e.token, e.n limit $5"
LIST = f"select {_COLUMNS} from events e where e.tenant_id = $1 and e.log_id = $2 {_PAGE}"  # noqa: S608
LIST_OF_RUN = f"select {_COLUMNS} from events e where e.tenant_id = $1 and e.log_id = $2 and e.run_id = $6 {_PAGE}"  # noqa: S608
LAST = "select l.last_token, l.last_n from logs l where l.tenant_id = $1 and l.log_id = $2"
TERMINAL = (
    "select e.token, e.n from events e where e.tenant_id = $1 and e.run_id = $2"
    " and e.type in ('run.succeeded', 'run.failed', 'run.cancelled')"
)
# The one question that spans tenants: asked as a role that sees nothing but these columns.
_CURSORS = (
    "select l.tenant_id, l.log_id, l.last_token, l.last_n from logs l"
    " join unnest($1::text[], $2::text[]) as u (tenant_id, log_id) on l.tenant_id = u.tenant_id and l.log_id = u.log_id"
)

PAGE_SIZE_MAX_BYTES = 512 * 1024
"""A watcher that catches up takes a quarter of a mebibyte at a time, and asks again for what is left of a page."""

LogKey = tuple[str, str]
"""A tenant and a log."""


def _bounded(query: str) -> str:
    return bounded(query, "octet_length(p.data::text)", "token, n", PAGE_SIZE_MAX_BYTES)


def entry_of(row: Row) -> Entry:
    """Make the bus entry of an event's row."""
    cursor = Cursor(row["token"], row["n"])
    data = msgspec.json.decode(row["data"])
    json = render(cursor, row["type"], row["session_id"], row["run_id"], instant(row["time"]), data)
    return Entry(cursor, Kind.DURABLE, Cursor(row["prev_token"], row["prev_n"]), row["run_id"], row["type"], json)


class EventStore:
    """Events of tenants, behind the wall; `sweep_pool` is of the role that sees cursors of all."""

    def __init__(self, pool: "asyncpg.Pool", sweep_pool: "asyncpg.Pool") -> None:
        self._pool = pool
        self._sweep_pool = sweep_pool

    async def page(
        self, tenant_id: str, log_id: str, run_id: str, after: Cursor, limit: int
    ) -> tuple[list[Entry], bool]:
        """Read events after a cursor in order, only one run's where given, and whether there are more.

        Large ones make a page shorter.
        """
        arguments = [tenant_id, log_id, after.token, after.n, limit + 1]
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                if run_id:
                    rows = await connection.fetch(_bounded(LIST_OF_RUN), *arguments, run_id)
                else:
                    rows = await connection.fetch(_bounded(LIST), *arguments)
        shown, more = page_of(rows, limit)
        return [entry_of(row) for row in shown], more

    async def last(self, tenant_id: str, log_id: str) -> Cursor:
        """Read a log's last durable cursor; START if there is none."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row = await connection.fetchrow(LAST, tenant_id, log_id)
        return Cursor(row["last_token"], row["last_n"]) if row else START

    async def end_of(self, tenant_id: str, run_id: str) -> Cursor | None:
        """Find the event that ended a run; None if none has (yet)."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row = await connection.fetchrow(TERMINAL, tenant_id, run_id)
        return Cursor(row["token"], row["n"]) if row else None

    async def cursors(self, logs: Sequence[LogKey]) -> dict[LogKey, Cursor]:
        """Read the last durable cursors of logs of many tenants; those that are not there are left out."""
        with guarding():
            rows = await self._sweep_pool.fetch(_CURSORS, [log[0] for log in logs], [log[1] for log in logs])
        return {(row["tenant_id"], row["log_id"]): Cursor(row["last_token"], row["last_n"]) for row in rows}
