"""The light runtime: one invocation after the other (see turn.py), each of which can be aborted. Read this first."""

from contextlib import aclosing

import aiohttp
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest, Runtime
from retinue_kit import deadlines
from retinue_kit.clock import Clock

from retinue_runtime_adapter.adapter import Adapter, Batches
from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.domain import windows
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light import state, wire
from retinue_runtime_adapter.light.answer import Answer, failed, repeated
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import RUN_TIME_S, Caller
from retinue_runtime_adapter.light.turn import Turn
from retinue_runtime_adapter.tools.assembly import NONE, Tools
from retinue_runtime_adapter.tools.ledger import Begun

OUTPUT_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes for an attempt whose request names no limit: a long book chapter."""


class LightAdapter(Adapter):
    """Drives models by name, with fallbacks and credentials. Keeps nothing between runs."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        http: aiohttp.ClientSession,
        clock: Clock,
        tools: Tools | None = None,
    ) -> None:
        self.name = "light"
        self._settings = settings
        self._tools = tools or NONE
        self._caller = Caller(settings, models, http, clock)
        self._http = http
        self._begun = Begun()
        self._running: dict[tuple[str, str], Attempt] = {}

    def describe(self) -> Runtime:
        catalogue = self._caller.catalogue
        default = catalogue.default
        origin = self._caller.providers[default.provider].origin
        return Runtime(
            name=self.name,
            available=True,
            detail=f"{default.model} model at {origin}" + windows.said_of(catalogue, self._settings.window_min_tokens),
            models=catalogue.names(),
            window_tokens=catalogue.windows(),
            busy_count=len(self._running),
            tools=self._tools is not NONE,
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
        answer = Answer(reasoning=request.reasoning, size_max_bytes=_size_max_bytes(request))
        attempt: Attempt | None = None
        trouble: Trouble | None = None
        try:
            progress = state.read(request.checkpoint, request.attempt)
            answer = Answer(reasoning=request.reasoning, size_max_bytes=_size_max_bytes(request), before=progress)
            run_time_s = request.run_time.ToMilliseconds() / 1000 or RUN_TIME_S
            attempt = self._running[key] = Attempt(deadlines.timeout_s(run_time_s))
            turn = Turn(request, self._caller, self._tools, attempt, progress, answer, self._begun)
            async with aclosing(turn.batches()) as batches:
                async for events in batches:
                    yield events
        except Trouble as error:
            trouble = error
        finally:
            if attempt is not None and self._running.get(key) is attempt:
                del self._running[key]
        if trouble is not None:
            yield [failed(trouble, answer.used())]


def _size_max_bytes(request: InvokeRequest) -> int:
    return request.output_size_bytes or OUTPUT_SIZE_MAX_BYTES
