"""Runs: accepted, read, asked to stop."""

import asyncpg
import msgspec
from retinue_kit import postgres

from retinue_router.domain.submission import Submission
from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

COLUMNS = (
    "r.tenant_id, r.run_id, r.contact, r.session_id, r.log_id, r.kind, r.state, r.runtime, r.attempt, r.create_time,"
    " r.start_time, r.end_time, r.run_at, r.output, r.usage, r.error, r.after_token, r.after_n, r.traceparent,"
    " r.decision"
)
_PAGE = "and ($2 = '' or r.run_id < $2) and ($3 = '' or r.state = $3) order by r.run_id desc limit $4"
GET = f"select {COLUMNS} from runs r where r.tenant_id = $1 and r.run_id = $2"  # noqa: S608
LIST = f"select {COLUMNS} from runs r where r.tenant_id = $1 {_PAGE}"  # noqa: S608
LIST_OF_CONTACT = f"select {COLUMNS} from runs r where r.tenant_id = $1 and r.contact = $5 {_PAGE}"  # noqa: S608

_SUBMIT = "select * from submit_run_2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
_DRAIN = "select * from queue_drain_1($1, $2)"
_CANCEL = "select * from cancel_run_1($1, $2, $3)"


def _bounded(query: str) -> str:
    return bounded(query, "octet_length(coalesce(p.output, ''))", "run_id desc")


class NewIds(msgspec.Struct, frozen=True):
    """Ids for what may be made."""

    log_id: str
    session_id: str
    run_id: str
    notify_log: str | None


class Room(msgspec.Struct, frozen=True):
    """How many runs of a tenant may wait, and how many more whose time has not come."""

    waiting_max: int
    later_max: int


class RunStore:
    """Runs of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def submit(
        self, asked: Submission, ids: NewIds, body: bytes, traceparent: str, room: Room | None = None
    ) -> Row:
        """Accept a run in one round trip and one commit, if there is room; answers a row of submit_run_2.

        The tenant's queue is counted only where bounds are given.
        """
        key = asked.idempotency_key or None
        with guarding():
            row: Row = await self._pool.fetchrow(
                _SUBMIT, asked.tenant_id, asked.contact, ids.log_id, asked.is_task, ids.session_id, ids.run_id,
                asked.kind, key, asked.digest() if key else None, body.decode(), asked.on_busy, asked.principal,
                ids.notify_log, traceparent, asked.run_at, room and room.waiting_max, room and room.later_max,
                asked.retry_of,
            )  # fmt: skip
        return row

    async def drain(self, tenant_id: str, waiting_max: int) -> Row:
        """Tell at which pace a tenant's queue drains; a row of queue_drain_1."""
        with guarding():
            row: Row = await self._pool.fetchrow(_DRAIN, tenant_id, waiting_max)
        return row

    async def get(self, tenant_id: str, run_id: str) -> Row | None:
        """Read a run."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row | None = await connection.fetchrow(GET, tenant_id, run_id)
        return row

    async def page(self, tenant_id: str, contact: str, state: str, before: str, limit: int) -> tuple[list[Row], bool]:
        """List runs, newest first, of one contact and in one state where given, and whether there are more."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                if contact:
                    rows = await connection.fetch(
                        _bounded(LIST_OF_CONTACT), tenant_id, before, state, limit + 1, contact
                    )
                else:
                    rows = await connection.fetch(_bounded(LIST), tenant_id, before, state, limit + 1)
        return page_of(rows, limit)

    async def cancel(self, tenant_id: str, run_id: str, by: str) -> Row | None:
        """Ask a run to stop; answers a row of cancel_run_1, None if there is no such run."""
        with guarding():
            row: Row | None = await self._pool.fetchrow(_CANCEL, tenant_id, run_id, by)
        return row
