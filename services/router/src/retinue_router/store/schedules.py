"""Schedules: made, read, paused, resumed, deleted, and fired."""

from datetime import datetime

import asyncpg
import msgspec
from retinue_kit import postgres

from retinue_router.domain.schedules import Schedule
from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding
from retinue_router.store.runs import NewIds, Room

_COLUMNS = "s.schedule_id, s.contact, s.kind, s.input, s.cron, s.time_zone, s.next_time, s.last_run_id, s.create_time"
_PAGE = "and ($2 = '' or s.schedule_id < $2) order by s.schedule_id desc limit $3"
GET = f"select {_COLUMNS} from schedules s where s.tenant_id = $1 and s.schedule_id = $2"  # noqa: S608
LIST = f"select {_COLUMNS} from schedules s where s.tenant_id = $1 {_PAGE}"  # noqa: S608
LIST_OF_CONTACT = f"select {_COLUMNS} from schedules s where s.tenant_id = $1 and s.contact = $4 {_PAGE}"  # noqa: S608

_CREATE = "select * from create_schedule_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
_ONE = "s.tenant_id = $1 and s.schedule_id = $2"
_PAUSE = f"update schedules s set next_time = null where {_ONE} returning {_COLUMNS}"  # noqa: S608
_RESUME = f"update schedules s set next_time = coalesce(s.next_time, $3) where {_ONE} returning {_COLUMNS}"  # noqa: S608
_DELETE = f"delete from schedules s where {_ONE} returning s.schedule_id"  # noqa: S608
_LOOK = "select * from look_at_schedule_1($1, $2)"
_FIRE = "select * from fire_schedule_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
_PUT_OFF = "select put_off_schedule_1($1, $2, $3, $4)"


def _bounded(query: str) -> str:
    return bounded(query, "octet_length(p.input::text)", "schedule_id desc")


class ScheduleStore:
    """Schedules of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def now(self) -> datetime:
        """Read the database's clock, which every time of a schedule is computed from."""
        with guarding():
            found: datetime = await self._pool.fetchval("select clock_timestamp()")
        return found

    async def create(
        self, asked: Schedule, schedule_id: str, log_id: str, next_time: datetime, schedules_max: int
    ) -> Row:
        """Make a schedule of a contact, whose log is named; answers a row of create_schedule_1."""
        key = asked.idempotency_key or None
        with guarding():
            row: Row = await self._pool.fetchrow(
                _CREATE, asked.tenant_id, schedule_id, asked.contact, log_id, asked.kind,
                msgspec.json.encode(asked.input).decode(), asked.cron, asked.time_zone, asked.principal, next_time,
                key, asked.digest() if key else None, schedules_max,
            )  # fmt: skip
        return row

    async def get(self, tenant_id: str, schedule_id: str) -> Row | None:
        """Read a schedule."""
        return await self._one(GET, tenant_id, schedule_id)

    async def page(self, tenant_id: str, contact: str, before: str, limit: int) -> tuple[list[Row], bool]:
        """List schedules, newest first, of one contact where given, and whether there are more."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                if contact:
                    rows = await connection.fetch(_bounded(LIST_OF_CONTACT), tenant_id, before, limit + 1, contact)
                else:
                    rows = await connection.fetch(_bounded(LIST), tenant_id, before, limit + 1)
        return page_of(rows, limit)

    async def pause(self, tenant_id: str, schedule_id: str) -> Row | None:
        """Let a schedule rest; answers it, None if there is no such schedule."""
        return await self._one(_PAUSE, tenant_id, schedule_id)

    async def resume(self, tenant_id: str, schedule_id: str, next_time: datetime) -> Row | None:
        """Let a schedule that rests go on at a time; answers it, None if there is no such schedule."""
        return await self._one(_RESUME, tenant_id, schedule_id, next_time)

    async def delete(self, tenant_id: str, schedule_id: str) -> bool:
        """Remove a schedule; False if there is no such schedule."""
        return await self._one(_DELETE, tenant_id, schedule_id) is not None

    async def _one(self, query: str, tenant_id: str, *arguments: object) -> Row | None:
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row | None = await connection.fetchrow(query, tenant_id, *arguments)
        return row

    async def look(self, tenant_id: str, schedule_id: str) -> Row | None:
        """Read what is needed to fire a schedule; a row of look_at_schedule_1, None if there is no such schedule."""
        with guarding():
            row: Row | None = await self._pool.fetchrow(_LOOK, tenant_id, schedule_id)
        return row

    async def fire(
        self, tenant_id: str, schedule_id: str, tick: datetime, following: datetime | None, ids: NewIds, body: bytes,
        room: Room,
    ) -> Row:  # fmt: skip
        """Accept the task of a tick and move the schedule on, in one commit; answers a row of fire_schedule_1."""
        with guarding():
            row: Row = await self._pool.fetchrow(
                _FIRE, tenant_id, schedule_id, tick, following, ids.notify_log, ids.log_id, ids.session_id, ids.run_id,
                body.decode(), room.waiting_max, room.later_max,
            )  # fmt: skip
        return row

    async def put_off(self, tenant_id: str, schedule_id: str, tick: datetime, until: datetime) -> bool:
        """Move a tick that could not be fired; False if the schedule has moved meanwhile."""
        with guarding():
            moved: bool = await self._pool.fetchval(_PUT_OFF, tenant_id, schedule_id, tick, until)
        return moved
