"""One POST to a stranger's server: to a public address only, with bounds on all that it may answer."""

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from retinue_kit.errors import RetinueError

from retinue_router.domain import addresses
from retinue_router.domain.outbox import PLACES_MAX
from retinue_router.domain.webhooks import Outcome, Verdict
from retinue_router.names import Names

ATTEMPT_TIMEOUT_S = 10.0
"""For all of an attempt, names included. A receiver is to put what it gets aside and answer."""

ANSWER_SIZE_MAX_BYTES = 16 * 1024
"""Read of an answer's body, where what it says counts."""

USER_AGENT = "Retinue-Courier"


class Answer(NamedTuple):
    """What a server said."""

    status: int
    retry_after: str
    body: bytes
    """At most ANSWER_SIZE_MAX_BYTES of it; none where it does not count."""


class ForbiddenTargetError(OSError):
    """A name leads to no address that may be spoken to."""


class FailedError(Exception):
    """No answer came."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.result)
        self.outcome = outcome


class Pinned(AbstractResolver):
    """Looks a name up once, and lets through what may be spoken to: the connection goes there and nowhere else."""

    def __init__(self, names: Names, *, private: bool) -> None:
        self._names = names
        self._private = private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Answer the addresses of a host. Raises ForbiddenTargetError if there are none but private ones."""
        found = await self._names.addresses(host, port)
        allowed = [address for address in found if self._private or addresses.is_public(address)]
        if not allowed:
            raise ForbiddenTargetError
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in allowed
        ]

    async def close(self) -> None:
        """Nothing is held open."""


class Sender:
    """Posts. Use it with `async with`.

    Proxies of the environment are not used: one would look names up itself, past the check. Connections are not kept:
    a name may lead elsewhere by the next delivery.
    """

    def __init__(self, names: Names, *, private: bool, timeout_s: float = ATTEMPT_TIMEOUT_S) -> None:
        self._names = names
        self._private = private
        self._timeout_s = timeout_s
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Sender":
        connector = aiohttp.TCPConnector(
            resolver=Pinned(self._names, private=self._private),
            use_dns_cache=False,
            force_close=True,
            limit=PLACES_MAX,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # ours counts
            auto_decompress=False,
            trust_env=False,
            headers={"user-agent": USER_AGENT, "accept-encoding": "identity"},
        )
        self._session = await self._stack.enter_async_context(session)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def post(self, url: str, headers: dict[str, str], body: bytes, *, read: bool) -> Answer:
        """Send, and answer what the server says; its body only with `read`. Raises FailedError."""
        try:
            addresses.read_url(url, private=self._private)
        except RetinueError as error:
            raise FailedError(Outcome(Verdict.DEAD, error.message)) from None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(url, headers, body, read=read)
        except TimeoutError:
            raise FailedError(Outcome(Verdict.RETRY, f"no answer within {self._timeout_s:g} s")) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FailedError(_failure(error)) from error

    async def _post(self, url: str, headers: dict[str, str], body: bytes, *, read: bool) -> Answer:
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            said = b""
            if read:
                async for chunk in answer.content.iter_chunked(ANSWER_SIZE_MAX_BYTES):
                    said += chunk[: ANSWER_SIZE_MAX_BYTES - len(said)]
                    if len(said) == ANSWER_SIZE_MAX_BYTES:
                        break
            return Answer(answer.status, answer.headers.get("retry-after", ""), said)


def _failure(error: Exception) -> Outcome:
    """Say what went wrong in words that hold nothing of the URL."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(error.os_error, ForbiddenTargetError):
            return Outcome(Verdict.DEAD, "its name leads to no public address")
        return Outcome(Verdict.RETRY, "its name cannot be looked up")
    for kind, words in (
        (aiohttp.ClientConnectorCertificateError, "its certificate is not trusted"),
        (aiohttp.ClientSSLError, "TLS failed"),
        (aiohttp.ClientConnectorError, "no connection"),
        (aiohttp.ClientResponseError, "its answer is not HTTP"),
        (OSError, "the connection was cut"),
        (aiohttp.ClientConnectionError, "the connection was cut"),
        (aiohttp.ClientPayloadError, "the connection was cut"),
    ):
        if isinstance(error, kind):
            return Outcome(Verdict.RETRY, words)
    return Outcome(Verdict.RETRY, type(error).__name__)
