"""Telling workers that there is something to do, after the commit that made it so.

Nothing here may fail a call: what was acknowledged is in the database, and the sweeper rings for what was not heard.
"""

import asyncio

import redis.asyncio
import structlog
from redis.exceptions import RedisError
from retinue_kit.errors import RetinueError

from retinue_router.ring import Rings

TIMEOUT_S = 0.5
"""A ring takes a tenth of a millisecond; about as long as this, and the sweeper has rung."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Doorbell:
    """The rings, and the channels on which holders hear that they should look at a run."""

    def __init__(self, rings: Rings, client: "redis.asyncio.Redis") -> None:
        self._rings = rings
        self._redis = client

    async def ring(self, tenant_id: str, log_id: str) -> None:
        """Have somebody look at a log."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._rings.push(tenant_id, log_id)
        except (RetinueError, TimeoutError) as error:
            log.warning("not rung", log_id=log_id, detail=str(error)[:200])

    async def poke(self, holder: str, tenant_id: str, log_id: str) -> None:
        """Have a holder look at the wishes for its run."""
        boot = holder.partition(":")[0]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._redis.publish(f"w:{boot}", f"{tenant_id} {log_id}")
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("not poked", log_id=log_id, detail=str(error)[:200])
