"""Where a client is told to chat is where it asked, whatever else it says."""

import asyncio
import ssl

import grpc
import httpx
import pytest
from retinue.edge.v1 import instance_service_pb2, instance_service_pb2_grpc
from retinue_gateway import envoy_filters

PATH = "/api/instance/chat-url"
FORGED = {
    "x-retinue-authority": "evil.example",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "https",
    "x-forwarded-scheme": "https",
    "x-scheme": "https",
    "forwarded": "host=evil.example;proto=https",
    "x-envoy-original-host": "evil.example",
}


async def test_the_host_and_port_of_the_request_are_told_back(mesh, client):
    answer = await client.get(PATH, headers=mesh.bearer())
    assert (answer.status_code, answer.json()) == (200, {"url": f"ws://127.0.0.1:{mesh.port}/v1/ws"})
    named = await client.get(PATH, headers={**mesh.bearer(), "host": "chat.example:8443"})
    assert named.json() == {"url": "ws://chat.example:8443/v1/ws"}


async def test_headers_that_proxies_write_are_not_believed(mesh, client):
    for name, value in FORGED.items():
        answer = await client.get(PATH, headers={**mesh.bearer(), name: value})
        assert answer.json() == {"url": f"ws://127.0.0.1:{mesh.port}/v1/ws"}, name
    twice = httpx.Headers([*mesh.bearer().items(), *[("x-retinue-authority", "evil.example")] * 2])
    assert (await client.get(PATH, headers=twice)).json()["url"] == f"ws://127.0.0.1:{mesh.port}/v1/ws"


@pytest.mark.parametrize("host", ["user@evil.example", "a:b@evil.example", "evil.example/x", "evil.example?x", "[::1"])
async def test_a_host_that_hides_another_is_refused(mesh, client, host):
    answer = await client.get(PATH, headers={**mesh.bearer(), "host": host})
    assert answer.status_code == 400
    assert "evil" not in answer.text


async def test_with_a_certificate_it_is_wss(tls_mesh):
    context = ssl.create_default_context(cafile=str(tls_mesh.folder / "cert.pem"))
    async with httpx.AsyncClient(base_url=tls_mesh.url, verify=context) as client:
        for more in ({}, {"x-forwarded-proto": "http"}):
            answer = await client.get(PATH, headers={**tls_mesh.bearer(), **more})
            assert answer.json() == {"url": f"wss://127.0.0.1:{tls_mesh.port}/v1/ws"}


async def test_grpc_callers_are_told_the_same(mesh):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.port}") as channel:
        stub = instance_service_pb2_grpc.InstanceServiceStub(channel)
        metadata = [*mesh.bearer().items(), ("x-retinue-authority", "evil.example")]
        request = instance_service_pb2.GetChatUrlRequest()
        async with asyncio.timeout(20):
            answer = await stub.GetChatUrl(request, metadata=metadata, wait_for_ready=True)
    assert answer.url == f"ws://127.0.0.1:{mesh.port}/v1/ws"


async def test_what_lies_under_api_is_bounded_and_traced_as_everything_else(mesh, client):
    refused = await client.get(PATH)
    assert refused.status_code == 401
    for method, path in (("POST", PATH), ("GET", "/api/instance/create"), ("GET", "/api/x"), ("GET", "/api")):
        answer = await client.request(method, path, headers=mesh.bearer())
        assert answer.status_code == 404, path
        assert answer.json()["details"][0]["reason"] == "ROUTE_NOT_FOUND"
        assert len(answer.headers["x-trace-id"]) == 32

    async def large():
        for _ in range(17):
            yield b" " * (envoy_filters.BODY_SIZE_MAX_BYTES // 16)

    headers = {**mesh.bearer(), "content-type": "application/json"}
    answer = await client.post("/api/instance/create", content=large(), headers=headers)
    assert answer.status_code == 413
    size = 2 * envoy_filters.BODY_SIZE_MAX_BYTES
    await client.post("/api/instance/create", content=b" " * size, headers=headers)
    assert mesh.asgi.body_sizes[-1] == size
