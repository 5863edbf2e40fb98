"""Schedules: made, read, paused, resumed, deleted. What fires them is the worker's scheduler."""

from dataclasses import replace
from datetime import datetime

import msgspec
from retinue_kit import ids
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router import cron
from retinue_router.crash_points import Point
from retinue_router.domain import pages
from retinue_router.domain.contacts import check_name, log_id_of
from retinue_router.domain.schedules import SCHEDULE_ID, SCHEDULES_MAX, Schedule
from retinue_router.store.guard import Row
from retinue_router.store.schedules import ScheduleStore

PAGE = "s"


def _found(row: Row | None) -> Row:
    if row is None:
        raise RetinueError(Reason.SCHEDULE_NOT_FOUND, "There is no such schedule.")
    return row


def _made(asked: Schedule, answer: Row, next_time: datetime) -> Row:
    """Make the row of a schedule that was just made, without reading it: it may be gone by then."""
    return {
        "schedule_id": answer["schedule_id"],
        "contact": asked.contact,
        "kind": asked.kind,
        "input": msgspec.json.encode(asked.input).decode(),
        "cron": asked.cron,
        "time_zone": asked.time_zone,
        "next_time": next_time,
        "last_run_id": None,
        "create_time": answer["create_time"],
    }


class Schedules:
    """Schedules of tenants."""

    def __init__(self, store: ScheduleStore, schedules_max: int = SCHEDULES_MAX) -> None:
        self._store = store
        self._schedules_max = schedules_max

    async def create(self, asked: Schedule) -> tuple[Row, bool]:
        """Make a schedule; answers it and whether its key had been used before.

        Raises FIELD_INVALID, IDEMPOTENCY_KEY_REUSED, QUOTA_EXCEEDED, and SCHEDULE_NOT_FOUND if what the key made was
        deleted.
        """
        asked.check()
        asked = replace(asked, cron=cron.in_words(asked.cron), time_zone=asked.time_zone or cron.ZONE_DEFAULT)
        next_time = cron.next_after(asked.cron, asked.time_zone, await self._store.now())
        if next_time is None:
            raise RetinueError.field("cron", "must name a time that comes; this one never does")
        schedule_id = ids.new_id(SCHEDULE_ID)
        reach(Point.SCHEDULE_COMMITTING)
        answer = await self._store.create(
            asked, schedule_id, log_id_of(asked.tenant_id, asked.contact), next_time, self._schedules_max
        )
        reach(Point.SCHEDULE_COMMITTED)
        match answer["outcome"]:
            case "created":
                return _made(asked, answer, next_time), False
            case "replay":
                return await self.get(asked.tenant_id, answer["schedule_id"]), True
            case "key_reused":
                raise RetinueError(
                    Reason.IDEMPOTENCY_KEY_REUSED,
                    "The idempotency key was used with another request.",
                    schedule_id=answer["schedule_id"],
                )
            case "full":
                raise RetinueError(
                    Reason.QUOTA_EXCEEDED,
                    f"The tenant has {self._schedules_max} schedules, and may have no more.",
                    limit=str(self._schedules_max),
                )
            case _:
                raise RetinueError(Reason.SCHEDULE_NOT_FOUND, "The schedule of this idempotency key was deleted.")

    async def get(self, tenant_id: str, schedule_id: str) -> Row:
        """Read a schedule. Raises SCHEDULE_NOT_FOUND."""
        return _found(await self._store.get(tenant_id, schedule_id))

    async def page(self, tenant_id: str, contact: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List schedules, newest first; answers the page and the token of the next one."""
        if contact:
            check_name(contact)
        before = pages.read_id(PAGE, page_token)
        rows, more = await self._store.page(tenant_id, contact, before, pages.size_of(page_size))
        return rows, pages.write(PAGE, rows[-1]["schedule_id"]) if more else ""

    async def pause(self, tenant_id: str, schedule_id: str) -> Row:
        """Let a schedule rest. Raises SCHEDULE_NOT_FOUND."""
        reach(Point.SCHEDULE_COMMITTING)
        row = await self._store.pause(tenant_id, schedule_id)
        reach(Point.SCHEDULE_COMMITTED)
        return _found(row)

    async def resume(self, tenant_id: str, schedule_id: str) -> Row:
        """Let a schedule go on from its next time. Raises SCHEDULE_NOT_FOUND."""
        found = _found(await self._store.look(tenant_id, schedule_id))
        next_time = cron.next_after(found["cron"], found["time_zone"], found["now"])
        if next_time is None:
            raise RetinueError.field("cron", "must name a time that comes; this one never does")
        reach(Point.SCHEDULE_COMMITTING)
        row = await self._store.resume(tenant_id, schedule_id, next_time)
        reach(Point.SCHEDULE_COMMITTED)
        return _found(row)

    async def delete(self, tenant_id: str, schedule_id: str) -> None:
        """Remove a schedule. Raises SCHEDULE_NOT_FOUND."""
        reach(Point.SCHEDULE_COMMITTING)
        deleted = await self._store.delete(tenant_id, schedule_id)
        reach(Point.SCHEDULE_COMMITTED)
        if not deleted:
            raise RetinueError(Reason.SCHEDULE_NOT_FOUND, "There is no such schedule.")
