"""The only model endpoint that a gateway knows: OpenAI's chat completions on loopback, answered by the run's own model.

A gateway holds one credential per tenant and no key of a provider; which model a call reaches, with which parameters,
and who pays, is the run's business and decided here.

Whatever fails is told as 400 in OpenAI's shape and in words of our own: OpenClaw ends a run on that at once. A 401 or
403, or words about credentials, would make it refuse the tenant's calls for a minute, whatever credential comes next;
429 and 5xx it repeats for many seconds, after we have done so already. The trouble itself is in the run's meter.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import aiohttp
import msgspec
import structlog
from aiohttp import web
from opentelemetry.trace import SpanKind
from retinue_kit import telemetry
from retinue_kit.clock import Clock
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason
from retinue_kit.metrics import counter

from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import Caller
from retinue_runtime_adapter.openclaw.listening import endpoint
from retinue_runtime_adapter.openclaw.ports import Meter, ModelProxy
from retinue_runtime_adapter.openclaw.prompt import Message
from retinue_runtime_adapter.openclaw.proxy.asking import Asked, MalformedError
from retinue_runtime_adapter.openclaw.proxy.credentials import PREFIX, Key
from retinue_runtime_adapter.openclaw.proxy.exchange import HEADERS, Exchange, failure
from retinue_runtime_adapter.openclaw.proxy.ledger import CrowdedError, Ledger, Run
from retinue_runtime_adapter.openclaw.proxy.relay import DONE

BODY_SIZE_MAX_BYTES = 32 * 1024 * 1024
"""Bytes of a request: a long conversation with a few pictures."""

BODY_TIMEOUT_S = 30.0
"""Seconds for a request's body, which comes from this machine or the next."""

SHUTDOWN_TIMEOUT_S = 0.5
"""Seconds for answers under way when the endpoint closes."""

MODEL = "default"
"""The one model there is, as gateways see it."""

WARM_ANSWER = "Ready."

model_calls = counter("openclaw_model_calls", "Calls of models that gateways made, by how they ended.", ["outcome"])
"""Outcomes: answered, warm, left (the gateway hung up), refused (by us), or a trouble's reason in small letters."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_encode = msgspec.json.Encoder().encode


class LoopbackModelProxy(ModelProxy):
    """Serves from `start` to `close`; `base_url` is known once it serves."""

    def __init__(self, settings: Settings, models: Models, http: aiohttp.ClientSession, clock: Clock) -> None:
        self.base_url = ""
        self._address = settings.openclaw_proxy_address
        self._caller = Caller(settings, models, http, clock)
        self._ledger = Ledger()
        self._clock = clock
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises SettingError for an address that is none, or taken."""
        host, port = endpoint(_SETTING, self._address)
        app = web.Application(client_max_size=BODY_SIZE_MAX_BYTES, middlewares=[_in_shape])
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        # A gateway that hangs up must be noticed, or its call would go on and be paid for.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise SettingError(f"{_SETTING}={self._address!r} cannot be listened on: {error.strerror}.") from None
        self._runner = runner
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - any address is reached by loopback
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}/v1"

    async def close(self) -> None:
        """Let go of every call. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def credential(self, instance_id: str, tenant_id: str) -> str:
        return self._ledger.credentials.make((instance_id, tenant_id))

    def renew(self, instance_id: str, tenant_id: str) -> str:
        return self._ledger.credentials.renew((instance_id, tenant_id))

    def renewed(self, instance_id: str, tenant_id: str) -> None:
        self._ledger.renewed((instance_id, tenant_id), self._clock.monotonic())

    def assign(self, instance_id: str, name: str, tenant_id: str) -> None:
        self._ledger.credentials.assign((instance_id, name), (instance_id, tenant_id))

    def forget(self, instance_id: str, tenant_id: str = "") -> None:
        self._ledger.credentials.forget(instance_id, tenant_id)

    def run(
        self,
        *,
        instance_id: str,
        tenant_id: str,
        run_id: str,
        trace_id: str,
        model: str,
        parameters: dict[str, Any],
        on_reasoning: Callable[[str], None] | None,
        before: Sequence[Message] = (),
        tools: Sequence[str] | None = None,
        preface: str = "",
        on_overflow: Callable[[Trouble], None] | None = None,
    ) -> AbstractContextManager[Meter]:
        run = Run(
            run_id=run_id,
            trace_id=trace_id,
            model=model,
            parameters=parameters,
            on_reasoning=on_reasoning,
            before=before,
            tools=tools,
            preface=preface,
            on_overflow=on_overflow,
        )
        return self._ledger.run((instance_id, tenant_id), run)

    def warm(self, instance_id: str, tenant_id: str) -> AbstractContextManager[None]:
        return self._ledger.warm((instance_id, tenant_id))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        _key, refusal = self._key(request)
        if refusal is not None:
            return refusal
        found = {"id": MODEL, "object": "model", "created": 0, "owned_by": "retinue"}
        return web.json_response({"object": "list", "data": [found]})

    def _key(self, request: web.Request) -> tuple[Key, web.Response | None]:
        """Whose call it is, or its refusal.

        A credential that is over is refused as any failure is, so that the tenant is served at once under the next one;
        401 is for whoever is no gateway of ours.
        """
        credential = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        key = self._ledger.key(credential, self._clock.monotonic())
        if key is not None:
            return key, None
        model_calls.labels("refused").inc()
        if credential.startswith(PREFIX):
            return ("", ""), failure("credential_over", "This credential is no longer in use.")
        return ("", ""), failure("invalid_credential", "This endpoint is for gateways of this deployment.", 401)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        key, refusal = self._key(request)
        if refusal is not None:
            return refusal
        trace_id = _trace_id(request.headers.get("traceparent", ""))
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            return _refused("request_timeout", "The request's body did not come in time.")
        except web.HTTPRequestEntityTooLarge:
            run = self._ledger.find(key, trace_id)
            if run is not None:
                run.meter.trouble = Trouble(Reason.MODEL_REQUEST_REFUSED, "The request to the model is too large.")
            return _refused("request_too_large", f"The request is larger than {BODY_SIZE_MAX_BYTES} bytes.")
        run = self._ledger.find(key, trace_id)
        if run is None:
            if self._ledger.is_warming(key):
                return await _warmed(request, body)
            return _refused("no_run", "No run of this credential's tenant is under way.")
        try:
            with run.attempt() as attempt:
                return await self._answer(request, run, attempt, body, trace_id)
        except CrowdedError:
            return _refused("too_many_calls", "The run has too many calls under way.")

    async def _answer(
        self, request: web.Request, run: Run, attempt: Attempt, body: bytes, trace_id: str
    ) -> web.StreamResponse:
        try:
            asked = Asked.read(body, run.before, run.parameters, run.tools, run.preface)
        except MalformedError as error:
            run.meter.trouble = Trouble(Reason.MODEL_REQUEST_REFUSED, "The request to the model is malformed.")
            return _refused("malformed", str(error))
        # What the gateway calls its span is told to nobody, so the run's own span is the parent if the trace is its.
        known = bool(run.traceparent) and trace_id == run.trace_id
        parent = run.traceparent if known else request.headers.get("traceparent", "")
        with telemetry.span("model_proxy", kind=SpanKind.SERVER, traceparent=parent) as span:
            span.set_attribute("run.id", run.run_id)
            exchange = Exchange(self._caller, request, run, attempt, asked, trace_id)
            try:
                return await exchange.answer()
            finally:
                model_calls.labels(exchange.outcome).inc()


_SETTING = "RETINUE_OPENCLAW_PROXY_ADDRESS"


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else ""


def _refused(code: str, message: str) -> web.Response:
    model_calls.labels("refused").inc()
    return failure(code, message)


async def _warmed(request: web.Request, body: bytes) -> web.StreamResponse:
    """Answer a warm-up as a model would, without one."""
    try:
        streamed = Asked.read(body, (), {}).streamed
    except MalformedError as error:
        return _refused("malformed", str(error))
    model_calls.labels("warm").inc()
    head = {"id": "chatcmpl-warm", "created": 0, "model": MODEL}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    message = {"role": "assistant", "content": WARM_ANSWER}
    if not streamed:
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunk = {**head, "object": "chat.completion.chunk"}
    said = {"index": 0, "delta": message, "finish_reason": None}
    done = {"index": 0, "delta": {}, "finish_reason": "stop"}
    events = [{**chunk, "choices": [said]}, {**chunk, "choices": [done]}, {**chunk, "choices": [], "usage": usage}]
    data = b"".join(b"data: " + _encode(event) + b"\n\n" for event in events) + DONE
    return web.Response(body=data, headers=HEADERS)


@web.middleware
async def _in_shape(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
    """Tell what the server itself refuses in the same shape; what breaks in here ends the run and is not repeated."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except web.HTTPException as refusal:
        return failure("not_here", f"This endpoint has no such thing: {refusal.reason}.", refusal.status)
    except Exception:
        log.exception("a model call broke")
        return failure("model_call_failed", "The model call failed.")
