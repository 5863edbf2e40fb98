"""What the log holds of a session, read in one snapshot, and conversations that were brought from elsewhere."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import asyncpg
import msgspec
from retinue_kit import postgres
from retinue_kit.streams import START, Cursor, Entry

from retinue_router.domain.context import CARRIED
from retinue_router.domain.events import written
from retinue_router.store.events import entry_of
from retinue_router.store.guard import Row, guarding

EVENTS_MAX = 50_000
"""Events of a session that are read, the newest: ten thousand turns with tools. What is older has no place in any
context."""

PREFETCH = 32
"""Rows that are taken from the database at a time: one may have a megabyte."""

_HEADER = (
    "select c.display_name, c.channel, c.profile, l.session_id from contacts c"
    " left join logs l on l.tenant_id = c.tenant_id and l.log_id = $2"
    " where c.tenant_id = $1 and c.contact = $3"
)
_LAST = (
    "select e.token, e.n from events e where e.tenant_id = $1 and e.log_id = $2 and e.session_id = $3"
    " and ($4::bigint = 0 or (e.token, e.n) <= ($4, $5)) and ($6 = '' or e.run_id <> $6)"
    " order by e.token desc, e.n desc limit 1"
)
# Left out is what history leaves out: answers and calls that were rolled back, and what a dead letter was asked once it
# was asked anew. Neither list depends on the event, so that each is made once.
EVENTS = (
    "select e.token, e.n, e.prev_token, e.prev_n, e.session_id, e.run_id, e.type, e.data, e.time"
    " from events e where e.tenant_id = $1 and e.log_id = $2 and e.session_id = $3 and e.type = any ($7::text[])"
    " and ($4::bigint = 0 or (e.token, e.n) <= ($4, $5)) and ($6 = '' or e.run_id <> $6)"
    " and (e.type = 'user.message' or e.run_id <> all"
    "   (array(select r.run_id from runs r where r.tenant_id = $1 and r.log_id = $2 and r.dropped)))"
    " and e.run_id <> all (array(select r.run_id from runs r"
    "   where r.tenant_id = $1 and r.log_id = $2 and r.dropped and r.retried_as is not null))"
    " order by e.token desc, e.n desc limit $8"
)
_IMPORT = "select * from import_context_1($1, $2, $3, $4, $5, $6, $7, $8, $9)"


@dataclass(frozen=True, slots=True)
class Header:
    """Whose context it is, and how far it goes."""

    session_id: str
    display_name: str
    channel: str
    profile: bytes
    through: Cursor


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of an import: "imported", "replayed" or "busy"; with the events that it made."""

    outcome: str
    session_id: str
    events: list[Entry]


class ContextStore:
    """Contexts of sessions, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def read(
        self, tenant_id: str, contact: str, log_id: str, session_id: str, through: Cursor, without_run_id: str
    ) -> AsyncGenerator[Header | Entry, None]:
        """Yield the header and then the events in order; nothing at all if there is no such contact."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id, snapshot=True) as connection:
                found = await connection.fetchrow(_HEADER, tenant_id, log_id, contact)
                if found is None:
                    return
                session = session_id or found["session_id"] or ""
                scope = tenant_id, log_id, session, through.token, through.n, without_run_id
                last = await connection.fetchrow(_LAST, *scope)
                end = Cursor(last["token"], last["n"]) if last else START
                profile = found["profile"].encode()
                yield Header(session, found["display_name"], found["channel"], profile, end)
                in_order = f"select q.* from ({EVENTS}) q order by q.token, q.n"  # noqa: S608
                rows = connection.cursor(in_order, *scope, sorted(CARRIED), EVENTS_MAX, prefetch=PREFETCH)
                async for row in rows:
                    yield entry_of(row)

    async def bring(
        self,
        tenant_id: str,
        contact: str,
        log_id: str,
        session_id: str,
        digest: str,
        events: list[dict[str, object]],
        whom: tuple[str, str, bytes],
    ) -> Imported:
        """Begin a session with events that were made elsewhere; `whom` is name, channel, profile of a new contact."""
        name, channel, profile = whom
        with guarding():
            row: Row = await self._pool.fetchrow(
                _IMPORT, tenant_id, contact, log_id, session_id, digest, msgspec.json.encode(events).decode(), name,
                channel, profile.decode(),
            )  # fmt: skip
        return Imported(row["outcome"], row["session_id"], written(row["token"], row["events"]))
