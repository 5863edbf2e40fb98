"""Workspace files of a contact, projected from the log after each commit; the log can make them anew at any time."""

import asyncio
import os
from pathlib import Path

import asyncpg
import msgspec
import structlog
from retinue_kit import postgres
from retinue_kit.errors import RetinueError
from retinue_kit.streams import START, Cursor

from retinue_router.domain.events import instant
from retinue_router.ring import Ticket
from retinue_router.workspace import contact_dir, open_beneath, tenant_lock

THREAD_FILE = "thread.jsonl"
TAIL_SIZE_BYTES = 512 * 1024
"""Enough of a file's end to hold its last line: a message is at most 100,000 characters of at most 4 bytes."""

PAGE_ROWS = 500
PENDING_MAX = 10_000
"""Logs whose projection waits; more are left to their next message, which catches up."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_MESSAGES = """
select e.token, e.n, e.type, e.session_id, e.run_id, e.data, e.time from events e
where e.tenant_id = $1 and e.log_id = $2 and e.type in ('user.message', 'assistant.message')
  and (e.token, e.n) > ($3, $4)
order by e.token, e.n limit $5"""
_CONTACT = "select l.contact from logs l where l.tenant_id = $1 and l.log_id = $2"


class Line(msgspec.Struct):
    """A line of thread.jsonl."""

    cursor: str
    message_id: str
    role: str
    text: str
    session_id: str
    run_id: str
    create_time: str


class Projector:
    """Writes thread.jsonl in the background; one log at a time, what is asked for twice is done once."""

    def __init__(self, pool: "asyncpg.Pool", root: Path) -> None:
        self._pool = pool
        self._root = root
        self._pending: dict[Ticket, None] = {}
        self._wake = asyncio.Event()

    async def project(self, ticket: Ticket) -> None:
        """Ask for a log's files to be brought up to date soon."""
        if len(self._pending) < PENDING_MAX:
            self._pending[ticket] = None
            self._wake.set()

    async def project_for_ever(self) -> None:
        """Do what was asked for; trouble with one log leaves the others alone."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                ticket = next(iter(self._pending))
                del self._pending[ticket]
                try:
                    await self.bring_up(ticket)
                except (RetinueError, OSError) as error:
                    log.warning("workspace not written", log_id=ticket.log_id, detail=str(error)[:200])

    async def flush(self) -> None:
        """Do what still waits, at the end of the process."""
        while self._pending:
            ticket = next(iter(self._pending))
            del self._pending[ticket]
            await self.bring_up(ticket)

    async def bring_up(self, ticket: Ticket) -> None:
        """Append to a log's thread.jsonl what it lacks. The deletion of a contact takes the same lock."""
        lock = await asyncio.to_thread(tenant_lock, self._root, ticket.tenant_id)
        try:
            async with postgres.as_tenant(self._pool, ticket.tenant_id) as connection:
                contact = await connection.fetchval(_CONTACT, *ticket)
                if not contact:
                    return
                folder = contact_dir(self._root, ticket.tenant_id, contact)
                with open_beneath(folder, THREAD_FILE) as file:
                    await self._append(connection, ticket, file)
        finally:
            os.close(lock)

    async def _append(self, connection: "asyncpg.Connection", ticket: Ticket, file: int) -> None:
        last = _last_cursor(file)
        while True:
            rows = await connection.fetch(_MESSAGES, *ticket, last.token, last.n, PAGE_ROWS)
            lines = []
            for row in rows:
                last = Cursor(row["token"], row["n"])
                data = msgspec.json.decode(row["data"])
                role = "user" if row["type"] == "user.message" else "assistant"
                line = Line(
                    str(last), data["message_id"], role, data["text"], row["session_id"], row["run_id"],
                    instant(row["time"]),
                )  # fmt: skip
                lines.append(msgspec.json.encode(line) + b"\n")
            if lines:
                os.write(file, b"".join(lines))
            if len(rows) < PAGE_ROWS:
                return


def _last_cursor(file: int) -> Cursor:
    """Find the last whole line's cursor and cut off what a crash left behind it."""
    size = os.fstat(file).st_size
    start = max(0, size - TAIL_SIZE_BYTES)
    tail = os.pread(file, size - start, start)
    end = tail.rfind(b"\n") + 1
    if start + end < size:
        os.ftruncate(file, start + end)
    lines = tail[:end].splitlines()
    if not lines:
        os.ftruncate(file, 0)
        return START
    try:
        return Cursor.parse(msgspec.json.decode(lines[-1], type=Line).cursor)
    except (msgspec.DecodeError, RetinueError):
        os.ftruncate(file, 0)  # not ours any more: the log makes it anew
        return START
