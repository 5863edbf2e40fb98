"""Each process of the mesh is killed while people talk; nobody loses a message, nobody hears one twice."""

import asyncio
import json
import signal
import time

import httpx
import pytest

TALKERS = 4
MESSAGES = 5
PATIENCE_S = 60


async def patiently(call):
    """Repeat a request with the same key while the answer is one that says so, or the connection is cut."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            response = await call()
            if response.status_code not in (429, 502, 503, 504):
                return response
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, "no answer for a minute"
        await asyncio.sleep(0.05)


async def talk(client, contact, spoken):
    """Send messages with keys; answers the ids of their runs in order."""
    runs = []
    for number in range(MESSAGES):
        headers = {"idempotency-key": f"{contact}-{number}"}
        body = {"text": f"#tokens=12 #delay=10 {number}"}
        response = await patiently(
            lambda headers=headers, body=body: client.post(
                f"/v1/contacts/{contact}/messages", json=body, headers=headers
            )
        )
        assert response.status_code == 200, response.text
        runs.append(response.json()["run"]["run_id"])
        spoken.set()
    return runs


async def listen(client, contact, count):
    """Follow a contact's stream through every cut until so many runs have ended; answers the frames by cursor."""
    last, frames, ended = "0-0", [], 0
    end = time.monotonic() + 2 * PATIENCE_S
    while ended < count:
        assert time.monotonic() < end, f"{ended} of {count} ends heard"
        try:
            headers = {"last-event-id": last}
            async with client.stream("GET", f"/v1/contacts/{contact}/events", headers=headers, timeout=20) as response:
                if response.status_code != 200:
                    await asyncio.sleep(0.1)
                    continue
                fields = {}
                async for line in response.aiter_lines():
                    if line and not line.startswith(":"):
                        name, _, value = line.partition(": ")
                        fields[name] = value
                    elif not line and "id" in fields:
                        last = fields["id"]
                        frames.append((tuple(map(int, last.split("-"))), fields["event"], json.loads(fields["data"])))
                        ended += fields["event"] in ("run.succeeded", "run.failed", "run.cancelled")
                        fields = {}
                        if ended == count:
                            break
                    elif not line:
                        fields = {}
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    return frames


@pytest.mark.parametrize(
    "victim", ["worker-1", "runtime-adapter", "router", "gateway", "policy", "directory", "redis", "postgres", "envoy"]
)
@pytest.mark.timeout(240)
async def test_ack_is_durable_and_cursor_monotone_when_it_is_killed(mesh, client, all_serve, contact, victim):
    contacts = [f"{contact}-{n}" for n in range(TALKERS)]
    spoken = asyncio.Event()
    listeners = [asyncio.create_task(listen(client, name, MESSAGES)) for name in contacts]
    talkers = [asyncio.create_task(talk(client, name, spoken)) for name in contacts]
    await spoken.wait()
    before = mesh.processes()[victim]
    await asyncio.to_thread(mesh.kill, victim, signal.SIGKILL)
    for name, talker, listener in zip(contacts, talkers, listeners, strict=True):
        runs = await talker
        frames = await listener
        cursors = [cursor for cursor, _, _ in frames]
        assert cursors == sorted(set(cursors)), "each event once, in order"
        assert [e["run_id"] for _, kind, e in frames if kind == "user.message"] == runs, "session_order"
        assert [e["run_id"] for _, kind, e in frames if kind == "run.succeeded"] == runs, "one end each"
        durable = [e for _, kind, e in frames if kind == "assistant.message"]
        assert len(durable) == MESSAGES
        listed = (await patiently(lambda name=name: client.get("/v1/runs", params={"contact": name}))).json()["runs"]
        assert {r["run_id"]: r["state"] for r in listed} == dict.fromkeys(runs, "succeeded")
    await all_serve()
    after = mesh.processes()[victim]
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1


async def test_a_stalled_workers_run_is_resumed_and_the_worker_wakes_up_harmless(mesh, client, contact, all_serve):
    path = f"/v1/contacts/{contact}/messages"
    run = (await client.post(path, json={"text": "#tokens=60 #delay=50"})).json()["run"]["run_id"]
    names = [name for name in mesh.processes() if name.startswith("worker-")]
    await asyncio.sleep(0)
    for name in names[:-1]:
        mesh.kill(name, signal.SIGSTOP)
    try:
        ended = (await client.post(f"/v1/runs/{run}:wait?timeout_s=30")).json()["run"]
        assert ended["state"] == "succeeded"
    finally:
        for name in names[:-1]:
            mesh.kill(name, signal.SIGCONT)
    events = (await client.get(f"/v1/runs/{run}/events")).text
    assert events.count("event: run.succeeded") == 1
    await all_serve()
