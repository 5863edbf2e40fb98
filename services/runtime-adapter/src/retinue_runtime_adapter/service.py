"""The wire. Translating is all that happens here, so the verbs have no module of their own."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import (
    DESCRIPTOR,
    AbortRunRequest,
    AbortRunResponse,
    DescribeRuntimesRequest,
    DescribeRuntimesResponse,
    ExportContextRequest,
    ExportContextResponse,
    ImportContextRequest,
    ImportContextResponse,
    InvokeRequest,
    InvokeResponse,
    ReattachRequest,
    ReattachResponse,
)
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2_grpc import (
    RuntimeAdapterServiceServicer,
    add_RuntimeAdapterServiceServicer_to_server,
)
from retinue_kit import wire
from retinue_kit.crashing import reach
from retinue_kit.server import Service

from retinue_runtime_adapter.adapter import Registry
from retinue_runtime_adapter.crash_points import EVENT_POINTS, Point
from retinue_runtime_adapter.running import Running

Context = grpc.aio.ServicerContext[Any, Any]


class RuntimeAdapterServicer(RuntimeAdapterServiceServicer):
    """Finds the runtime, checks the token, passes batches of events on."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._running = Running()

    async def Invoke(self, request: InvokeRequest, context: Context) -> AsyncIterator[InvokeResponse]:
        adapter = self._registry.get(request.runtime)
        with self._running.attempt(request.tenant_id, request.session_id, request.fencing_token) as guard:
            await wire.accept(context)
            reach(Point.ADMITTED)
            # Closed here and not by the collector: a caller that leaves must not pay for another token.
            async with aclosing(adapter.invoke(request)) as batches:
                async for events in guard.follow(batches):
                    for event in events:
                        reach(EVENT_POINTS.get(event.WhichOneof("event")))
                    yield InvokeResponse(events=events)
                    reach(Point.TOLD)

    async def Reattach(self, request: ReattachRequest, context: Context) -> AsyncIterator[ReattachResponse]:
        adapter = self._registry.get(request.runtime)
        with self._running.attempt(request.tenant_id, request.session_id, request.fencing_token) as guard:
            async with aclosing(adapter.reattach(request)) as batches:
                async for events in guard.follow(batches):
                    yield ReattachResponse(events=events)

    async def AbortRun(self, request: AbortRunRequest, context: Context) -> AbortRunResponse:
        adapters = [self._registry.get(request.runtime)] if request.runtime else self._registry.all()
        return AbortRunResponse(aborted=any(a.abort(request.tenant_id, request.run_id) for a in adapters))

    async def DescribeRuntimes(self, request: DescribeRuntimesRequest, context: Context) -> DescribeRuntimesResponse:
        return DescribeRuntimesResponse(runtimes=[adapter.describe() for adapter in self._registry.all()])

    async def ExportContext(self, request: ExportContextRequest, context: Context) -> ExportContextResponse:
        adapter = self._registry.get(request.runtime)
        return ExportContextResponse(context=await adapter.export_context(request))

    async def ImportContext(self, request: ImportContextRequest, context: Context) -> ImportContextResponse:
        adapter = self._registry.get(request.runtime)
        return ImportContextResponse(losses=await adapter.import_context(request))


def service(registry: Registry) -> Service:
    """The service, ready to be added to a server."""
    name = DESCRIPTOR.services_by_name["RuntimeAdapterService"].full_name
    return Service(add_RuntimeAdapterServiceServicer_to_server, RuntimeAdapterServicer(registry), name)
