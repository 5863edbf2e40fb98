"""Spans reach the operator's collector where one is named, beside the local store."""

import grpc
import pytest
import pytest_asyncio
from opentelemetry import context
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from retinue_kit import spans, telemetry
from retinue_kit.config import SettingError

TRACE_ID = "a" * 32
TRACEPARENT = f"00-{TRACE_ID}-{'b' * 16}"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Remembers what it is sent."""

    def __init__(self):
        self.spans = []

    async def Export(self, request, context):
        self.spans += [
            (resource.resource.attributes, span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest_asyncio.fixture
async def collector():
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(None)


async def test_a_sampled_span_goes_to_the_collector_and_the_local_store_an_unsampled_one_nowhere(
    collector, tmp_path, monkeypatch, eventually
):
    monkeypatch.setattr(telemetry, "_tracer", telemetry._tracer)  # put back afterwards
    monkeypatch.setattr(telemetry, "_set_up_logs", lambda *_: None)
    environ = {"RETINUE_TRACE_DIR": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
    provider = telemetry.set_up("router", environ)
    outside = context.attach(context.Context())
    try:
        with telemetry.span("kept", traceparent=f"{TRACEPARENT}-01"):
            pass
        with telemetry.span("not kept", traceparent=f"{TRACEPARENT}-00"):
            pass
        with telemetry.span("nor without a parent"):
            pass
        attributes, sent = (await eventually(lambda: collector.spans))[0]
    finally:
        context.detach(outside)
        provider.shutdown()
    assert [span.name for _, span in collector.spans] == ["kept"]
    assert (sent.name, sent.trace_id.hex()) == ("kept", TRACE_ID)
    assert {a.key: a.value.string_value for a in attributes}["service.name"] == "router"
    assert [span.name for span in spans.read_trace(tmp_path, TRACE_ID)] == ["kept"]


def test_a_protocol_that_is_not_spoken_is_refused_by_name():
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with pytest.raises(SettingError, match="OTEL_EXPORTER_OTLP_PROTOCOL='http/protobuf' is not spoken here"):
        telemetry.set_up("router", environ)
