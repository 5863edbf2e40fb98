"""The light runtime's loop: resolve the model, call it, tell what it says. Read this first."""

import asyncio
import random
from functools import partial
from typing import Any

import aiohttp
import structlog
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest, Runtime
from retinue_kit import deadlines
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason

from retinue_runtime_adapter.adapter import Adapter, Batches
from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.crash_points import Point
from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light import wire
from retinue_runtime_adapter.light.answer import Answer, failed, repeated
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.endpoint import Call, Provider, Said, begin

TRIES_MAX = 3
"""Calls of one model within an attempt: the first, and two more for a hiccup or a refused credential. What lasts longer
is for the next model, and then for the run's next attempt."""

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 0.4
"""Pause before a model is called again, halved at random so that many do not come back at once: together less than a
second, since a person is waiting."""

RUN_TIME_S = 600.0
"""Time for an attempt whose request names none."""

OUTPUT_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes for an attempt whose request names no limit: a long book chapter."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class LightAdapter(Adapter):
    """Drives models by name, with fallbacks and credentials. Keeps nothing between runs."""

    def __init__(self, settings: Settings, models: Models, http: aiohttp.ClientSession, clock: Clock) -> None:
        self.name = "light"
        self._settings = settings
        self._catalogue = models.catalogue
        self._providers = {name: Provider(name, entry) for name, entry in models.providers.items()}
        self._http = http
        self._clock = clock
        self._running: dict[tuple[str, str], Attempt] = {}

    def describe(self) -> Runtime:
        default = self._catalogue.default
        origin = self._providers[default.provider].origin
        return Runtime(
            name=self.name,
            available=True,
            detail=f"{default.model} model at {origin}",
            models=self._catalogue.names(),
            reasoning=True,
        )

    def abort(self, tenant_id: str, run_id: str) -> bool:
        attempt = self._running.get((tenant_id, run_id))
        if attempt is not None:
            attempt.abort()
        return attempt is not None

    async def close(self) -> None:
        await self._http.close()

    async def invoke(self, request: InvokeRequest) -> Batches:
        done = wire.read_checkpoint(request.checkpoint)
        if done is not None:
            yield repeated(done, request.checkpoint)
            return
        key = (request.tenant_id, request.run_id)
        attempt = Attempt(deadlines.timeout_s(request.run_time.ToMilliseconds() / 1000 or RUN_TIME_S))
        self._running[key] = attempt
        messages = wire.messages(request)
        answer = Answer(
            reasoning=request.reasoning,
            size_max_bytes=request.output_size_bytes or OUTPUT_SIZE_MAX_BYTES,
            input_characters=sum(len(message["content"]) for message in messages),
        )
        call: Call | None = None
        trouble: Trouble | None = None
        try:
            reach(Point.CALLING)
            call, said = await self._first_words(request, attempt, answer, messages)
            reach(Point.CALLED)
            while not call.over:
                events = answer.add(said)
                if events:
                    yield events
                said = await call.read()
            events = answer.add(said)
            ending, used = answer.end(call.usage)
            call.count(used.input_tokens, used.output_tokens)
            yield events + ending
            await call.drain()
        except Trouble as error:
            trouble = error
        finally:
            if call is not None:
                call.close(trouble)
            if self._running.get(key) is attempt:
                del self._running[key]
        if trouble is not None:
            yield [failed(trouble, answer.used())]

    async def _first_words(
        self, request: InvokeRequest, attempt: Attempt, answer: Answer, messages: list[wire.Message]
    ) -> tuple[Call, list[Said]]:
        """Call the model, or those that stand in for it, until one speaks. Raises the last one's Trouble."""
        if request.model and not self._catalogue.knows(request.model):
            log.warning("unknown model, the default is used", model=request.model, run_id=request.run_id)
        options = wire.parameters(request.parameters)
        trouble: Trouble | None = None
        for model in self._catalogue.chain(request.model):
            answer.model = model.name
            try:
                return await self._call(attempt, model, messages, options)
            except Trouble as error:
                log.warning("model failed", model=model.name, reason=str(error.reason), run_id=request.run_id)
                if error.reason in (Reason.RUN_TIMEOUT, Reason.RUN_TERMINAL):
                    raise
                trouble = error
        assert trouble is not None
        raise trouble

    async def _call(
        self, attempt: Attempt, model: Model, messages: list[wire.Message], options: dict[str, Any]
    ) -> tuple[Call, list[Said]]:
        """Call one model, again within bounds where that can help. Raises Trouble."""
        provider = self._providers[model.provider]
        if provider.window_tokens:
            tokens = wire.estimate(sum(len(message["content"]) for message in messages))
            if tokens > provider.window_tokens:
                raise Trouble(
                    Reason.MODEL_CONTEXT_OVERFLOW,
                    f"The conversation has about {tokens} tokens; the model can read {provider.window_tokens}.",
                )
        tries = 0
        while True:
            body = wire.body(model.model, messages, options)
            tries += 1
            try:
                return await begin(self._http, self._settings, self._clock, provider, model, attempt, body)
            except Trouble as error:
                if tries == TRIES_MAX:
                    raise
                if error.of_credential and provider.credentials.ready(self._clock.monotonic()):
                    continue
                joined = wire.joined(messages)
                if error.reason is Reason.MODEL_ROLE_ORDER and len(joined) < len(messages):
                    messages = joined
                    continue
                if not error.again:
                    raise
                backoff_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** (tries - 1)) * random.uniform(0.5, 1)  # noqa: S311
                pause_s = max(backoff_s, error.error.retry_after_s or 0)
            await attempt.wait(partial(asyncio.sleep, pause_s), pause_s + RUN_TIME_S)
