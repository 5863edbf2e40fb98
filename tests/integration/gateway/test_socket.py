"""The WebSocket protocol over the ASGI socket, with a client of another make."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from retinue_gateway import ws
from websockets.exceptions import ConnectionClosed


class Talker:
    """Asks and listens; what comes between is kept."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.number = 0

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(20):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
        return frame

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        frame = {"type": "req", "id": str(self.number), "method": method, "params": params}
        await self.socket.send(json.dumps(frame))
        while True:
            answer = await self.read()
            if answer["type"] == "event":
                self.events.append(answer)
                continue
            assert (answer["type"], answer["id"]) == ("res", str(self.number))
            return answer

    async def hear(self, until: str) -> list[dict[str, Any]]:
        while not self.events or self.events[-1]["event"]["type"] != until:
            self.events.append(await self.read())
        return self.events


async def talker(mesh: Any, **options: Any) -> Talker:
    made = Talker(await mesh.socket(**options))
    hello = await made.read()
    assert (hello["type"], hello["protocol"]) == ("hello", 1)
    assert set(hello["methods"]) == {
        "messages.send",
        "events.subscribe",
        "events.unsubscribe",
        "runs.get",
        "runs.cancel",
        "approvals.decide",
        "ping",
    }
    assert hello["limits"]["frame_bytes"] == 1024 * 1024
    return made


def reason(answer: dict[str, Any]) -> str:
    assert answer["ok"] is False
    text: str = answer["error"]["details"][0]["reason"]
    return text


async def test_a_message_is_sent_and_its_events_are_heard(mesh: Any) -> None:
    client = await talker(mesh)
    subscribed = await client.ask("events.subscribe", contact="ada")
    assert subscribed["ok"]
    assert subscribed["result"]["contact"] == "ada"
    sent = await client.ask("messages.send", contact="ada", text="hello there", idempotency_key="k1", later=True)
    run = sent["result"]["run"]
    heard = await client.hear("run.succeeded")
    assert {e["contact"] for e in heard} == {"ada"}
    assert {e["event"]["run_id"] for e in heard} == {run["run_id"]}
    assert (
        "".join(e["event"]["data"]["text"] for e in heard if e["event"]["type"] == "assistant.delta") == "hello there"
    )
    again = await client.ask("messages.send", contact="ada", text="hello there", idempotency_key="k1")
    assert again["result"]["run"]["run_id"] == run["run_id"]
    assert again["result"]["replayed"] is True
    for name in ("run", "run_id"):
        got = await client.ask("runs.get", **{name: run["run_id"]})
        assert got["result"]["run"]["state"] == "succeeded"
        assert got["result"]["run"]["output"] == {"text": "hello there"}
    assert (await client.ask("runs.cancel", run=run["run_id"]))["result"]["run"]["state"] == "succeeded"
    middle = heard[2]["event"]["cursor"]
    other = await talker(mesh)
    assert (await other.ask("events.subscribe", contact="ada", after=middle))["result"]["after"] == middle
    assert await other.hear("run.succeeded") == heard[3:]


async def test_what_is_unsubscribed_is_not_heard(mesh: Any) -> None:
    client = await talker(mesh)
    await client.ask("events.subscribe", contact="ada")
    await client.ask("events.unsubscribe", contact="ada")
    await client.ask("events.subscribe", contact="eva")
    await client.ask("messages.send", contact="ada", text="x")
    await client.ask("messages.send", contact="eva", text="y")
    assert {e["contact"] for e in await client.hear("run.succeeded")} == {"eva"}


async def test_malformed_frames_are_answered_and_the_socket_lives(mesh: Any) -> None:
    client = await talker(mesh)
    frames: list[Any] = ["", "{", "[]", "1", '"x"', b"\x00\xff", json.dumps({"type": "req"}), "[" * 100_000]
    frames += [json.dumps({"type": "req", "id": id_, "method": "ping"}) for id_ in (None, True, {}, "x" * 129)]
    for frame in frames:
        await client.socket.send(frame)
        answer = await client.read()
        assert (answer["type"], answer["id"], reason(answer)) == ("res", None, "FIELD_INVALID")
    for frame in (
        {"type": "x", "id": "7", "method": "ping"},
        {"type": "req", "id": "7", "method": "ping", "params": 1},
    ):
        await client.socket.send(json.dumps(frame))
        answer = await client.read()
        assert (answer["id"], reason(answer)) == ("7", "FIELD_INVALID")
    assert reason(await client.ask("no.such")) == "ROUTE_NOT_FOUND"
    assert reason(await client.ask("messages.send", contact="ada")) == "FIELD_INVALID"
    assert reason(await client.ask("messages.send", contact="ada", text=7)) == "FIELD_INVALID"
    assert reason(await client.ask("messages.send", contact=".", text="x")) == "FIELD_INVALID"
    assert reason(await client.ask("messages.send", contact="ada", text="x", idempotency_key="a b")) == "FIELD_INVALID"
    assert reason(await client.ask("events.subscribe", contact="ada", after="x")) == "CURSOR_INVALID"
    assert reason(await client.ask("runs.get", run="run_none")) == "RUN_NOT_FOUND"
    assert reason(await client.ask("approvals.decide", approval_id="apr_none", decision="deny")) == "APPROVAL_NOT_FOUND"
    assert (await client.ask("ping"))["ok"]


async def test_a_frame_above_one_mebibyte_is_refused_and_above_two_ends_the_socket(mesh: Any) -> None:
    client = await talker(mesh)
    await client.socket.send(
        json.dumps({"type": "req", "id": "1", "method": "ping", "params": {"x": "y" * 1024 * 1024}})
    )
    answer = await client.read()
    assert (answer["id"], reason(answer)) == (None, "BODY_TOO_LARGE")
    assert (await client.ask("ping"))["ok"]
    with suppress(ConnectionClosed):
        await client.socket.send("x" * (2 * 1024 * 1024 + 1))
    assert await closed(client) == 1009


async def closed(client: Talker) -> int:
    """Read until the end; answers its code."""
    try:
        while True:
            await client.read()
    except ConnectionClosed:
        code: int = client.socket.close_code
        return code


async def test_the_subprotocol_is_accepted_where_offered(mesh: Any) -> None:
    offered = await mesh.socket(subprotocols=["retinue.v1", "bearer.secret"])
    assert offered.subprotocol == "retinue.v1"
    assert (await mesh.socket()).subprotocol is None


async def test_tokens_that_do_not_count_close_the_socket(mesh: Any) -> None:
    for headers in ({}, mesh.identity(scope="read"), mesh.identity(ttl_s=-1)):
        assert await closed(Talker(await mesh.socket(headers=headers))) == 4401
    client = await talker(mesh, headers=mesh.identity(ttl_s=2))
    assert await closed(client) == 4401
    client = await talker(mesh, headers=mesh.identity(jti="jti_stolen"))
    mesh.directory.revoked.add("jti_stolen")
    async with asyncio.timeout(5):
        assert await closed(client) == 4401


async def test_a_stopping_process_closes_its_sockets(mesh: Any) -> None:
    client = await talker(mesh)
    draining = asyncio.create_task(mesh.gateway.drain(2))
    assert await closed(client) == 1012
    await draining


async def test_sockets_and_subscriptions_are_bounded(
    mesh: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    """bounded"""
    monkeypatch.setattr(ws, "SOCKETS_MAX", 1)
    monkeypatch.setattr(ws, "SUBSCRIPTIONS_MAX", 2)
    client = await talker(mesh)
    assert await closed(Talker(await mesh.socket())) == 1013
    for contact in ("a", "b", "a"):
        assert (await client.ask("events.subscribe", contact=contact))["ok"]
    assert reason(await client.ask("events.subscribe", contact="c")) == "QUOTA_EXCEEDED"
    await client.ask("events.unsubscribe", contact="a")
    assert (await client.ask("events.subscribe", contact="c"))["ok"]
    await client.socket.close()

    await eventually(lambda: not mesh.gateway.attendance.count)
    await talker(mesh)


@pytest.mark.parametrize("wakes_up", [True, False])
async def test_a_peer_that_does_not_read_is_closed(
    mesh: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any, wakes_up: bool
) -> None:
    """bounded"""
    monkeypatch.setattr(ws, "STALL_S", 0.2)
    said = asyncio.Event()

    async def flood(request: Any) -> Any:
        for _ in range(60):
            yield {"text_delta": {"text": "x" * 100_000}}
            await asyncio.sleep(0)
        yield {"finished": {}}
        said.set()

    mesh.adapter.script = flood
    client = await talker(mesh, max_queue=1, close_timeout=0.1)
    await client.ask("events.subscribe", contact="ada")
    await client.ask("messages.send", contact="ada", text="x")
    async with asyncio.timeout(20):
        await said.wait()
    await eventually(lambda: not mesh.gateway.attendance.count)
    if wakes_up:
        assert await closed(client) == 1013
