"""Whether the mesh behind the edge can serve: each dependency's state."""

import asyncio
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError
from retinue_kit.clock import Clock
from retinue_kit.errors import RetinueError

from retinue_gateway.asgi import Request

Probe = Callable[[], Awaitable[object]]

NEEDED = ("router", "postgres", "redis", "directory", "policy", "runtime-adapter")
"""Without one of these no message can be answered. The others are shown."""

FRESH_S = 0.5
"""How long an answer is repeated: anyone may ask, and each time every dependency is asked."""

READY = "ready"
UNAVAILABLE = "unavailable"


class Readiness:
    """Asks dependencies, all at once; many who ask at the same time share one answer."""

    def __init__(self, probes: dict[str, Probe], clock: Clock) -> None:
        self._probes = probes
        self._clock = clock
        self._lock = asyncio.Lock()
        self._asked_at = float("-inf")
        self._states: dict[str, str] = {}

    async def states(self) -> dict[str, str]:
        """Ask every dependency: its name, and "ready" or "unavailable"."""
        async with self._lock:
            if self._clock.monotonic() - self._asked_at >= FRESH_S:
                found = await asyncio.gather(*(_state(probe) for probe in self._probes.values()))
                self._states = dict(zip(self._probes, found, strict=True))
                self._asked_at = self._clock.monotonic()
            return self._states

    async def readyz(self, request: Request) -> None:
        """GET /readyz."""
        states = await self.states()
        ready = all(states.get(name, READY) == READY for name in NEEDED)
        body = {"state": READY if ready else UNAVAILABLE, "dependencies": states}
        await request.answer_json(200 if ready else 503, body, {} if ready else {"retry-after": "1"})


async def _state(probe: Probe) -> str:
    try:
        await probe()
    except (RetinueError, RedisError, OSError):
        return UNAVAILABLE
    return READY


async def healthz(request: Request) -> None:
    """GET /healthz: this process answers."""
    await request.answer_json(200, {"state": "alive"})
