"""Health, readiness, documents, keys, refusals, and spans from Envoy."""

from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from retinue_gateway import readiness
from retinue_kit import spans


async def test_liveness_and_readiness(mesh: Any, redis_server: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(readiness, "FRESH_S", 0.0)
    assert (await mesh.http.get("/healthz")).json() == {"state": "alive"}
    answer = await mesh.http.get("/readyz")
    assert answer.status_code == 200
    names = ("router", "directory", "policy", "runtime-adapter", "postgres", "redis")
    assert answer.json() == {"state": "ready", "dependencies": dict.fromkeys(names, "ready")}
    redis_server.stop()
    answer = await mesh.http.get("/readyz")
    assert (answer.status_code, answer.json()["state"], answer.headers["retry-after"]) == (503, "unavailable", "1")
    assert answer.json()["dependencies"]["redis"] == "unavailable"
    assert (await mesh.http.get("/healthz")).status_code == 200


async def test_documents_are_served(mesh: Any) -> None:
    api = (await mesh.http.get("/openapi.json")).json()
    assert api["openapi"] == "3.1.0"
    page = await mesh.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "http://" not in page.text
    assert "https://" not in page.text


async def test_signing_keys_are_repeated_while_the_directory_is_away(mesh: Any) -> None:
    assert (await mesh.http.get("/.well-known/jwks.json")).json() == {"keys": []}
    mesh.directory.GetKeySet = None
    assert (await mesh.http.get("/.well-known/jwks.json")).json() == {"keys": []}


async def test_other_paths_and_methods_are_not_found(mesh: Any) -> None:
    for method, path in (("GET", "/nothing"), ("POST", "/healthz"), ("GET", "/v1/chat/completions")):
        answer = await mesh.http.request(method, path)
        assert answer.status_code == 404
        assert answer.json()["details"][0]["reason"] == "ROUTE_NOT_FOUND"


async def test_envoys_spans_are_stored_without_tokens(mesh: Any, eventually: Any) -> None:
    span = trace_pb2.Span(
        trace_id=bytes.fromhex("ab" * 16),
        span_id=bytes.fromhex("cd" * 8),
        name="ingress",
        kind=trace_pb2.Span.SPAN_KIND_SERVER,
        start_time_unix_nano=1,
        end_time_unix_nano=2,
        attributes=[
            common_pb2.KeyValue(
                key="http.url", value=common_pb2.AnyValue(string_value="http://x/v1/ws?access_token=secret&a=1")
            ),
            common_pb2.KeyValue(key="http.status_code", value=common_pb2.AnyValue(int_value=200)),
        ],
    )
    resource = trace_pb2.ResourceSpans(scope_spans=[trace_pb2.ScopeSpans(spans=[span])])
    async with grpc.aio.insecure_channel(mesh.grpc_address, [("grpc.default_authority", "gateway")]) as channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)
        await stub.Export(trace_service_pb2.ExportTraceServiceRequest(resource_spans=[resource]))
    (found,) = await eventually(lambda: spans.read_trace(mesh.run_dir, "ab" * 16))
    assert (found.service, found.name, found.span, found.kind) == ("envoy", "ingress", "cd" * 8, "SERVER")
    assert found.attributes == {"http.url": "http://x/v1/ws?access_token=…&a=1", "http.status_code": 200}
