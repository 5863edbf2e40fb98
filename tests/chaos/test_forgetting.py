"""Redis is emptied, or does not answer; runs finish, and whoever watches sees them."""

import asyncio
import os
import signal

import redis.asyncio
from talking import assert_told_once, follow, say, shown, wait

TOKENS = 20
ANSWER = " ".join(f"t{n}" for n in range(TOKENS))
DEAF_S = 3.0


async def test_a_run_finishes_and_is_seen_when_redis_is_emptied_again_and_again(mesh, client, contact):
    server = redis.asyncio.Redis(unix_socket_path=mesh.socket("redis"))
    heard = asyncio.Semaphore(0)
    listener = asyncio.create_task(follow(client, contact, 3, lambda event: heard.release()))
    texts = [f"#tokens={TOKENS} #delay=20 {n}" for n in range(3)]
    runs = [await say(client, contact, text, f"{contact}-{n}") for n, text in enumerate(texts)]
    for _ in range(5):
        await heard.acquire()
        await server.flushall()
    events = await listener
    assert_told_once(events, runs)
    assert {event.data["text"] for event in events if event.type == "assistant.message"} == {ANSWER}
    for run in runs:
        assert (await wait(client, run))["attempt_count"] == 1
    # Who comes later reads the whole of it as well.
    assert_told_once(await follow(client, contact, 3), runs)
    await server.aclose()


async def test_what_is_queued_is_found_when_redis_forgets_it(mesh, client, contact):
    server = redis.asyncio.Redis(unix_socket_path=mesh.socket("redis"))
    contacts = [f"{contact}-{n}" for n in range(8)]
    runs = []
    for name in contacts:
        runs.append(await say(client, name, f"#tokens={TOKENS}", name))
        await server.flushall()
    for run in runs:
        assert (await wait(client, run))["output"]["text"] == ANSWER
    await server.aclose()


async def test_messages_are_taken_and_answered_while_redis_does_not_answer(mesh, client, contact, all_serve):
    await all_serve()
    pid = mesh.processes()["redis"]["pid"]
    amid = asyncio.Event()
    listener = asyncio.create_task(
        follow(client, contact, 2, lambda event: event.type == "assistant.delta" and amid.set())
    )
    first = await say(client, contact, f"#tokens={TOKENS} #delay=50", contact)
    await amid.wait()
    os.kill(pid, signal.SIGSTOP)
    waking = asyncio.get_running_loop().call_later(DEAF_S, os.kill, pid, signal.SIGCONT)
    try:
        second = await say(client, contact, f"#tokens={TOKENS}", f"{contact}-second")
        ended = [await wait(client, run) for run in (first, second)]
        events = await listener
    finally:
        waking.cancel()
        os.kill(pid, signal.SIGCONT)
    assert [run["state"] for run in ended] == ["succeeded", "succeeded"]
    assert_told_once(events, [first, second])
    assert shown(events) == dict.fromkeys([first, second], ANSWER), "each delta was seen"
    await all_serve()
