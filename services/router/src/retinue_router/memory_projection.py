"""What is remembered, as Markdown in the workspace: for people to read, and made anew after each change."""

import asyncio
from pathlib import Path

import structlog
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError

from retinue_router import workspace
from retinue_router.crash_points import Point
from retinue_router.domain import facts
from retinue_router.store.facts import FactStore

PENDING_MAX = 10_000
"""Files that are to be written; more are left to their next change, which writes them whole."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class MemoryProjector:
    """Writes the files in the background, one at a time; what is asked for twice is done once."""

    def __init__(self, store: FactStore, root: Path) -> None:
        self._store = store
        self._root = root
        self._pending: dict[tuple[str, str], None] = {}
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()

    def project(self, tenant_id: str, contact: str) -> None:
        """Ask for the file of a contact, or without one of the tenant, to be brought up to date soon."""
        if len(self._pending) < PENDING_MAX:
            self._pending[tenant_id, contact] = None
            self._wake.set()

    async def project_for_ever(self) -> None:
        """Do what was asked for; trouble with one file leaves the others alone."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Do what waits, and wait for what is being done: a process that stops cuts nothing off."""
        async with self._flushing:
            while self._pending:
                tenant_id, contact = next(iter(self._pending))
                del self._pending[tenant_id, contact]
                try:
                    await self._bring_up(tenant_id, contact)
                except (RetinueError, OSError, ValueError) as error:
                    log.warning("memory not written", tenant_id=tenant_id, detail=str(error)[:200])

    async def _bring_up(self, tenant_id: str, contact: str) -> None:
        """Write a file whole from what is remembered now; where nothing is, it goes.

        The facts are read under the lock: whoever writes last has read last, and whoever deletes the contact, rows
        first, takes the file behind whoever had read them.
        """
        async with workspace.locked(self._root, tenant_id):
            rows = await self._store.most_important(tenant_id, contact, facts.FACTS_MAX)
            reach(Point.MEMORY_PROJECTING)
            if rows:
                known = [(row["domain"], row["kind"], row["importance"], row["fact_id"], row["text"]) for row in rows]
                workspace.write_memory(self._root, tenant_id, contact, facts.page(contact, known))
            else:
                workspace.remove_memory(self._root, tenant_id, contact)
            reach(Point.MEMORY_PROJECTED)
