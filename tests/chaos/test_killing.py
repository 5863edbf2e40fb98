"""Each process of the mesh is killed while people talk; nobody loses a message, nobody hears one twice."""

import asyncio
import os
import signal

import pytest
from talking import assert_told_once, follow, patiently, say, shown, wait

MESSAGES = 5
HASTY, CALM = 2, 2
"""People who say everything at once, and people who wait for each answer."""

DELTAS_BEFORE = 20
"""Pieces of answers that are heard before the kill: it comes while runs are told, others wait, more are sent."""

TOKENS = 12
ANSWER = " ".join(f"t{n}" for n in range(TOKENS))


async def talk(client, contact, *, calm):
    runs = []
    for number in range(MESSAGES):
        text = f"#tokens={TOKENS} #delay=10 {number}"
        runs.append(await say(client, contact, text, f"{contact}-{number}"))
        if calm:
            await wait(client, runs[-1])
    return runs


@pytest.mark.parametrize(
    "victim", ["worker-1", "runtime-adapter", "router", "gateway", "policy", "directory", "redis", "postgres", "envoy"]
)
@pytest.mark.timeout(240)
async def test_ack_is_durable_and_cursor_monotone_when_it_is_killed(mesh, client, all_serve, contact, victim):
    await all_serve()
    before = mesh.processes()[victim]
    amid = asyncio.Semaphore(0)
    contacts = [f"{contact}-{n}" for n in range(HASTY + CALM)]
    listeners = [
        asyncio.create_task(
            follow(client, name, MESSAGES, lambda event: event.type == "assistant.delta" and amid.release())
        )
        for name in contacts
    ]
    talkers = [asyncio.create_task(talk(client, name, calm=n >= HASTY)) for n, name in enumerate(contacts)]
    for _ in range(DELTAS_BEFORE):
        await amid.acquire()
    os.kill(before["pid"], signal.SIGKILL)
    for name, talker, listener in zip(contacts, talkers, listeners, strict=True):
        runs, events = await talker, await listener
        assert_told_once(events, runs)
        assert {event.data["text"] for event in events if event.type == "assistant.message"} == {ANSWER}
        if victim != "redis":  # which holds the pieces; what is durable is told in any case
            assert shown(events) == dict.fromkeys(runs, ANSWER)
        listed = (await patiently(lambda name=name: client.get("/v1/runs", params={"contact": name}))).json()["runs"]
        assert {run["run_id"]: run["state"] for run in listed} == dict.fromkeys(runs, "succeeded")
    await all_serve()
    after = mesh.processes()[victim]
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1


def workers_of(mesh):
    return [process["pid"] for name, process in mesh.processes().items() if name.startswith("worker-")]


async def test_a_run_whose_worker_is_killed_is_resumed_once_and_told_once(mesh, client, all_serve, contact):
    await all_serve()
    workers = workers_of(mesh)
    amid = asyncio.Event()
    listener = asyncio.create_task(
        follow(client, contact, 1, lambda event: event.type == "assistant.delta" and amid.set())
    )
    run = await say(client, contact, f"#tokens={TOKENS} #delay=100", contact)
    await amid.wait()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    events = await listener
    assert_told_once(events, [run])
    resumed = [event for event in events if event.type == "run.resumed"]
    assert [event.data["attempt"] for event in resumed] == [2]
    assert shown(events) == {run: ANSWER}
    ended = await wait(client, run)
    assert (ended["state"], ended["attempt_count"], ended["output"]["text"]) == ("succeeded", 2, ANSWER)
    await all_serve()


async def test_a_stalled_workers_run_is_resumed_and_the_worker_wakes_up_harmless(mesh, client, contact, all_serve):
    await all_serve()
    workers = workers_of(mesh)
    amid = asyncio.Event()
    listener = asyncio.create_task(
        follow(client, contact, 2, lambda event: event.type == "assistant.delta" and amid.set())
    )
    run = await say(client, contact, f"#tokens={TOKENS} #delay=100", contact)
    await amid.wait()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    # One comes back as a new process, the others sleep until the run is over.
    os.kill(workers[0], signal.SIGKILL)
    try:
        assert (await wait(client, run))["state"] == "succeeded"
    finally:
        for pid in workers[1:]:
            os.kill(pid, signal.SIGCONT)
    after = await say(client, contact, f"#tokens={TOKENS}", f"{contact}-after")
    events = await listener
    assert_told_once(events, [run, after])
    assert shown(events) == {run: ANSWER, after: ANSWER}
    await all_serve()
