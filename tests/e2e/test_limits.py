"""`bounded`: bodies, readers, streams and floods cost the mesh no more than it has set aside for them."""

import asyncio
import json
import socket
from pathlib import Path

import httpx
import pytest
import websockets
from refusals import assert_refused
from whole_mesh import CALL_TIMEOUT_S, connect, parse_sse

MIB = 1024 * 1024
BODY_SIZE_MAX_BYTES = MIB
TEXT_LENGTH_MAX = 100_000
STREAMS = 300
RATE_BURST = 2000
FLOOD_CONNECTIONS = 4
FLOOD_REQUESTS_MAX = 10_000
"""On each connection; a machine that manages but half more than a tenant's rate needs a third of it."""


class Memory:
    """Watches the memory of processes of the mesh."""

    def __init__(self, mesh, *names):
        processes = mesh.processes()
        self._files = {name: Path(f"/proc/{processes[name]['pid']}") for name in names}
        self._before = {name: self._read(name, "VmRSS") for name in names}
        for folder in self._files.values():
            (folder / "clear_refs").write_text("5")  # the high-water mark begins anew

    def _read(self, name, key):
        lines = (self._files[name] / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) * 1024

    def grown(self):
        """How much more each has held at most than before, in bytes."""
        return {name: self._read(name, "VmHWM") - before for name, before in self._before.items()}


@pytest.fixture
def watch_memory(mesh):
    return lambda *names: Memory(mesh, *names)


def body_of_size(size):
    start = b'{"text":"#echo=x","pad":"'
    return start + b"x" * (size - len(start) - 2) + b'"}'


@pytest.mark.parametrize("call", ["messages", "messages:stream"])
async def test_bounded_a_body_of_one_mebibyte_passes_and_one_byte_more_does_not(client, contact, call):
    path = f"/v1/contacts/{contact}/{call}"
    headers = {"content-type": "application/json"}
    body = body_of_size(BODY_SIZE_MAX_BYTES)
    assert len(body) == BODY_SIZE_MAX_BYTES
    assert (await client.post(path, content=body, headers=headers)).status_code == 200
    answer = await client.post(path, content=body_of_size(BODY_SIZE_MAX_BYTES + 1), headers=headers)
    assert_refused(answer, 413, "BODY_TOO_LARGE")


@pytest.mark.parametrize(
    "call", ["contacts/{contact}/messages", "contacts/{contact}/messages:stream", "tasks", "nothing"]
)
async def test_bounded_bodies_of_ten_megabytes_are_refused_in_bounded_memory(client, contact, watch_memory, call):
    memory = watch_memory("envoy", "gateway", "router")
    path = f"/v1/{call.format(contact=contact)}"
    body = body_of_size(10 * MIB)
    for answer in await asyncio.gather(*(client.post(path, content=body) for _ in range(8))):
        assert_refused(answer, 413, "BODY_TOO_LARGE")
    grown = memory.grown()
    assert grown["envoy"] < 8 * 4 * MIB, grown
    assert grown["gateway"] < 8 * 2 * MIB, grown
    assert grown["router"] < 4 * MIB, grown


async def test_bounded_a_body_that_does_not_say_its_size_is_counted(client, contact):
    async def pieces(size):
        for _ in range(size // 1024):
            yield b" " * 1024

    path = f"/v1/contacts/{contact}/messages"
    assert_refused(await client.post(path, content=pieces(BODY_SIZE_MAX_BYTES + 1024)), 413, "BODY_TOO_LARGE")
    assert_refused(await client.post(path, content=pieces(BODY_SIZE_MAX_BYTES - 1024)), 400, "FIELD_INVALID")


async def test_bounded_a_large_frame_is_refused_and_the_mesh_goes_on(mesh, watch_memory):
    memory = watch_memory("gateway")
    headers = {"authorization": f"Bearer {mesh.token()}"}
    url = f"{mesh.url.replace('http', 'ws')}/v1/ws"
    async with websockets.connect(url, additional_headers=headers, proxy=None) as ours:
        await ours.recv()
        await ours.send(json.dumps({"type": "req", "id": "1", "method": "ping", "params": {"pad": "x" * (MIB + 1)}}))
        answer = json.loads(await ours.recv())
        assert answer["ok"] is False
        assert answer["error"]["details"][0]["reason"] == "BODY_TOO_LARGE"
        await ours.send(json.dumps({"type": "req", "id": "2", "method": "ping", "params": {}}))
        assert json.loads(await ours.recv())["ok"] is True
    async with websockets.connect(url, additional_headers=headers, proxy=None) as ours:
        await ours.recv()
        with pytest.raises(websockets.ConnectionClosed):
            await asyncio.gather(*(ours.send("x" * 4 * MIB) for _ in range(16)), ours.recv())
    assert memory.grown()["gateway"] < 24 * MIB


async def tell(client, contact, count):
    """Have an agent say a large text again and again; answers the runs."""
    text = "#echo=" + "x" * (TEXT_LENGTH_MAX - 6)
    runs = []
    for _ in range(count):
        answer = await client.post(f"/v1/contacts/{contact}/messages", json={"text": text})
        runs.append(answer.json()["run"]["run_id"])
        ended = await client.post(f"/v1/runs/{runs[-1]}:wait")
        assert ended.json()["run"]["state"] == "succeeded"
    return runs


async def test_bounded_a_reader_that_does_not_read_costs_little_and_resumes_without_a_gap(
    mesh, client, contact, watch_memory
):
    reader = socket.create_connection(("127.0.0.1", mesh.port))
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    request = f"GET /v1/contacts/{contact}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {mesh.token()}\r\n\r\n"
    reader.sendall(request.encode())
    reader.settimeout(CALL_TIMEOUT_S)
    told = reader.recv(1024)
    assert told.startswith(b"HTTP/1.1 200")
    memory = watch_memory("gateway", "envoy")
    runs = await tell(client, contact, 20)  # 6 MB of events
    grown = memory.grown()
    assert grown["gateway"] < 16 * MIB, grown
    assert grown["envoy"] < 16 * MIB, grown
    reader.close()

    async with client.stream("GET", f"/v1/contacts/{contact}/events", params={"after": "0-0"}) as response:
        heard, ended = "", 0
        async for part in response.aiter_text():
            heard += part
            ended = heard.count("event: run.succeeded")
            if ended == len(runs):
                break
    frames = parse_sse(heard[: heard.rindex("\n\n")])
    assert [f["data"]["run_id"] for f in frames if f["event"] == "assistant.message"] == runs
    assert [f["data"]["run_id"] for f in frames if f["event"] == "user.message"] == runs


async def until(response, mark):
    told = ""
    async for part in response.aiter_text():
        told += part
        if mark in told:
            return told
    return told


async def test_bounded_three_hundred_open_streams_all_hear_and_cost_little(mesh, client, contact, watch_memory):
    memory = watch_memory("gateway", "envoy", "router")
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"authorization": f"Bearer {mesh.token()}"}
    async with httpx.AsyncClient(base_url=mesh.url, headers=headers, limits=limits, timeout=60, verify=False) as many:
        opened = asyncio.Semaphore(0)

        async def listen():
            async with many.stream("GET", f"/v1/contacts/{contact}/events") as response:
                assert response.status_code == 200
                opened.release()
                return await until(response, "event: run.succeeded")

        async with asyncio.TaskGroup() as group:
            listeners = [group.create_task(listen()) for _ in range(STREAMS)]
            for _ in listeners:
                await opened.acquire()
            await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=20"})
        for listener in listeners:
            assert listener.result().count("event: assistant.message") == 1
    grown = memory.grown()
    assert grown["gateway"] < STREAMS * 192 * 1024, grown
    assert grown["envoy"] < STREAMS * 256 * 1024, grown
    assert grown["router"] < 16 * MIB, grown


async def flood(mesh, token):
    """Ask for nothing, as fast as one connection can, until that is refused; answers the grants and the refusal."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    request = f"GET /v1/nothing HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n".encode()
    for granted in range(FLOOD_REQUESTS_MAX):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 404 "):
            writer.close()
            return granted, head, body
    pytest.fail("nobody was refused")


async def test_bounded_a_tenant_that_asks_too_often_waits_and_nobody_else_does(mesh, client, eventually):
    token = mesh.token("flood")
    flooding = [asyncio.create_task(flood(mesh, token)) for _ in range(FLOOD_CONNECTIONS)]
    while not all(task.done() for task in flooding):
        assert (await client.get("/v1/runs")).status_code == 200
    told = [task.result() for task in flooding]
    assert sum(granted for granted, _, _ in told) >= RATE_BURST
    for _, head, body in told:
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 1\r\n" in head
        assert b"\r\nx-trace-id: " in head
        status = json.loads(body)
        assert (status["code"], status["details"][0]["reason"]) == (8, "QUOTA_EXCEEDED")

    async def served():
        async with connect(mesh, token) as calm:
            return (await calm.get("/v1/runs")).status_code == 200

    await eventually(served)
