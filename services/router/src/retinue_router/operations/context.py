"""What a session's context is, and sessions that begin with another's."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
import structlog
from retinue_kit import ids, streams
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import START, Bus, Cursor, Entry

from retinue_router.crash_points import Point
from retinue_router.domain.contacts import check_name, log_id_of
from retinue_router.domain.context import MESSAGE_SIZE_MAX_BYTES, imported
from retinue_router.store.context import ContextStore, Header

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Contexts:
    """Contexts of tenants' sessions."""

    def __init__(self, store: ContextStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def read(
        self, tenant_id: str, contact: str, session_id: str, through: str, without_run_id: str
    ) -> AsyncGenerator[Header | Entry, None]:
        """Yield whose context it is and then its events, of one snapshot. Raises CONTACT_NOT_FOUND, CURSOR_INVALID."""
        check_name(contact)
        end = Cursor.parse(through) if through else START
        found = False
        store = self._store.read(tenant_id, contact, log_id_of(tenant_id, contact), session_id, end, without_run_id)
        async with aclosing(store) as parts:
            async for part in parts:
                found = True
                yield part
        if not found:
            raise RetinueError(Reason.CONTACT_NOT_FOUND, "There is no such contact.")

    async def bring(
        self,
        tenant_id: str,
        contact: str,
        digest: str,
        messages: Sequence[tuple[str, str]],
        summary: tuple[str, int],
        losses: Sequence[str],
        whom: tuple[str, str, dict[str, object]],
    ) -> tuple[str, bool]:
        """Begin a session with what was said elsewhere; answers its id, and whether it was there already.

        `summary` comes with the number of messages that it stands for; `whom` is name, channel and profile of a contact
        that is made by this. Raises SESSION_BUSY, FIELD_INVALID.
        """
        check_name(contact)
        for at, (_, text) in enumerate(messages):
            if len(text.encode()) > MESSAGE_SIZE_MAX_BYTES:
                raise RetinueError.field(f"messages[{at}].text", f"must be at most {MESSAGE_SIZE_MAX_BYTES} bytes")
        lines = [(ids.new_id("msg"), role, text) for role, text in messages]
        events = imported(digest, *summary, lines, list(losses))
        name, channel, profile = whom
        log_id, session_id = log_id_of(tenant_id, contact), ids.new_id("ses")
        reach(Point.IMPORT_COMMITTING)
        made = await self._store.bring(
            tenant_id, contact, log_id, session_id, digest, events, (name, channel, msgspec.json.encode(profile))
        )
        reach(Point.IMPORT_COMMITTED)
        if made.outcome == "busy":
            raise RetinueError(Reason.SESSION_BUSY, "A run of this contact is active or waits; import when it is over.")
        if made.events:
            try:
                await self._bus.append(streams.log_key(tenant_id, log_id), made.events)
            except RetinueError as error:
                # Whoever watches finds what the log has and the bus has not.
                log.info("import not told", log_id=log_id, detail=error.private)
        return made.session_id, made.outcome == "replayed"
