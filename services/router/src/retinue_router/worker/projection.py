"""Workspace files of a contact, projected from the log after each commit; the log can make them anew at any time."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import structlog
from retinue_kit import postgres
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError
from retinue_kit.metrics import stale_writes_refused
from retinue_kit.streams import START, Cursor

from retinue_router.crash_points import Point
from retinue_router.domain.events import instant
from retinue_router.ring import Ticket
from retinue_router.workspace import add_profile, contact_dir, open_in, opened

THREAD_FILE = "thread.jsonl"
TAIL_SIZE_BYTES = 512 * 1024
"""Enough of a file's end to hold its last line: a message is at most 100,000 characters of at most 4 bytes."""

PAGE_ROWS = 500
PAGES_MAX = 10_000
"""Pages written for one wish: five million messages; what is left waits for the next."""

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
        self._flushing = asyncio.Lock()

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
        """Do what waits, and wait for what is being done: a process that stops cuts nothing off."""
        async with self._flushing:
            while self._pending:
                ticket, contact = next(iter(self._pending.items()))
                del self._pending[ticket]
                try:
                    await self.bring_up(ticket, contact)
                except (RetinueError, OSError) as error:
                    log.warning("workspace not written", log_id=ticket.log_id, detail=str(error)[:200])

    async def bring_up(self, ticket: Ticket, contact: str) -> None:
        """Append to a contact's thread.jsonl what it lacks of the log.

        No lock is held, which a worker that is stopped would keep for ever. None is needed: where a line stands follows
        from the log alone, so that a late writer could only write what is there. The file is opened before the log is
        read: whoever deletes the contact, rows first, takes the file from under a writer that has read them.
        """
        folder = contact_dir(self._root, ticket.tenant_id, contact)
        if not (folder / THREAD_FILE).exists() and not await self._rows(ticket, START, 1):
            return
        with opened(folder) as directory:
            with open_in(directory, THREAD_FILE) as file:
                whole = await self._append(ticket, file)
                empty = os.fstat(file).st_size == 0
            if whole and empty:  # deleted since the first look: nothing is made for a contact that is not there
                with suppress(OSError):
                    os.unlink(THREAD_FILE, dir_fd=directory)
                    folder.rmdir()
                return
            if not whole:
                with suppress(FileNotFoundError):
                    os.unlink(THREAD_FILE, dir_fd=directory)  # not ours any more: the log makes it anew
                with open_in(directory, THREAD_FILE) as file:
                    await self._append(ticket, file)
            blank = {"contact": contact, "display_name": "", "channel": "", "profile": {}}
            add_profile(directory, blank)

    async def _append(self, ticket: Ticket, file: int) -> bool:
        """Append what a file lacks; False if it holds something else than lines of ours."""
        for _ in range(PAGES_MAX):
            size = os.fstat(file).st_size
            end = _end(file, size)
            if end is None:
                return False
            offset, last = end
            rows = await self._rows(ticket, last, PAGE_ROWS)
            if not rows:
                break
            reach(Point.PROJECTING)
            found = os.fstat(file)
            if found.st_nlink == 0 or found.st_size != size:
                # Another has written since, or the contact is gone: what was read is old.
                stale_writes_refused.labels("workspace").inc()
                continue
            os.pwrite(file, b"".join(map(_line, rows)), offset)
            reach(Point.PROJECTED)
            if len(rows) < PAGE_ROWS:
                break
        return True

    async def _rows(self, ticket: Ticket, after: Cursor, limit: int) -> list[Any]:
        with postgres.translating():
            rows: list[Any] = await self._pool.fetch(
                "select * from thread_1($1, $2, $3, $4, $5)", *ticket, after.token, after.n, limit
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


def _end(file: int, size: int) -> tuple[int, Cursor] | None:
    """Find where the last whole line ends and its cursor; what a crash left behind it is written over.

    None if the file does not end in a line of ours.
    """
    start = max(0, size - TAIL_SIZE_BYTES)
    tail = os.pread(file, size - start, start)
    end = tail.rfind(b"\n") + 1
    lines = tail[:end].splitlines()
    if not lines:
        return (0, START) if start == 0 else None
    try:
        return start + end, Cursor.parse(msgspec.json.decode(lines[-1], type=Line).cursor)
    except (msgspec.DecodeError, RetinueError):
        return None
