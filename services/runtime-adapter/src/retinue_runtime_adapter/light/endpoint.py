"""One call of a model over HTTP: opened, read chunk by chunk, closed. What is made of its words is others' business."""

import asyncio
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
import msgspec
from multidict import CIMultiDict
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue
from retinue_kit import telemetry
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason
from yarl import URL

from retinue_runtime_adapter.config import ProviderEntry, Settings
from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.credentials import Credentials
from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.sse import Lines, LineTooLongError
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.wire import Chunk, Usage, decode_chunk

CONNECTIONS_MAX = 4096
"""Connections to all endpoints together: as many as the server takes calls at once, so that none waits for another."""

BODY_AT_ONCE_BYTES = 512 * 1024
"""Bytes of a body that are written in one go; of a larger one, other calls get their turn in between."""

KEEP_ALIVE_S = 30.0
"""Idle time after which a connection is closed; shorter than what servers and balancers in between usually keep."""

ERROR_BODY_TIMEOUT_S = 2.0
"""Time to read why a request was refused; its status alone says enough."""

DRAIN_TIMEOUT_S = 0.1
"""Time for the last bytes after the model said that it is done, so that the connection can serve the next call."""


COMPLETIONS = "/chat/completions"
"""What is called of an endpoint, usually."""


class Provider:
    """An endpoint with its credentials."""

    def __init__(self, name: str, entry: ProviderEntry, path: str = COMPLETIONS) -> None:
        self.name = name
        self.dialect = entry.schema
        self.tools = entry.tools
        self.credentials = Credentials(entry.api_keys)
        self.url = URL(entry.base_url.rstrip("/") + path)
        self.origin = str(self.url.origin())


def session(settings: Settings) -> aiohttp.ClientSession:
    """The connections to all endpoints. Time is bounded by each wait, except for connecting."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.model_connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept"),
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "retinue"},
    )


T = TypeVar("T")
C = TypeVar("C", bound="Call[Any]", covariant=True)


class Call(Generic[T]):
    """A call whose answer is being read. `over` says that the model is done; `usage` is set if it counted.

    What is made of the answer is the heirs' own: light's words, or what is passed on to another runtime.
    """

    content_type = "text/event-stream"

    def __init__(self, attempt: Attempt, settings: Settings, span: Span, keys: Sequence[str]) -> None:
        self.over = False
        self.usage: Usage | None = None
        self.first: list[T] = []
        """What `begin` has read already."""
        self._attempt = attempt
        self._timeout_s = settings.model_first_timeout_s
        self._chunk_timeout_s = settings.model_chunk_timeout_s
        self._span = span
        self._keys = keys
        self._lines = Lines()
        self._reason_given = False
        self._response: aiohttp.ClientResponse | None = None

    async def open(self, http: aiohttp.ClientSession, url: URL, headers: CIMultiDict[str], body: bytes) -> None:
        """Send the request and read the answer's head. Raises Trouble."""
        data = body if len(body) <= BODY_AT_ONCE_BYTES else io.BytesIO(body)
        try:
            response = self._response = await self._attempt.wait(
                lambda: http.post(url, data=data, headers=headers, allow_redirects=False), self._timeout_s
            )
        except aiohttp.ClientConnectorError:
            raise Trouble(Reason.MODEL_UNAVAILABLE, "The model's endpoint cannot be reached.") from None
        except aiohttp.ClientResponseError:
            raise troubles.invalid("The model's endpoint does not speak HTTP.") from None
        except (aiohttp.ClientError, OSError):
            raise Trouble(Reason.MODEL_UNAVAILABLE, "The model's endpoint closed the connection.") from None
        self._span.set_attribute("http.response.status_code", response.status)
        if response.status != 200:
            text = await self._error_body(response)
            retry_after = response.headers.get("Retry-After", "")
            raise troubles.of_response(response.status, text, retry_after, self._keys)
        if response.content_type != self.content_type:
            text = await self._error_body(response)
            if b'"error"' in text:
                raise troubles.of_stream(text, self._keys)
            raise troubles.invalid(f"The model's endpoint did not answer with {self.content_type}.")

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        found = b""
        with suppress(aiohttp.ClientError, OSError, Trouble):
            while len(found) < troubles.BODY_SIZE_MAX_BYTES:
                chunk = await self._attempt.wait(response.content.readany, ERROR_BODY_TIMEOUT_S)
                if not chunk:
                    break
                found += chunk
        return found[: troubles.BODY_SIZE_MAX_BYTES]

    async def read(self) -> list[T]:
        """Wait for more; all that is there comes at once. Empty only if the call is over. Raises Trouble."""
        assert self._response is not None
        while not self.over:
            try:
                chunk = await self._attempt.wait(self._response.content.readany, self._timeout_s)
                said = self._decode(self._lines.feed(chunk) if chunk else self._lines.finish())
            except (aiohttp.ClientError, OSError):
                said, chunk = [], b""
            except LineTooLongError:
                raise troubles.invalid("The model's endpoint sent a line without end.") from None
            if not chunk and not self.over:
                if not self._reason_given:
                    raise troubles.invalid("The model's answer broke off.")
                self.over = True
            if said:
                self._timeout_s = self._chunk_timeout_s
                return said
        return []

    async def whole_body(self, size_max_bytes: int) -> bytes:
        """Read an answer that is no stream to its end. Raises Trouble."""
        assert self._response is not None
        body = b""
        try:
            while chunk := await self._attempt.wait(self._response.content.readany, self._timeout_s):
                body += chunk
                if len(body) > size_max_bytes:
                    raise troubles.invalid(f"The model's answer is larger than {size_max_bytes} bytes.")
        except (aiohttp.ClientError, OSError):
            raise troubles.invalid("The model's answer broke off.") from None
        return body

    def _decode(self, lines: list[bytes]) -> list[T]:
        said: list[T] = []
        for line in lines:
            if line == b"[DONE]":
                self.over = True
                break
            try:
                chunk = decode_chunk(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise troubles.invalid("The model's endpoint sent an event that makes no sense.") from None
            if chunk.error is not None:
                raise troubles.of_stream(line, self._keys)
            if chunk.usage is not None:
                self.usage = chunk.usage
            if chunk.choices and chunk.choices[0].finish_reason:
                self._reason_given = True
            self._take(line, chunk, said)
        return said

    def _take(self, line: bytes, chunk: Chunk, said: list[T]) -> None:
        """Add what an event says; nothing if it says nothing yet."""
        raise NotImplementedError

    def count(self, input_tokens: int, output_tokens: int) -> None:
        """Note what was used in the span."""
        self._span.set_attribute("model.input_tokens", input_tokens)
        self._span.set_attribute("model.output_tokens", output_tokens)

    async def drain(self) -> None:
        """Read the last bytes after the end, so that the connection can serve the next call."""
        assert self._response is not None
        content = self._response.content
        if not content.at_eof():
            with suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await content.readany()

    def close(self, failed: Trouble | None = None) -> None:
        """Let go of the connection at once, unless it was read to its end, and end the span."""
        if self._response is not None:
            self._response.close()
        if failed is not None:
            telemetry.fail(self._span, str(failed.reason))
        self._span.end()


class Opener(Protocol[C]):
    """Makes a call of the wanted kind."""

    def __call__(self, attempt: Attempt, settings: Settings, span: Span, keys: Sequence[str]) -> C:
        """Answer a call that is not open yet."""
        ...


async def begin(
    opener: Opener[C],
    http: aiohttp.ClientSession,
    settings: Settings,
    clock: Clock,
    provider: Provider,
    model: Model,
    attempt: Attempt,
    body: bytes,
    attributes: Mapping[str, AttributeValue],
) -> C:
    """Call a model and wait for its first words. Raises Trouble; then nothing was told and the call is closed."""
    place = provider.credentials.pick(clock.monotonic())
    key = provider.credentials.keys[place]
    span = telemetry.start_span("model_call", SpanKind.CLIENT)
    span.set_attributes({"model.name": model.name, "model.provider": provider.name, **attributes})
    headers = CIMultiDict({"traceparent": telemetry.traceparent(span)})
    if key:
        headers["Authorization"] = f"Bearer {key}"
    call = opener(attempt, settings, span, provider.credentials.keys)
    try:
        await call.open(http, provider.url, headers, body)
        call.first = await call.read()
    except BaseException as error:
        if isinstance(error, Trouble) and error.of_credential:
            provider.credentials.refused(place, clock.monotonic())
        call.close(error if isinstance(error, Trouble) else None)
        raise
    provider.credentials.accepted(place)
    return call
