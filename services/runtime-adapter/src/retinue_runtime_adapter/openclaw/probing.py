"""How a gateway says it is: `GET /readyz`."""

import asyncio
from dataclasses import dataclass

import aiohttp
import msgspec

TIMEOUT_S = 5.0
"""For an answer; a gateway that begins many agents is silent for longer now and then."""

BODY_SIZE_MAX_BYTES = 64 * 1024


LAG = "event_loop_delay"
"""The reason by which a gateway says that its event loop stood still for a second. Its others (`cpu`,
`event_loop_utilization`) say that it works, which it does whenever it is given enough to do."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a look at a gateway found. `lags` says that its event loop lags behind."""

    answers: bool
    lags: bool = False


SILENT = Health(answers=False)


class _EventLoop(msgspec.Struct, frozen=True):
    degraded: bool = False
    reasons: list[str] | None = None

    @property
    def lags(self) -> bool:
        """Whether it stands still now and then; a release that tells no reasons is believed."""
        return self.degraded and (self.reasons is None or LAG in self.reasons)


class _Ready(msgspec.Struct, frozen=True, rename="camel"):
    event_loop: _EventLoop = _EventLoop()


def read(body: bytes) -> Health:
    """Read an answer of /readyz; one that cannot be understood is an answer all the same."""
    try:
        return Health(answers=True, lags=msgspec.json.decode(body, type=_Ready).event_loop.lags)
    except msgspec.DecodeError:
        return Health(answers=True)


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
        return read(body)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._http is not None:
            await self._http.close()
