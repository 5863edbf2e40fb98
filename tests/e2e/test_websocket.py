"""A client talks over one WebSocket: sends, watches, resumes, asks, and is answered whatever it says."""

import asyncio
import contextlib
import json
import os
import resource
import time
from pathlib import Path

import pytest
import websockets

MIB = 1024 * 1024
SOCKETS = 500
SOCKETS_GROWTH_MAX_BYTES = 96 * MIB
"""What so many sockets may add to the gateway's memory: under 200 KiB each, watching and talked to."""

SLOW_GROWTH_MAX_BYTES = 16 * MIB
"""What a reader that takes nothing may add: its buffer of 1 MiB, and a page of each log that it watches."""

SLOW_QUESTIONS = 400
"""What it asks for comes to 40 MB."""

UNREAD_S = 7
"""How long the slow reader takes nothing; the edge has patience for five seconds."""

TEXT_LENGTH = 99_000
METHODS = "messages.send events.subscribe events.unsubscribe runs.get runs.cancel approvals.decide ping"


class Line:
    """A client's end of a socket: asks and hears, in any order."""

    def __init__(self, socket):
        self.socket = socket
        self.hello = {}
        self.events = []
        self._next = 0

    async def hear(self):
        """Read a frame; events are kept as well."""
        frame = json.loads(await asyncio.wait_for(self.socket.recv(), 30))
        if frame["type"] == "event":
            self.events.append(frame)
        return frame

    async def say(self, method, **params):
        """Ask and do not wait; answers the request's id."""
        self._next += 1
        frame = {"type": "req", "id": str(self._next), "method": method, "params": params}
        await self.socket.send(json.dumps(frame))
        return str(self._next)

    async def ask(self, method, **params):
        """Ask, and hear until the answer comes."""
        asked = await self.say(method, **params)
        while True:
            frame = await self.hear()
            if frame["type"] == "res":
                assert frame["id"] == asked
                return frame

    async def get(self, method, **params):
        """Ask for what is not refused."""
        frame = await self.ask(method, **params)
        assert frame["ok"], frame
        return frame["result"]

    async def refusal(self, method, **params):
        """Ask for what is refused; answers the reason."""
        frame = await self.ask(method, **params)
        assert not frame["ok"], frame
        return frame["error"]["details"][0]["reason"]

    async def hear_end(self, contact, run):
        """Hear until a run is over; answers its events."""
        while True:
            told = [f["event"] for f in self.events if f["contact"] == contact and f["event"]["run_id"] == run]
            if told and told[-1]["type"] in ("run.succeeded", "run.failed", "run.cancelled"):
                return told
            await self.hear()


@pytest.fixture
def open_line(mesh):
    """Open sockets; with the token of the tenant `e2e` unless another is given."""

    @contextlib.asynccontextmanager
    async def opened(token=None, **options):
        headers = {"authorization": f"Bearer {token or mesh.token()}"}
        async with websockets.connect(ws_url(mesh), additional_headers=headers, **options) as socket:
            line = Line(socket)
            line.hello = await line.hear()
            yield line

    return opened


def ws_url(mesh):
    return mesh.url.replace("http", "ws", 1) + "/v1/ws"


@pytest.fixture
def gateway_memory(mesh):
    """Read the gateway's resident memory, in bytes."""
    statm = Path(f"/proc/{mesh.processes()['gateway']['pid']}/statm")
    return lambda: int(statm.read_text().split()[1]) * resource.getpagesize()


async def test_a_message_is_sent_and_its_events_are_heard(open_line, contact):
    async with open_line() as line:
        assert line.hello["type"] == "hello"
        assert line.hello["protocol"] == 1
        assert " ".join(line.hello["methods"]) == METHODS
        assert line.hello["limits"]["frame_bytes"] == MIB
        await line.get("events.subscribe", contact=contact)
        run = (await line.get("messages.send", contact=contact, text="#tokens=5 #delay=2"))["run"]
        assert run["state"] in ("queued", "running")
        told = await line.hear_end(contact, run["run_id"])
        kinds = [e["type"] for e in told if e["type"] != "assistant.delta"]
        assert kinds == ["user.message", "run.started", "assistant.message", "run.succeeded"]
        text = "".join(e["data"]["text"] for e in told if e["type"] == "assistant.delta")
        assert text.split() == ["t0", "t1", "t2", "t3", "t4"]
        assert (await line.get("runs.get", run_id=run["run_id"]))["run"]["output"]["text"] == text
        assert await line.get("ping") == {}


async def test_same_key_same_answer_over_the_socket_and_beside_it(open_line, client, contact):
    async with open_line() as line:
        message = {"contact": contact, "text": "#tokens=2", "idempotency_key": f"k-{contact}"}
        first = await line.get("messages.send", **message)
        second = await line.get("messages.send", **message)
        assert second["run"]["run_id"] == first["run"]["run_id"]
        assert "replayed" not in first
        assert second["replayed"] is True
        headers = {"idempotency-key": f"k-{contact}"}
        path = f"/v1/contacts/{contact}/messages"
        other = await client.post(path, json={"text": "#tokens=2"}, headers=headers)
        assert other.headers["idempotent-replay"] == "true"
        assert other.json()["run"]["run_id"] == first["run"]["run_id"]
        assert await line.refusal("messages.send", **{**message, "text": "else"}) == "IDEMPOTENCY_KEY_REUSED"


async def test_a_subscription_resumes_after_a_cursor_on_another_socket(open_line, contact):
    async with open_line() as line:
        await line.get("events.subscribe", contact=contact)
        run = (await line.get("messages.send", contact=contact, text="#tokens=8 #delay=3"))["run"]["run_id"]
        told = await line.hear_end(contact, run)
    for index in (0, len(told) // 2):
        async with open_line() as line:
            await line.get("events.subscribe", contact=contact, after=told[index]["cursor"])
            assert await line.hear_end(contact, run) == told[index + 1 :]
    async with open_line() as line:
        assert await line.refusal("events.subscribe", contact=contact, after="nonsense") == "CURSOR_INVALID"


async def test_what_is_unsubscribed_is_not_heard(open_line, contact):
    async with open_line() as line:
        await line.get("events.subscribe", contact=contact)
        await line.get("events.subscribe", contact=f"{contact}-b")
        await line.get("events.unsubscribe", contact=contact)
        await line.get("messages.send", contact=contact, text="#tokens=2")
        run = (await line.get("messages.send", contact=f"{contact}-b", text="#tokens=2"))["run"]["run_id"]
        await line.hear_end(f"{contact}-b", run)
        assert {f["contact"] for f in line.events} == {f"{contact}-b"}


async def test_a_run_is_cancelled(open_line, contact):
    async with open_line() as line:
        await line.get("events.subscribe", contact=contact)
        run = (await line.get("messages.send", contact=contact, text="#tokens=500 #delay=50"))["run"]["run_id"]
        while not any(f["event"]["type"] == "assistant.delta" for f in line.events):
            await line.hear()
        await line.get("runs.cancel", run_id=run)
        assert (await line.hear_end(contact, run))[-1]["type"] == "run.cancelled"
        assert (await line.get("runs.get", run_id=run))["run"]["state"] == "cancelled"


async def test_another_tenants_run_looks_like_a_missing_one(open_line, mesh, contact):
    async with open_line() as line, open_line(mesh.token("other")) as stranger:
        run = (await line.get("messages.send", contact=contact, text="#tokens=1"))["run"]["run_id"]
        for method in ("runs.get", "runs.cancel"):
            assert await stranger.refusal(method, run_id=run) == "RUN_NOT_FOUND"
            assert await stranger.refusal(method, run_id="run_missing") == "RUN_NOT_FOUND"
        await stranger.get("events.subscribe", contact=contact, after="0-0")
        mine = (await stranger.get("messages.send", contact=contact, text="#tokens=1"))["run"]["run_id"]
        await stranger.hear_end(contact, mine)
        assert {f["event"]["run_id"] for f in stranger.events} == {mine}


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("not json", "FIELD_INVALID"),
        ("[1]", "FIELD_INVALID"),
        ("null", "FIELD_INVALID"),
        (b"\x00\xff", "FIELD_INVALID"),
        ('{"type":"event"}', "FIELD_INVALID"),
        ('{"type":"req","id":{},"method":"ping"}', "FIELD_INVALID"),
        ('{"type":"req","id":"1","method":7}', "FIELD_INVALID"),
        ('{"type":"req","id":"1","method":"ping","params":[]}', "FIELD_INVALID"),
        ('{"type":"req","id":"1","method":"no.such"}', "ROUTE_NOT_FOUND"),
        ('{"type":"req","id":"1","method":"messages.send","params":{"contact":"a"}}', "FIELD_INVALID"),
        ('{"type":"req","id":"1","method":"messages.send","params":{"contact":7,"text":"x"}}', "FIELD_INVALID"),
        ("[" * 100_000, "FIELD_INVALID"),
        (json.dumps({"type": "req", "id": "1", "method": "ping", "params": {"x": "y" * MIB}}), "BODY_TOO_LARGE"),
    ],
)
async def test_a_frame_that_cannot_be_understood_is_answered_and_the_socket_lives(open_line, frame, reason):
    async with open_line() as line:
        await line.socket.send(frame)
        answer = await line.hear()
        assert (answer["type"], answer["ok"]) == ("res", False)
        assert answer["error"]["details"][0]["reason"] == reason
        assert answer["error"]["message"]
        assert await line.get("ping") == {}


async def test_a_frame_of_almost_one_mebibyte_is_understood(open_line):
    async with open_line() as line:
        assert await line.get("ping", x="y" * (MIB - 100)) == {}


@pytest.mark.parametrize("way", ["query", "subprotocol"])
async def test_a_token_may_come_as_browsers_can_send_it(mesh, way):
    url, token = ws_url(mesh), mesh.token()
    options = {"subprotocols": ["retinue.v1", f"bearer.{token}"]} if way == "subprotocol" else {}
    async with websockets.connect(f"{url}?access_token={token}" if way == "query" else url, **options) as socket:
        assert json.loads(await socket.recv())["type"] == "hello"
        assert socket.subprotocol == ("retinue.v1" if way == "subprotocol" else None)


async def test_without_a_good_token_there_is_no_socket(mesh):
    url, token = ws_url(mesh), mesh.token()
    for address in (url, f"{url}?access_token=nonsense", f"{url}?access_token={token[:-8]}AAAAAAAA"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(address)
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body)["code"] == 16


async def test_a_token_that_expires_closes_the_socket_and_opens_no_other(open_line, mesh):
    token = mesh.command("token", "--tenant", "e2e", "--ttl", "3").stdout.strip()
    async with open_line(token) as line:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await line.hear()
        assert closed.value.rcvd.code == 4401


async def test_five_hundred_sockets_at_once_are_served_with_bounded_memory(open_line, client, contact, gateway_memory):
    before = gateway_memory()
    shaking = asyncio.Semaphore(50)  # how many hands at once
    together = asyncio.Barrier(SOCKETS + 1)
    run = asyncio.get_running_loop().create_future()

    async def sit():
        await shaking.acquire()
        async with open_line() as line:
            await line.get("events.subscribe", contact=contact)
            shaking.release()
            await together.wait()
            told = await line.hear_end(contact, await run)
            await together.wait()
        return told

    async with asyncio.TaskGroup() as group:
        sitting = [group.create_task(sit()) for _ in range(SOCKETS)]
        await together.wait()
        response = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=10 #delay=5"})
        run.set_result(response.json()["run"]["run_id"])
        await together.wait()
        assert gateway_memory() - before < SOCKETS_GROWTH_MAX_BYTES
    assert {json.dumps(task.result()) for task in sitting} == {json.dumps(sitting[0].result())}


async def test_a_slow_reader_is_closed_with_bounded_memory_and_harms_nobody(open_line, stream, contact, gateway_memory):
    names = [f"{contact}-{n}" for n in range(40)]
    words = os.urandom(TEXT_LENGTH // 2).hex()
    told = await asyncio.gather(*(stream(name, f"#echo={words}") for name in names))
    before = gateway_memory()
    async with open_line(max_queue=1) as line:
        for name in names:
            await line.say("events.subscribe", contact=name, after="0-0")
        for _ in range(SLOW_QUESTIONS):
            await line.say("runs.get", run_id=told[0][-1]["data"]["run_id"])
        end = time.monotonic() + UNREAD_S
        while time.monotonic() < end:
            assert (await stream(contact, "#tokens=3 #delay=20"))[-1]["event"] == "run.succeeded"
            assert gateway_memory() - before < SLOW_GROWTH_MAX_BYTES
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await line.hear_end("nobody", "never")
        assert closed.value.rcvd.code == 1013
    async with open_line() as line:
        await line.get("events.subscribe", contact=names[-1], after="0-0")
        await line.hear_end(names[-1], told[-1][-1]["data"]["run_id"])
