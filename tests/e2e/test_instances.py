"""Instances of runtimes, on a mesh whose chat runs on light: there are none, and it is said clearly."""

import asyncio
import json

import websockets
from refusals import assert_refused
from whole_mesh import connect

TENANT = "instances"
STATUS = "/api/instance/status"
CREATE = "/api/instance/create"
DELETE = "/api/instance/delete"
CHAT_URL = "/api/instance/chat-url"
LISTED = "/v1/instances"


async def test_none_is_assigned_and_none_can_be(client):
    assert_refused(await client.get(STATUS), 404, "INSTANCE_NOT_FOUND")
    assert_refused(await client.delete(DELETE), 404, "INSTANCE_NOT_FOUND")
    for body in (b"", b"{}", b'{"isolation":"cell"}'):
        refused = assert_refused(await client.post(CREATE, content=body), 400, "RUNTIME_UNAVAILABLE")
        assert "runs on light" in refused["message"]
    assert_refused(await client.post(CREATE, content=b"{"), 400, "FIELD_INVALID")
    assert_refused(await client.get(STATUS), 404, "INSTANCE_NOT_FOUND")


async def test_the_list_is_empty_and_for_operators(mesh, client):
    refused = assert_refused(await client.get(LISTED), 403, "SCOPE_MISSING")
    assert refused["details"][0]["metadata"] == {"scope": "admin"}
    async with connect(mesh, mesh.token(TENANT, "--scope", "admin")) as operator:
        answer = await operator.get(LISTED)
        assert (answer.status_code, answer.json()) == (200, {"instances": []})
        assert_refused(await operator.get(STATUS), 404, "INSTANCE_NOT_FOUND")


async def test_without_a_token_nothing_is_told(client_of):
    async with client_of("") as nobody:
        for method, path in (("GET", STATUS), ("POST", CREATE), ("DELETE", DELETE), ("GET", CHAT_URL), ("GET", LISTED)):
            assert_refused(await nobody.request(method, path), 401, "CREDENTIAL_MISSING")


async def test_the_chat_url_leads_to_a_socket_that_answers(mesh, client, contact):
    answer = await client.get(CHAT_URL, params={"contact": contact})
    url = answer.json()["url"]
    assert url == f"ws://127.0.0.1:{mesh.port}/v1/ws"
    headers = {"authorization": f"Bearer {mesh.token()}"}
    async with asyncio.timeout(20), websockets.connect(url, additional_headers=headers) as socket:
        assert json.loads(await socket.recv())["type"] == "hello"
    assert_refused(await client.get(CHAT_URL, params={"contact": "a!b"}), 400, "FIELD_INVALID", "contact")
    assert_refused(await client.get(CHAT_URL, headers={"host": "me@evil.example"}), 400, "FIELD_INVALID", "Host")


async def test_the_command_lists_none(mesh):
    assert json.loads(mesh.command("instances", "--json").stdout) == []
    told = mesh.command("instances").stdout.splitlines()
    columns = ["instance", "isolation", "state", "memory", "tenants", "running/waiting", "age", "idle", "detail"]
    assert [line.split() for line in told] == [columns]
