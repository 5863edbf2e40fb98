"""How a gateway says it is: `GET /readyz`."""

import asyncio
from dataclasses import dataclass

import aiohttp
import msgspec

TIMEOUT_S = 5.0
"""For an answer; a gateway that begins many agents is silent for longer now and then."""

BODY_SIZE_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Health:
    """What a look at a gateway found. `is_busy` says that its event loop lags behind."""

    answers: bool
    is_busy: bool = False


SILENT = Health(answers=False)


class _EventLoop(msgspec.Struct, frozen=True):
    degraded: bool = False


class _Ready(msgspec.Struct, frozen=True, rename="camel"):
    event_loop: _EventLoop = _EventLoop()


class Prober:
    """Asks gateways."""

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None

    async def __call__(self, address: str) -> Health:
        """Look at the gateway at `host:port`; whatever goes wrong is silence."""
        if self._http is None:
            self._http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._http.get(f"http://{address}/readyz", allow_redirects=False) as response,
            ):
                body = await response.content.read(BODY_SIZE_MAX_BYTES)
        except (TimeoutError, aiohttp.ClientError, OSError):
            return SILENT
        try:
            return Health(answers=True, is_busy=msgspec.json.decode(body, type=_Ready).event_loop.degraded)
        except msgspec.DecodeError:
            return Health(answers=True)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._http is not None:
            await self._http.close()
