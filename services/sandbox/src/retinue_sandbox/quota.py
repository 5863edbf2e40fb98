"""Looks at how much tenants' files have grown through what was executed: whoever has too much executes nothing more."""

import asyncio

import structlog
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.ports import Backend, Workspaces

LOOK_S = 1.0
"""How often a tenant's files are counted while something runs, at most."""

QUICK_MS = 50
"""After what took less, files are counted behind the answer: counting takes longer than such an execution."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Quota:
    """What was seen of tenants' files. `close` it."""

    def __init__(self, workspaces: Workspaces, backend: Backend) -> None:
        self._workspaces, self._backend = workspaces, backend
        self._over: set[str] = set()
        self._awaited: set[str] = set()
        self._looks: set[asyncio.Task[None]] = set()

    async def require(self, tenant_id: str) -> None:
        """Raise QUOTA_EXCEEDED while a tenant that had too many files still has: file calls can remove some."""
        problem = tenant_id in self._over and await self.look(tenant_id)
        if problem:
            raise RetinueError(Reason.QUOTA_EXCEEDED, f"{problem} Delete some first.", quota="files")

    async def look(self, tenant_id: str) -> str:
        """Count; answers what is too much, in a sentence, or ""."""
        problem = ""
        try:
            held = await self._backend.held_bytes(tenant_id)
            problem = await self._workspaces.over_quota(tenant_id, held)
            (self._over.add if problem else self._over.discard)(tenant_id)
        except (OSError, RetinueError) as error:
            log.warning("files were not counted", detail=str(error)[:200])
        return problem

    def look_soon(self, tenant_id: str) -> None:
        """Count in LOOK_S, for the sake of whoever comes next; once for all who ask until then."""
        if tenant_id not in self._awaited:
            self._awaited.add(tenant_id)
            look = asyncio.create_task(self._look_later(tenant_id), name="quota")
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)

    async def close(self) -> None:
        """Stop counting."""
        looks = list(self._looks)
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    async def _look_later(self, tenant_id: str) -> None:
        await asyncio.sleep(LOOK_S)
        self._awaited.discard(tenant_id)
        await self.look(tenant_id)
