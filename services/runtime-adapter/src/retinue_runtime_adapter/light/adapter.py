"""The light runtime's loop: resolve the model, call it, tell what it says. Read this first."""

import aiohttp
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest, Runtime
from retinue_kit import deadlines
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach

from retinue_runtime_adapter.adapter import Adapter, Batches
from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.crash_points import Point
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light import wire
from retinue_runtime_adapter.light.answer import Answer, failed, repeated
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import RUN_TIME_S, Caller
from retinue_runtime_adapter.light.words import Asked, Words

OUTPUT_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes for an attempt whose request names no limit: a long book chapter."""


class LightAdapter(Adapter):
    """Drives models by name, with fallbacks and credentials. Keeps nothing between runs."""

    def __init__(self, settings: Settings, models: Models, http: aiohttp.ClientSession, clock: Clock) -> None:
        self.name = "light"
        self._caller = Caller(settings, models, http, clock)
        self._http = http
        self._running: dict[tuple[str, str], Attempt] = {}

    def describe(self) -> Runtime:
        catalogue = self._caller.catalogue
        default = catalogue.default
        origin = self._caller.providers[default.provider].origin
        return Runtime(
            name=self.name,
            available=True,
            detail=f"{default.model} model at {origin}",
            models=catalogue.names(),
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
        call: Words | None = None
        trouble: Trouble | None = None
        try:
            reach(Point.CALLING)
            call = await self._caller.first_words(
                Words,
                request.model,
                Asked(messages, wire.parameters(request.parameters)),
                attempt,
                run_id=request.run_id,
                trying=answer.trying,
            )
            said = call.first
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
