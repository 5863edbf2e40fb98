"""A collector for Envoy's own spans: the local store, and whatever collector the operator has."""

import asyncio
import re
from pathlib import Path

import grpc
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from retinue_kit.spans import SpanFile, StoredSpan

WAITING_MAX = 64
"""Batches of spans that wait; more are dropped, so that a slow collector costs traces, not memory."""

FORWARD_TIMEOUT_S = 5.0
FILE_NAME = "envoy.jsonl"
_TOKEN = re.compile(r"(access_token=)[^&\s]+")
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves opentelemetry.proto.collector.trace.v1.TraceService, for Envoy. Run `work_for_ever` beside it."""

    def __init__(self, folder: str, endpoint: str) -> None:
        self._file = SpanFile(Path(folder) / FILE_NAME) if folder else None
        self._waiting: asyncio.Queue[trace_service_pb2.ExportTraceServiceRequest] = asyncio.Queue(WAITING_MAX)
        self._channel = _channel(endpoint) if endpoint else None

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Take spans; they are dropped if too many wait."""
        try:
            self._waiting.put_nowait(request)
        except asyncio.QueueFull:
            log.info("spans dropped")
        return trace_service_pb2.ExportTraceServiceResponse()

    async def work_for_ever(self) -> None:
        """Store and forward what comes in."""
        while True:
            request = await self._waiting.get()
            _scrub(request)
            if self._file is not None:
                try:
                    await asyncio.to_thread(self._file.write, stored(request))
                except OSError as error:
                    log.info("spans not stored", detail=str(error))
            if self._channel is not None:
                await self._forward(self._channel, request)

    async def _forward(self, channel: grpc.aio.Channel, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        try:
            stub = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]
            await stub.Export(request, timeout=FORWARD_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("spans not forwarded", detail=str(error.code()))

    async def close(self) -> None:
        """Close the channel to the operator's collector."""
        if self._channel is not None:
            await self._channel.close()


def _channel(endpoint: str) -> grpc.aio.Channel:
    scheme, _, target = endpoint.partition("://")
    if scheme == "https":
        return grpc.aio.secure_channel(target.rstrip("/"), grpc.ssl_channel_credentials())
    return grpc.aio.insecure_channel((target or scheme).rstrip("/"))


def _scrub(request: trace_service_pb2.ExportTraceServiceRequest) -> None:
    """Take tokens out of addresses, in case one was recorded with its query."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                for attribute in span.attributes:
                    if "access_token=" in attribute.value.string_value:
                        attribute.value.string_value = _TOKEN.sub(r"\1…", attribute.value.string_value)


def stored(request: trace_service_pb2.ExportTraceServiceRequest) -> list[StoredSpan]:
    """Write spans as the local store keeps them."""
    return [
        _stored(span) for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans
    ]


def _stored(span: trace_pb2.Span) -> StoredSpan:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return StoredSpan(
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        service="envoy",
        name=span.name,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        error=(span.status.message or "error") if failed else "",
        attributes={attribute.key: _plain(attribute.value) for attribute in span.attributes},
    )


def _plain(value: common_pb2.AnyValue) -> str | int | float | bool:
    match value.WhichOneof("value"):
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case _:
            return value.string_value
