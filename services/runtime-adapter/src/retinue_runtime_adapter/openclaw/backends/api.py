"""Calls to an engine or API server that speaks JSON over HTTP: each with a deadline and a bound."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import aiohttp
import msgspec

from retinue_runtime_adapter.openclaw.backends.contained import CALL_TIMEOUT_S, unavailable

BODY_SIZE_MAX_BYTES = 8 * 1024 * 1024
"""Bytes of one answer: LISTED_MAX descriptions of some KiB each."""

DETAIL_SIZE_MAX = 500
"""Characters of an answer's own words that go to the log."""


class Answer(NamedTuple):
    """A status and the body: an object, or a list of objects, whichever was asked for; else empty."""

    status: int
    body: dict[str, Any]
    items: list[dict[str, Any]]

    @property
    def message(self) -> str:
        """What it says of itself when it refuses; for the log."""
        return f"{self.status}: {str(self.body.get('message', ''))[:DETAIL_SIZE_MAX]}"


class Api:
    """A server and how it is reached. `headers` are asked for at each call: credentials are renewed in place."""

    def __init__(
        self,
        name: str,
        base: str,
        connector: aiohttp.BaseConnector,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._name = name
        self._base = base.rstrip("/")
        self._headers = headers
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "retinue"},
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Answer:
        """Ask. Raises RUNTIME_UNAVAILABLE if there is no answer, or one that is no JSON or too long."""
        data = None if body is None else msgspec.json.encode(body)
        headers = {**self._headers(), **({} if data is None else {"Content-Type": "application/json"})}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.request(
                    method, self._base + path, params=params, data=data, headers=headers, allow_redirects=False
                ) as response,
            ):
                return _decode(response.status, await self._read(response))
        except TimeoutError:
            raise unavailable(f"{self._name} does not answer in time.", f"{method} {path}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise unavailable(f"{self._name} does not answer.", f"{method} {path}: {error!r}") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        found = bytearray()
        async for chunk in response.content.iter_any():
            found += chunk
            if len(found) > BODY_SIZE_MAX_BYTES:
                raise unavailable(f"{self._name} answers more than can be read.")
        return bytes(found)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.close()


def _decode(status: int, text: bytes) -> Answer:
    """Read a body. What refuses may do so in plain words."""
    try:
        found = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = {"message": text[:DETAIL_SIZE_MAX].decode(errors="replace").strip()}
    if isinstance(found, list):
        return Answer(status, {}, [one for one in found if isinstance(one, dict)])
    return Answer(status, found if isinstance(found, dict) else {}, [])
