"""Contacts, and what was said with them."""

import asyncpg
from retinue_kit import postgres
from retinue_kit.streams import Cursor

from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

GET = (
    "select c.contact, c.display_name, c.channel, c.profile, c.create_time from contacts c"
    " where c.tenant_id = $1 and c.contact = $2"
)
LIST = (
    "select c.contact, c.display_name, c.channel, c.create_time from contacts c"
    " where c.tenant_id = $1 and c.contact > $2 order by c.contact limit $3"
)
MESSAGES = (
    "select e.token, e.n, e.session_id, e.run_id, e.type, e.data, e.time from events e"
    " left join runs r on r.tenant_id = e.tenant_id and r.run_id = e.run_id"
    " where e.tenant_id = $1 and e.log_id = $2 and e.type in ('user.message', 'assistant.message')"
    " and not coalesce(r.dropped and (e.type = 'assistant.message' or r.retried_as is not null), false)"
    " and (e.token, e.n) > ($3, $4)"
    " order by e.token, e.n limit $5"
)
_PUT = (
    "insert into contacts (tenant_id, contact, contact_id, display_name, channel, profile)"
    " values ($1, $2, $3, $4, $5, $6) on conflict (tenant_id, contact) do update set"
    " display_name = excluded.display_name, channel = excluded.channel, profile = excluded.profile"
    " returning contact, display_name, channel, profile, create_time"
)
_RESET = "select * from reset_contact_1($1, $2, $3, $4)"
_DELETE = "select * from delete_contact_1($1, $2, $3)"
_DELETED = "select log_id, token from deleted_logs where tenant_id = $1 and log_id = $2"


class ContactStore:
    """Contacts of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def get(self, tenant_id: str, contact: str) -> Row | None:
        """Read a contact."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row | None = await connection.fetchrow(GET, tenant_id, contact)
        return row

    async def page(self, tenant_id: str, after: str, limit: int) -> list[Row]:
        """List contacts by name, without their profiles."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return list(await connection.fetch(LIST, tenant_id, after, limit))

    async def put(
        self, tenant_id: str, contact: str, contact_id: str, display_name: str, channel: str, profile: bytes
    ) -> Row:
        """Write a contact's profile whole; the id is used if the contact is new."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row = await connection.fetchrow(
                    _PUT, tenant_id, contact, contact_id, display_name, channel, profile.decode()
                )
        return row

    async def reset(self, tenant_id: str, contact: str, log_id: str, session_id: str) -> bool:
        """Begin a fresh session; False if there is no such contact."""
        with guarding():
            return await self._pool.fetchrow(_RESET, tenant_id, contact, log_id, session_id) is not None

    async def delete(self, tenant_id: str, contact: str, log_id: str) -> dict[str, int]:
        """Remove a contact; answers the logs that went with it, each with its last token; none if it is not there."""
        with guarding():
            rows = await self._pool.fetch(_DELETE, tenant_id, contact, log_id)
        return {row["log_id"]: row["token"] for row in rows}

    async def deleted(self, tenant_id: str, log_id: str) -> dict[str, int]:
        """The last token that a log had when it was removed, by its id; empty if it never was."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                rows = await connection.fetch(_DELETED, tenant_id, log_id)
        return {row["log_id"]: row["token"] for row in rows}

    async def messages(self, tenant_id: str, log_id: str, after: Cursor, limit: int) -> tuple[list[Row], bool]:
        """List what was said, oldest first, and whether there is more.

        Left out are answers that were rolled back, and what is told anew by a run in a dead letter's place.
        """
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                query = bounded(MESSAGES, "octet_length(p.data::text)", "token, n")
                rows = await connection.fetch(query, tenant_id, log_id, after.token, after.n, limit + 1)
        return page_of(rows, limit)
