"""Workspace files of a contact, projected from the log after each commit; the log can make them anew at any time."""

import asyncio
import os
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import structlog
from retinue_kit import postgres
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError
from retinue_kit.streams import START, Cursor

from retinue_router.crash_points import Point
from retinue_router.domain.events import instant
from retinue_router.ring import Ticket
from retinue_router.workspace import PROFILE_FILE, contact_dir, locked, open_beneath, write_profile

THREAD_FILE = "thread.jsonl"
TAIL_SIZE_BYTES = 512 * 1024
"""Enough of a file's end to hold its last line: a message is at most 100,000 characters of at most 4 bytes."""

PAGE_ROWS = 500
PENDING_MAX = 10_000
"""Logs whose projection waits; more are left to their next message, which catches up."""

_encoder = msgspec.json.Encoder()
log: structlog.stdlib.BoundLogger = structlog.get_logger()


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
        self._pending: dict[Ticket, str] = {}
        self._wake = asyncio.Event()

    def project(self, ticket: Ticket, contact: str) -> None:
        """Ask for a contact's file to be brought up to date soon."""
        if len(self._pending) < PENDING_MAX:
            self._pending[ticket] = contact
            self._wake.set()

    async def project_for_ever(self) -> None:
        """Do what was asked for; trouble with one log leaves the others alone."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Do what waits."""
        while self._pending:
            ticket, contact = next(iter(self._pending.items()))
            del self._pending[ticket]
            try:
                await self.bring_up(ticket, contact)
            except (RetinueError, OSError) as error:
                log.warning("workspace not written", log_id=ticket.log_id, detail=str(error)[:200])

    async def bring_up(self, ticket: Ticket, contact: str) -> None:
        """Append to a contact's thread.jsonl what it lacks of the log.

        The deletion of a contact takes the same lock after its commit: what is read here under the lock is either still
        true, or removed by whoever waits for it.
        """
        async with locked(self._root, ticket.tenant_id):
            path = contact_dir(self._root, ticket.tenant_id, contact) / THREAD_FILE
            last = START
            if path.exists():
                with open_beneath(path.parent, THREAD_FILE) as file:
                    last = _last_cursor(file)
            while True:
                rows = await self._rows(ticket, last)
                if rows:
                    last = Cursor(rows[-1]["token"], rows[-1]["n"])
                    reach(Point.PROJECTING)
                    with open_beneath(path.parent, THREAD_FILE) as file:
                        os.write(file, b"".join(map(_line, rows)))
                    reach(Point.PROJECTED)
                if len(rows) < PAGE_ROWS:
                    break
            if path.parent.exists() and not (path.parent / PROFILE_FILE).exists():
                # Nobody has written a profile: whoever does holds the same lock.
                blank = {"contact": contact, "display_name": "", "channel": "", "profile": {}}
                write_profile(self._root, ticket.tenant_id, contact, blank)

    async def _rows(self, ticket: Ticket, after: Cursor) -> list[Any]:
        with postgres.translating():
            rows: list[Any] = await self._pool.fetch(
                "select * from thread_1($1, $2, $3, $4, $5)", *ticket, after.token, after.n, PAGE_ROWS
            )
        return rows


def _line(row: Any) -> bytes:
    data = msgspec.json.decode(row["data"])
    return (
        _encoder.encode(
            Line(
                cursor=str(Cursor(row["token"], row["n"])),
                message_id=data["message_id"],
                role="user" if row["type"] == "user.message" else "assistant",
                text=data["text"],
                session_id=row["session_id"],
                run_id=row["run_id"],
                create_time=instant(row["time"]),
            )
        )
        + b"\n"
    )


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
