"""One model call of a gateway: asked of the run's model, its answer passed on as it comes, and counted."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from aiohttp import web
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import Caller
from retinue_runtime_adapter.openclaw.proxy.asking import Asked, estimated
from retinue_runtime_adapter.openclaw.proxy.ledger import Run
from retinue_runtime_adapter.openclaw.proxy.relay import Part, Relay, Whole

WRITE_TIMEOUT_S = 60.0
"""Seconds for a gateway to take what is written; one that hangs as long is given up by others as well."""

LAST_WORDS_TIMEOUT_S = 1.0
"""Seconds to tell that an answer breaks off here."""

HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}

_encode = msgspec.json.Encoder().encode


class _GoneError(Exception):
    """The gateway hung up, or does not read."""


class Exchange:
    """A call under way. `outcome` is that of the metric."""

    def __init__(
        self, caller: Caller, request: web.Request, run: Run, attempt: Attempt, asked: Asked, trace_id: str
    ) -> None:
        self.outcome = "left"
        self._caller = caller
        self._request = request
        self._run = run
        self._attempt = attempt
        self._asked = asked
        self._trace_id = trace_id
        self._model: Model = caller.catalogue.default
        self._counted = False

    async def answer(self) -> web.StreamResponse:
        """Ask, pass on and count. Troubles are told to the gateway and kept in the run's meter."""
        opener: Any = partial(Relay, self._asked.wants_usage) if self._asked.streamed else Whole
        try:
            call: Relay | Whole = await self._caller.first_words(
                opener,
                self._run.model,
                self._asked,
                self._attempt,
                run_id=self._run.run_id,
                trying=self._trying,
                attributes={"run.id": self._run.run_id},
            )
        except Trouble as trouble:
            self._failed(trouble)
            return failure(*_words(trouble))
        self._run.at_end(self._attempt, partial(self._count, call))
        failed: Trouble | None = None
        response = web.StreamResponse(headers=HEADERS)
        try:
            if isinstance(call, Whole):
                self._answered(call)
                return web.Response(body=self._hear(call.first), content_type="application/json")
            await self._pass_on(call, response)
        except Trouble as trouble:
            failed = trouble
            self._failed(trouble)
            await self._break_off(response, trouble)
        except _GoneError:
            pass
        finally:
            self._count(call)
            call.close(failed)
        return response

    def _trying(self, model: Model) -> None:
        self._model = model
        self._run.trying(model)

    def _count(self, call: Relay | Whole) -> None:
        """Count what was used, whole or not."""
        if not self._counted:
            self._counted = True
            usage = call.usage or estimated(self._asked, call.said)
            self._run.count(usage, self._model)
            call.count(usage.prompt_tokens, usage.completion_tokens)

    def _answered(self, call: Relay | Whole) -> None:
        """The model is done. Said before the gateway knows, which may end the run then."""
        self._count(call)
        self._run.meter.trouble = None
        self.outcome = "answered"

    def _failed(self, trouble: Trouble) -> None:
        if trouble.reason is not Reason.RUN_TERMINAL:  # which the run's own end is
            self._run.failed(trouble, self._trace_id)
        self.outcome = str(trouble.reason).lower()

    def _hear(self, parts: list[Part]) -> bytes:
        for part in parts:
            if part.thought:
                self._run.hear(part.thought, self._trace_id)
        return b"".join(part.data for part in parts)

    async def _pass_on(self, call: Relay, response: web.StreamResponse) -> None:
        """Pass an answer on to its end. Raises Trouble, _GoneError."""
        try:
            await response.prepare(self._request)
        except OSError:
            raise _GoneError from None
        parts = call.first
        while not call.over:
            await self._send(response, self._hear(parts))
            parts = await call.read()
        data = self._hear(parts)
        self._answered(call)
        await self._send(response, data + call.rest())
        with suppress(OSError, Trouble):  # who has all may have left
            await self._attempt.wait(response.write_eof, WRITE_TIMEOUT_S)
        await call.drain()

    async def _send(self, response: web.StreamResponse, data: bytes) -> None:
        if not data:
            return
        try:
            await self._attempt.wait(partial(response.write, data), WRITE_TIMEOUT_S)
        except OSError:
            raise _GoneError from None
        except Trouble as trouble:
            if trouble.reason is not Reason.MODEL_TIMEOUT:
                raise
            self._hang_up()
            raise _GoneError from None

    async def _break_off(self, response: web.StreamResponse, trouble: Trouble) -> None:
        """Tell that the answer is not whole: what only ends in the middle is asked for again and again."""
        try:
            async with asyncio.timeout(LAST_WORDS_TIMEOUT_S):
                await response.write(b"data: " + _encode(_error(*_words(trouble))) + b"\n\n")
                await response.write_eof()
        except (OSError, TimeoutError):
            self._hang_up()

    def _hang_up(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def failure(code: str, message: str, status: int = 400) -> web.Response:
    """A failure in OpenAI's shape."""
    return web.json_response(_error(code, message), status=status)


def _words(trouble: Trouble) -> tuple[str, str]:
    """What a gateway reads of a trouble. Its own words are for the run: a gateway would guess at their meaning."""
    if trouble.reason is Reason.MODEL_CONTEXT_OVERFLOW:
        text = "This model's maximum context length is exceeded. Please reduce the length of the messages."
        return "context_length_exceeded", text
    return "model_call_failed", "The model call failed."
