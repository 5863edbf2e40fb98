"""Asks for tasks that find facts in what was said: each part of a session once, whoever dies, and however many look."""

import asyncio
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec
import structlog
from retinue_kit import ids
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError
from retinue_kit.metrics import counter
from retinue_kit.streams import Cursor

from retinue_router.crash_points import Point
from retinue_router.domain import extraction
from retinue_router.domain.queues import TASK_LOG
from retinue_router.domain.submission import Submission
from retinue_router.doorbell import Doorbell
from retinue_router.operations.runs import body_of
from retinue_router.ring import Ticket
from retinue_router.store.guard import guarding
from retinue_router.store.runs import Room
from retinue_router.worker.scheduler import WholeRoom

PENDING_MAX = 10_000
"""Sessions that are to be looked at; more are left to their next message, which finds what was left."""

PARTS_MAX = 4
"""Parts of one session that are asked for in a row, where many are due; the rest comes with its next message."""

_UNREAD = "select * from unread_1($1, $2, $3, $4, $5)"
_SUBMIT = "select outcome from submit_unread_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"

asked = counter(
    "memory_extractions", "Parts of sessions that were to be read for facts, by what became of it.", ["outcome"]
)
"""Outcomes: accepted, full (left to the session's next message), failed (likewise)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class _Part(NamedTuple):
    """A part of a session that is due: where it ends, when that was said, and its lines."""

    through_token: int
    through_n: int
    said_time: datetime
    lines: str


class _Line(msgspec.Struct):
    role: str
    text: str


_lines = msgspec.json.Decoder(list[_Line]).decode


class Extractor:
    """Looks at sessions in the background, after their runs; what is asked for twice is done once."""

    def __init__(self, pool: "asyncpg.Pool", doorbell: Doorbell, room: Room, whole: WholeRoom, every: int) -> None:
        """`every`: messages of a user in one part; 0: nothing is ever looked at."""
        self._pool = pool
        self._doorbell = doorbell
        self._room = room
        self._whole = whole
        self._every = every
        self._pending: dict[tuple[Ticket, str], str] = {}
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()

    def look(self, ticket: Ticket, contact: str, session_id: str) -> None:
        """Ask for a session to be looked at soon."""
        if self._every and len(self._pending) < PENDING_MAX:
            self._pending[ticket, session_id] = contact
            self._wake.set()

    async def look_for_ever(self) -> None:
        """Do what was asked for; trouble with one session leaves the others alone."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Do what waits, and wait for what is being done."""
        async with self._flushing:
            while self._pending:
                (ticket, session_id), contact = next(iter(self._pending.items()))
                del self._pending[ticket, session_id]
                try:
                    await self._look(ticket, contact, session_id)
                except RetinueError as error:
                    asked.labels("failed").inc()
                    log.warning("session not read for facts", session_id=session_id, detail=error.private)

    async def _look(self, ticket: Ticket, contact: str, session_id: str) -> None:
        for _ in range(PARTS_MAX):
            with guarding():
                row = await self._pool.fetchrow(_UNREAD, *ticket, session_id, self._every, extraction.LINES_MAX)
            if row is None or not await self._ask(ticket, contact, session_id, _Part(*row)):
                return

    async def _ask(self, ticket: Ticket, contact: str, session_id: str, part: _Part) -> bool:
        """Ask for the task that reads a part; False if the next part is not to be looked for now."""
        if not await self._whole.left():
            asked.labels("full").inc()
            return False
        through = str(Cursor(part.through_token, part.through_n))
        lines = [(line.role, line.text) for line in _lines(part.lines)]
        task = Submission(
            tenant_id=ticket.tenant_id,
            contact=contact,
            kind=extraction.KIND,
            text=extraction.prompt(contact, part.said_time, lines),
            metadata={"session_id": session_id, "through": through},
            input={},
            parameters={},
            idempotency_key=extraction.key_of(session_id, through),
        )
        log_id = ids.new_id(TASK_LOG)
        reach(Point.EXTRACT_COMMITTING)
        with guarding():
            outcome: str = await self._pool.fetchval(
                _SUBMIT, ticket.tenant_id, contact, ticket.log_id, session_id, part.through_token, part.through_n,
                log_id, ids.new_id("ses"), ids.new_id("run"), task.kind, task.idempotency_key, task.digest(),
                body_of(task).decode(), self._room.waiting_max, self._room.later_max,
            )  # fmt: skip
        reach(Point.EXTRACT_COMMITTED)
        if outcome == "accepted":
            self._whole.take()
            await self._doorbell.ring(ticket.tenant_id, log_id)
            reach(Point.EXTRACT_RUNG)
        if outcome in ("accepted", "full"):
            asked.labels(outcome).inc()
        return outcome == "accepted"
