"""What Envoy does at the edge, before and around the gateway."""

import asyncio
import ssl
import time

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from retinue.edge.v1 import contact_pb2, edge_service_pb2_grpc
from retinue_gateway import envoy_filters


def assert_refused(answer, status, code, reason):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    body = answer.json()
    assert body["code"] == code
    assert body["message"]
    assert body["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "retinue",
        "metadata": {},
    }
    assert len(answer.headers["x-trace-id"]) == 32


async def test_json_becomes_a_call_with_the_tokens_identity(mesh, client):
    headers = {**mesh.bearer(), "idempotency-key": "k1", "x-retinue-tenant": "ten_evil", "x-tenant-plan": "gold"}
    answer = await client.post("/v1/contacts/anna/messages", json={"text": "hi", "unknown": 1}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["run"]["run_id"] == "run_1"
    assert answer.json()["run"]["attempt_count"] == 0
    assert len(answer.headers["x-trace-id"]) == 32
    seen = mesh.edge.metadata
    assert seen["x-retinue-tenant"] == "ten_1"
    assert seen["x-retinue-principal"] == "usr_1"
    assert seen["x-retinue-scope"] == "chat"
    assert seen["x-retinue-jti"] == "jti_1"
    assert abs(int(seen["x-retinue-exp"]) - time.time() - 60) < 5
    assert seen["idempotency-key"] == "k1"
    assert "x-tenant-plan" not in seen
    assert "authorization" not in seen
    assert seen["traceparent"].split("-")[1] == answer.headers["x-trace-id"]


@pytest.mark.parametrize(
    ("path", "contact"),
    [
        ("Zo%C3%AB", "Zoë"),
        ("a%40b.c%3Ad%2Be", "a@b.c:d+e"),
        ("a@b.c:d+e", "a@b.c:d+e"),
        ("%E4%BD%A0%E5%A5%BD", "你好"),
    ],
)
async def test_contact_names_arrive_decoded(mesh, client, path, contact):
    answer = await client.get(f"{mesh.url}/v1/contacts/{path}?verbose=1", headers=mesh.bearer())
    assert answer.status_code == 200, answer.text
    assert mesh.edge.requests[-1].contact == contact


@pytest.mark.parametrize("name", ["a%2Fb", "a%2fb", "..%2F..%2Fetc", "a%5Cb", "a%5cb"])
async def test_an_escaped_slash_is_refused(mesh, client, name):
    answer = await client.get(f"/v1/contacts/{name}?x=1", headers=mesh.bearer())
    assert answer.status_code == 400
    assert answer.json()["details"][0]["reason"] == "FIELD_INVALID"
    assert answer.json()["message"] == "The path holds an escaped slash."
    assert len(answer.headers["x-trace-id"]) == 32
    assert mesh.edge.requests == []


async def test_an_escaped_slash_in_a_query_stays_there(mesh, client):
    answer = await client.get("/v1/contacts/a?x=b%2Fc", headers=mesh.bearer())
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "malformed",
    [
        "x",
        "00-0-0-00",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "1" * 31 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-1",
        "00-" + "G" * 32 + "-" + "1" * 16 + "-01",
        "ff-" + "1" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more",
        "",
    ],
)
async def test_a_malformed_traceparent_is_ignored_and_a_trace_begun(mesh, client, malformed):
    headers = {**mesh.bearer(), "traceparent": malformed, "x-retinue-traceparent": "00-" + "2" * 32 + "-0-01"}
    answer = await client.get("/v1/contacts/a", headers=headers)
    assert answer.status_code == 200
    trace_id = answer.headers["x-trace-id"]
    assert len(trace_id) == 32
    assert trace_id not in ("1" * 32, "2" * 32)
    assert mesh.edge.metadata["traceparent"].split("-")[1] == trace_id
    assert "x-retinue-traceparent" not in mesh.edge.metadata


async def test_no_token_a_bad_one_and_an_expired_one_are_told_apart(mesh, client):
    assert_refused(await client.get("/v1/contacts/a"), 401, 16, "CREDENTIAL_MISSING")
    bad = {"authorization": "Bearer abc"}
    assert_refused(await client.get("/v1/contacts/a", headers=bad), 401, 16, "CREDENTIAL_INVALID")
    old = mesh.bearer(ttl_s=-10)
    assert_refused(await client.get("/v1/contacts/a", headers=old), 401, 16, "CREDENTIAL_EXPIRED")
    other = mesh.bearer(aud="elsewhere")
    assert_refused(await client.get("/v1/contacts/a", headers=other), 401, 16, "CREDENTIAL_INVALID")
    assert mesh.edge.requests == []


async def test_who_cannot_be_known_for_want_of_keys_is_told_to_try_again(keyless_mesh, eventually):
    async with httpx.AsyncClient(base_url=keyless_mesh.url, headers=keyless_mesh.bearer()) as client:
        answer = await client.get("/v1/contacts/a")
        assert_refused(answer, 503, 14, "DEPENDENCY_UNAVAILABLE")
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["www-authenticate"] == "Bearer", "and not the address of the request"
        completion = await client.post("/v1/chat/completions", json={})
        assert (completion.status_code, completion.json()["error"]["type"]) == (503, "server_error")
        assert_refused(await client.get("/v1/contacts/a", headers={"authorization": ""}), 401, 16, "CREDENTIAL_MISSING")
        keyless_mesh.asgi.has_keys = True

        async def known():
            return (await client.get("/v1/contacts/a")).status_code == 200

        await eventually(known)


async def test_a_token_that_expires_is_refused_although_it_was_good(mesh, client, eventually):
    headers = mesh.bearer(ttl_s=1)
    assert (await client.get("/v1/contacts/a", headers=headers)).status_code == 200

    async def refused():
        return (await client.get("/v1/contacts/a", headers=headers)).status_code == 401

    await eventually(refused)


async def test_a_token_in_the_query_is_taken_for_events_only_and_goes_no_further(mesh, client):
    mesh.edge.release.set()
    token = mesh.token()
    answer = await client.get(f"/v1/contacts/a/events?access_token={token}&after=1-0")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert mesh.edge.requests[-1].after == "1-0"
    assert not any(token in value for value in mesh.edge.metadata.values() if isinstance(value, str))
    answer = await client.get(f"/v1/contacts/a?access_token={token}")
    assert_refused(answer, 401, 16, "CREDENTIAL_MISSING")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_events_arrive_one_by_one(mesh, client):
    headers = {**mesh.bearer(), "last-event-id": "1-0"}
    async with client.stream("GET", "/v1/contacts/a/events", headers=headers) as answer:
        parts = answer.aiter_text()
        assert (await anext(parts)).startswith("id: 1-1\n")
        mesh.edge.release.set()
        assert (await anext(parts)).startswith("id: 1-2\n")
    assert mesh.edge.metadata["last-event-id"] == "1-0"


async def test_what_is_not_there_and_wrong_methods_are_404(mesh, client):
    for method, path in [
        ("GET", "/"),
        ("GET", "/v1/nothing"),
        ("PATCH", "/v1/contacts/a"),
        ("DELETE", "/v1/approvals"),
        ("POST", "/healthz"),
        ("POST", "/v1/ws"),
        ("GET", "/.well-known/jwks.json"),
        ("POST", "/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
    ]:
        assert_refused(await client.request(method, path, headers=mesh.bearer()), 404, 5, "ROUTE_NOT_FOUND")


async def test_errors_of_the_gateway_arrive_as_json(mesh, client):
    answer = await client.get("/v1/contacts/nobody", headers=mesh.bearer())
    assert_refused(answer, 404, 5, "CONTACT_NOT_FOUND")
    answer = await client.get("/v1/contacts/busy", headers=mesh.bearer())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    answer = await client.get("/v1/approvals?page_size=7000", headers=mesh.bearer())
    assert answer.status_code == 400
    assert answer.json()["details"][0]["metadata"]["field"] == "page_size"


@pytest.mark.parametrize("body", ["{", "[]", '{"text": 1}', "nonsense", ""])
async def test_bodies_that_are_not_the_json_asked_for_are_400(mesh, client, body):
    headers = {**mesh.bearer(), "content-type": "application/json"}
    answer = await client.post("/v1/contacts/a/messages", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["message"]
    assert answer.json()["details"][0]["reason"] == "FIELD_INVALID"


async def test_bodies_are_bounded(mesh, client):
    headers = {**mesh.bearer(), "content-type": "application/json"}
    size = envoy_filters.BODY_SIZE_MAX_BYTES
    below = b'{"text": "hi", "pad": "' + b"x" * (size - 100) + b'"}'

    async def above():
        for _ in range(17):
            yield b"x" * (size // 16)

    assert (await client.post("/v1/contacts/a/messages", content=below, headers=headers)).status_code == 200
    answer = await client.post("/v1/contacts/a/messages", content=above(), headers=headers)
    assert_refused(answer, 413, 8, "BODY_TOO_LARGE")
    assert (await client.post("/v1/chat/completions", content=below, headers=headers)).status_code == 200
    answer = await client.post("/v1/chat/completions", content=above(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert mesh.asgi.body_sizes[-1] == len(below)


async def test_a_body_that_says_it_is_too_large_is_left_to_who_reads_it_to_its_end(mesh, client):
    size = 10 * envoy_filters.BODY_SIZE_MAX_BYTES
    for path in ("/v1/contacts/a/messages", "/v1/contacts/a/messages:stream", "/v1/chat/completions"):
        await client.post(path, content=b"x" * size, headers=mesh.bearer())
        assert mesh.asgi.body_sizes[-1] == size
        assert mesh.edge.requests == []
    answer = await client.post("/v1/contacts/a/messages", content=b"x" * 2 * envoy_filters.BODY_SIZE_MAX_BYTES)
    assert_refused(answer, 401, 16, "CREDENTIAL_MISSING")


async def test_large_answers_pass(mesh, client):
    mesh.edge.text_size = 3 * 1024 * 1024
    answer = await client.get("/v1/contacts/a", headers=mesh.bearer())
    assert len(answer.json()["display_name"]) == mesh.edge.text_size


async def test_asgi_routes_pass_untranscoded(mesh, client):
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        answer = await client.get(path)
        assert answer.json()["line"] == f"GET {path} HTTP/1.1"
    answer = await client.get("/v1/models", headers=mesh.bearer())
    assert answer.json()["headers"]["x-retinue-tenant"] == "ten_1"
    answer = await client.get("/v1/models")
    assert answer.status_code == 401
    assert answer.json() == {
        "error": {
            "message": "A bearer token is needed.",
            "type": "authentication_error",
            "code": "credential_missing",
            "param": None,
        }
    }
    answer = await client.post("/v1/chat/completions", json={}, headers=mesh.bearer())
    assert answer.json()["line"].startswith("POST /v1/chat/completions")


@pytest.mark.parametrize("way", ["header", "query", "subprotocol"])
async def test_websockets_are_upgraded_with_a_token(mesh, way):
    token = mesh.token()
    headers = {
        "header": f"authorization: Bearer {token}\r\n",
        "query": "",
        "subprotocol": f"sec-websocket-protocol: retinue.v1, bearer.{token}\r\n",
    }[way]
    path = "/v1/ws" + (f"?access_token={token}&v=1" if way == "query" else "")
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    upgrade = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: x\r\n"
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n{upgrade}{headers}\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    writer.close()
    assert "x-retinue-tenant: ten_1" in mesh.asgi.head
    assert "access_token" not in mesh.asgi.head
    if way == "query":
        assert mesh.asgi.head.startswith("GET /v1/ws?v=1 ")


async def test_a_websocket_without_a_token_is_refused(mesh, client):
    assert_refused(await client.get("/v1/ws"), 401, 16, "CREDENTIAL_MISSING")


async def test_grpc_callers_get_grpc_answers(mesh):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = edge_service_pb2_grpc.EdgeServiceStub(channel)
        metadata = [("authorization", f"Bearer {mesh.token()}"), ("x-retinue-tenant", "ten_evil")]
        got = await stub.GetContact(contact_pb2.GetContactRequest(contact="a"), metadata=metadata)
        assert got.contact == "a"
        assert mesh.edge.metadata["x-retinue-tenant"] == "ten_1"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetContact(contact_pb2.GetContactRequest(contact="nobody"), metadata=metadata)
        status = rpc_status.from_call(caught.value)
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "CONTACT_NOT_FOUND"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetContact(contact_pb2.GetContactRequest(contact="a"))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.details() == "Jwt is missing"
        traces = trace_service_pb2_grpc.TraceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await traces.Export(trace_service_pb2.ExportTraceServiceRequest(), metadata=metadata)
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)


async def test_each_tenant_has_a_rate_of_its_own(mesh, client, eventually):
    async def refused():
        _, found, rest = b"".join(await flood(mesh, 5000)).partition(b"HTTP/1.1 429 ")
        return found and rest

    answer = await eventually(refused, timeout_s=30)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nretry-after: 1" in head
    assert b'"type":"rate_limit_error"' in body
    other = mesh.bearer(tenant="ten_2")
    answers = await asyncio.gather(*(client.get("/v1/models", headers=other) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {200}


async def flood(mesh, count):
    """Ask as fast as pipelined connections can; Envoy closes one that it refuses."""
    request = f"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n\r\n".encode()

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
        writer.write(request * (count // 8 - 1) + request.replace(b"host: x", b"host: x\r\nconnection: close"))
        answers = await reader.read(-1)
        writer.close()
        return answers

    return await asyncio.gather(*(one() for _ in range(8)))


async def test_a_gateway_that_is_away_is_503_and_comes_back(mesh, client, eventually):
    await mesh.server.drain(0)
    answer = await client.get("/v1/contacts/a", headers=mesh.bearer())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert_refused(answer, 503, 14, "DEPENDENCY_UNAVAILABLE")
    await mesh.restart_server()

    async def served():
        return (await client.get("/v1/contacts/a", headers=mesh.bearer())).status_code == 200

    await eventually(served)


async def test_spans_and_logs_hold_neither_names_nor_tokens(mesh, client, eventually):
    token = mesh.token()
    mesh.edge.release.set()
    await client.get(f"/v1/contacts/secret-name/events?access_token={token}")
    await client.get("/v1/contacts/secret-name", headers=mesh.bearer())
    await client.get(f"/v1/contacts/secret-name?access_token={token}")
    await client.get("/healthz")
    await eventually(lambda: len(mesh.traces.spans) >= 3)
    told = "\n".join(map(str, mesh.traces.spans)) + mesh.log.read_text()
    assert "secret-name" not in told
    assert token not in told
    assert "healthz" not in told


async def test_a_callers_trace_goes_on(mesh, client, eventually):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {**mesh.bearer(), "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    answer = await client.get("/v1/contacts/a", headers=headers)
    assert answer.headers["x-trace-id"] == trace_id
    span = (await eventually(lambda: mesh.traces.spans))[0]
    assert span.trace_id.hex() == trace_id
    assert span.span_id.hex() == mesh.edge.metadata["traceparent"].split("-")[2]


async def test_headers_with_underscores_are_refused(mesh, client):
    answer = await client.get("/v1/contacts/a", headers={**mesh.bearer(), "x_retinue_tenant": "ten_evil"})
    assert answer.status_code == 400


async def test_with_a_certificate_only_tls_1_3_is_spoken(tls_mesh):
    async def handshake(version):
        context = ssl.create_default_context(cafile=str(tls_mesh.folder / "cert.pem"))
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        _, writer = await asyncio.open_connection("127.0.0.1", tls_mesh.port, ssl=context)
        chosen = writer.get_extra_info("ssl_object")
        writer.close()
        return chosen.version(), chosen.selected_alpn_protocol()

    assert await handshake(ssl.TLSVersion.TLSv1_3) == ("TLSv1.3", "h2")
    with pytest.raises(ssl.SSLError):
        await handshake(ssl.TLSVersion.TLSv1_2)
