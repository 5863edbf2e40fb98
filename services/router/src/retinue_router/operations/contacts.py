"""Contacts: listed, written, deleted whole; their sessions and what was said."""

from pathlib import Path

import msgspec
import structlog
from retinue_kit import ids, streams
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import START, Bus, Cursor

from retinue_router import workspace
from retinue_router.crash_points import Point
from retinue_router.domain import pages
from retinue_router.domain.contacts import check_name, log_id_of
from retinue_router.domain.events import instant
from retinue_router.store.contacts import ContactStore
from retinue_router.store.guard import Row

PAGE = "c"
MESSAGES_PAGE = "m"
log: structlog.stdlib.BoundLogger = structlog.get_logger()


def _not_found() -> RetinueError:
    return RetinueError(Reason.CONTACT_NOT_FOUND, "There is no such contact.")


class Contacts:
    """Contacts of tenants."""

    def __init__(self, store: ContactStore, bus: Bus, workspaces: Path) -> None:
        self._store = store
        self._bus = bus
        self._workspaces = workspaces

    async def get(self, tenant_id: str, contact: str) -> Row:
        """Read a contact. Raises CONTACT_NOT_FOUND."""
        check_name(contact)
        row = await self._store.get(tenant_id, contact)
        if row is None:
            raise _not_found()
        return row

    async def page(self, tenant_id: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List contacts by name; answers the page and the token of the next one."""
        size = pages.size_of(page_size)
        rows = await self._store.page(tenant_id, pages.read(PAGE, page_token), size + 1)
        more = pages.write(PAGE, rows[size - 1]["contact"]) if len(rows) > size else ""
        return rows[:size], more

    async def update(
        self, tenant_id: str, contact: str, display_name: str, channel: str, profile: dict[str, object]
    ) -> Row:
        """Write a contact's profile whole, into the database and then into its workspace."""
        check_name(contact)
        encoded = msgspec.json.encode(profile)
        row = await self._store.put(tenant_id, contact, ids.new_id("con"), display_name, channel, encoded)
        try:
            async with workspace.locked(self._workspaces, tenant_id):
                await self._write_profile(tenant_id, contact)
        except OSError as error:
            raise RetinueError.unavailable("workspace", private=str(error)) from error
        return row

    async def _write_profile(self, tenant_id: str, contact: str) -> None:
        # Read again under the lock: another call may have written a later profile, or removed the contact.
        row = await self._store.get(tenant_id, contact)
        if row is None:
            return
        document = {
            "contact": contact,
            "display_name": row["display_name"],
            "channel": row["channel"],
            "create_time": instant(row["create_time"]),
            "profile": msgspec.json.decode(row["profile"]),
        }
        workspace.write_profile(self._workspaces, tenant_id, contact, document)

    async def delete(self, tenant_id: str, contact: str) -> None:
        """Remove a contact with all that belongs to it: rows, streams, files. Raises CONTACT_NOT_FOUND."""
        check_name(contact)
        log_id = log_id_of(tenant_id, contact)
        reach(Point.DELETE_COMMITTING)
        logs = await self._store.delete(tenant_id, contact, log_id)
        reach(Point.DELETE_COMMITTED)
        # Also where no row was found: a call before this one may have died halfway. Who began anew since is spared.
        for doomed, token in (logs or await self._store.deleted(tenant_id, log_id)).items():
            await self._bus.delete(streams.log_key(tenant_id, doomed), through=token)
        reach(Point.DELETE_SWEPT)
        try:
            async with workspace.locked(self._workspaces, tenant_id):
                workspace.remove_contact(self._workspaces, tenant_id, contact)
        except OSError as error:
            raise RetinueError.unavailable("workspace", private=str(error)) from error
        if not logs:
            raise _not_found()
        log.info("contact deleted", log_id=log_id, log_count=len(logs))

    async def reset(self, tenant_id: str, contact: str) -> str:
        """Begin a fresh session; answers its id. Raises CONTACT_NOT_FOUND."""
        check_name(contact)
        session_id = ids.new_id("ses")
        if not await self._store.reset(tenant_id, contact, log_id_of(tenant_id, contact), session_id):
            raise _not_found()
        reach(Point.RESET_COMMITTED)
        return session_id

    async def messages(self, tenant_id: str, contact: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List what was said, oldest first; answers the page and the token of the next one.

        Raises CONTACT_NOT_FOUND, CURSOR_INVALID.
        """
        after = START
        if page_token:
            try:
                after = Cursor.parse(pages.read(MESSAGES_PAGE, page_token))
            except RetinueError:
                raise pages.invalid() from None
        await self.get(tenant_id, contact)
        size = pages.size_of(page_size)
        rows, more = await self._store.messages(tenant_id, log_id_of(tenant_id, contact), after, size)
        if not more:
            return rows, ""
        return rows, pages.write(MESSAGES_PAGE, str(Cursor(rows[-1]["token"], rows[-1]["n"])))
