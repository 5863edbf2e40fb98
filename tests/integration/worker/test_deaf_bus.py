"""The bus hangs while a run goes on: once it answers again, each delta is on it, and who watched has seen each."""

import asyncio
import json
import os
import signal

import pytest
from retinue_kit import streams, watch
from retinue_kit.streams import START, Bus, Entry
from retinue_kit.watching import Subscriber
from retinue_router.ring import Ticket
from retinue_router.store.events import EventStore
from retinue_router.worker.leases import Ending, LeaseStore
from retinue_router.worker.remains import Remains

TENANT = "ten_a"
KEY = streams.log_key(TENANT, "log_ada")
WORDS = [f"w{n} " for n in range(12)]


@pytest.fixture
def deafen(mesh, monkeypatch):
    """Stop Redis until what is answered is called."""
    monkeypatch.setattr(streams, "CALL_TIMEOUT_S", 0.3)
    stopped = []

    async def stop():
        pid = (await mesh.redis.info("server"))["process_id"]
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        return lambda: os.kill(pid, signal.SIGCONT)

    yield stop
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def watched(mesh):
    """What a watcher of the log is told, as it is told; of commits it hears at once, as from the worst of ticks."""
    heard: list[Entry] = []
    store = EventStore(mesh.pool, mesh.admin)
    client = streams.connect(mesh.settings["redis_url"], blocking=True)

    async def durable(after):
        return await store.page(TENANT, "log_ada", "", after, 500)

    async with Subscriber(client, Bus(mesh.redis)) as subscriber:

        async def follow():
            async for entry in subscriber.watch(KEY, START, durable):
                heard.append(entry)

        async def tick():
            while True:
                await asyncio.sleep(0.02)
                last = await store.last(TENANT, "log_ada")
                for one in subscriber._watches.get(KEY, ()):
                    one.tell(last)

        tasks = [asyncio.create_task(follow()), asyncio.create_task(tick())]
        yield heard
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()


def said(entries: list[Entry], run_id: str) -> str:
    """Join the deltas of a run."""
    return "".join(
        json.loads(e.json)["data"]["text"] for e in entries if e.type == "assistant.delta" and e.run_id == run_id
    )


def over(entries: list[Entry], *runs: str) -> bool:
    return [e.run_id for e in entries if e.type == "run.succeeded"] == list(runs)


async def spoken(request, gate):
    """Say the first words at once and the rest once the gate is open."""
    for n, word in enumerate(WORDS):
        yield {"text_delta": {"text": word}}
        if n == 3 and request.fencing_token == 1:
            await gate.wait()
    yield {"message_completed": {"text": "".join(WORDS)}}
    yield {"finished": {}}


async def test_who_watches_while_the_bus_hangs_sees_each_delta(mesh, deafen, watched, eventually, when_over, gate):
    mesh.adapter.script = lambda request: spoken(request, gate)
    await mesh.start_worker()
    first = await mesh.submit("one")
    await eventually(lambda: said(watched, first) == "".join(WORDS[:4]))
    second = await mesh.submit("two", ring=False)
    wake = await deafen()
    gate.set()
    await when_over(first)
    wake()
    await when_over(second)
    await eventually(lambda: over(watched, first, second))
    cursors = [e.cursor for e in watched]
    assert cursors == sorted(set(cursors))
    assert (said(watched, first), said(watched, second)) == ("".join(WORDS), "".join(WORDS))
    assert said(await mesh.told(), first) == "".join(WORDS)


async def test_what_a_run_could_not_tell_by_its_end_is_told_once_the_bus_answers(
    mesh, deafen, eventually, when_over, gate, monkeypatch
):
    told = []
    keep = Remains.keep

    def kept(self, key, entries):
        keep(self, key, entries)
        told.append(len(entries))

    monkeypatch.setattr(Remains, "keep", kept)
    mesh.adapter.script = lambda request: spoken(request, gate)
    await mesh.start_worker()
    run = await mesh.submit("one")
    await eventually(lambda: _tells(mesh, run, "".join(WORDS[:4])))
    wake = await deafen()
    gate.set()
    assert (await when_over(run))["state"] == "succeeded"
    await eventually(lambda: told)
    assert told[0] > 2, "the run is over and its end was not taken by the bus"
    wake()
    await eventually(lambda: _tells(mesh, run, "".join(WORDS)))
    entries = await mesh.told()
    assert [e.cursor.n for e in entries] == list(range(len(entries))), "nothing is missing between"
    assert over(entries, run)
    # Who speaks next in this log comes after what was left, and says its own.
    following = await mesh.submit("two")
    await when_over(following)
    await eventually(lambda: _tells(mesh, following, "".join(WORDS)))


async def _tells(mesh, run, text):
    return said(await mesh.told(), run) == text


async def test_an_interruption_that_cuts_a_call_to_the_bus_off_loses_no_delta(
    mesh, deafen, eventually, when_over, gate, monkeypatch
):
    monkeypatch.setattr(streams, "CALL_TIMEOUT_S", 5.0)
    amid = asyncio.Event()

    async def script(request):
        if request.fencing_token == 1:
            yield {"text_delta": {"text": "one "}}
            await gate.wait()
            yield {"text_delta": {"text": "two "}}
            amid.set()
            yield {"message_completed": {"text": "one two "}}  # waits for the bus
        yield {"text_delta": {"text": "three"}}
        yield {"message_completed": {"text": "three"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    await mesh.start_worker(renew_s=0.1)
    run = await mesh.submit("one")
    await eventually(lambda: _tells(mesh, run, "one "))
    wake = await deafen()
    monkeypatch.setattr(streams, "CALL_TIMEOUT_S", 5.0)
    gate.set()
    await amid.wait()
    await mesh.pool.fetchrow("select * from cancel_run_1('ten_a', $1, 'usr_1')", run)  # found by the next renewal
    assert (await when_over(run))["state"] == "cancelled"
    wake()
    following = await mesh.submit("two")
    assert (await when_over(following))["state"] == "succeeded"
    # What came behind the message may have been heard before the interruption, or not: nothing before it is missing.
    assert said(await mesh.told(), run) in ("one two ", "one two three")


async def test_a_fact_whose_deltas_never_come_is_told_all_the_same(mesh, watched, eventually, monkeypatch):
    monkeypatch.setattr(watch, "HOLD_S", 0.3)
    run = await mesh.submit("x", ring=False)
    leases, ticket = LeaseStore(mesh.pool, 30), Ticket(TENANT, "log_ada")
    held = await leases.claim(ticket, "w1:1")
    ending = Ending("succeeded", "", b"{}", None, None, "", b"[]", terminal_n=9)
    assert await leases.finish(ticket, held.token, run, ending, "w1:1", take_next=False)
    await eventually(lambda: over(watched, run))
    assert [e.type for e in watched] == ["user.message", "run.succeeded"]
