"""Runs that were set aside: listed, asked anew, dropped; each is decided once, whoever asks."""

import asyncio
import json

import pytest
from retinue.router.v1 import dead_letter_service_pb2 as wire
from retinue.router.v1 import dead_letter_service_pb2_grpc
from retinue_kit import postgres
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.ids import new_id
from retinue_kit.streams import START
from retinue_router.store.contacts import ContactStore
from retinue_router.store.dead_letters import COUNTED_MAX, DeadLetterStore


@pytest.fixture
def letters(router):
    """Call the dead letters' service of the router."""
    stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(router.peer.channel)

    async def call(name, **fields):
        fields.setdefault("tenant_id", router.tenant)
        if name == "CountDeadLetters":
            del fields["tenant_id"]
        return await router.peer.call(getattr(stub, name), getattr(wire, f"{name}Request")(**fields))

    return call


async def refused(call, reason):
    with pytest.raises(RetinueError) as refusal:
        await call
    assert refusal.value.reason is reason
    return refusal.value


async def set_aside(core, contact="anna", text="hello", **more):
    """Make a run fail so that it is set aside; answers its id."""
    asked = await core.submit(text, contact=contact, **more)
    run = await core.run(asked["run_id"])
    held = await core.claim(run["log_id"])
    said = [{"n": 5, "type": "assistant.message", "data": {"message_id": "msg_h", "text": "half an"}}]
    done = await core.finish(held, "failed", log=run["log_id"], dead=True, events=said)
    assert done["state"] == "failed"
    return asked["run_id"]


async def history_of(core, run_id):
    run = await core.run(run_id)
    held = await core.claim(run["log_id"], holder="w2:1")
    assert held["run_id"] == run_id
    return held, json.loads(held["history"])


async def test_a_dead_letter_is_listed_with_why_and_read_with_what_was_asked(core, letters):
    first, second = await set_aside(core, text="one"), await set_aside(core, "bob", "two")
    listed = (await letters("ListDeadLetters", state="open")).dead_letters
    assert [(d.run.run_id, d.run.contact, d.state, d.text) for d in listed] == [
        (second, "bob", "open", ""),
        (first, "anna", "open", ""),
    ]
    assert listed[0].run.error.message == "The model is away."
    assert listed[0].HasField("dead_time")
    assert (await letters("GetDeadLetter", run_id=first)).dead_letter.text == "one"
    assert [d.run.run_id for d in (await letters("ListDeadLetters", contact="anna")).dead_letters] == [first]
    assert not (await letters("ListDeadLetters", state="dropped")).dead_letters


async def test_a_list_of_dead_letters_goes_on_where_a_page_ended(core, letters):
    runs = [await set_aside(core, f"c{n}") for n in range(5)][::-1]
    found, token = [], ""
    for size in (2, 2, 1):
        page = await letters("ListDeadLetters", page_size=2, page_token=token)
        assert len(page.dead_letters) == size
        found += [d.run.run_id for d in page.dead_letters]
        token = page.next_page_token
    assert (found, token) == (runs, "")
    await refused(letters("ListDeadLetters", page_token="r.run_1"), Reason.CURSOR_INVALID)


async def test_a_retry_asks_the_same_anew_and_the_conversation_shows_it_once(core, letters):
    dead = await set_aside(core, text="what is up?")
    anew = (await letters("RetryDeadLetter", run_id=dead, principal="usr_9")).run
    assert (anew.state, anew.contact, anew.kind) == (1, "anna", "chat")
    rows = {run_id: await core.run(run_id) for run_id in (dead, anew.run_id)}
    assert rows[anew.run_id]["input"] == rows[dead]["input"]
    assert (rows[anew.run_id]["retry_of"], rows[dead]["retried_as"]) == (dead, anew.run_id)
    assert (rows[dead]["dead"], rows[dead]["state"]) == ("retried", "failed")
    held, history = await history_of(core, anew.run_id)
    assert history == []
    await core.finish(held, holder="w2:1")
    later = await core.submit("and now?")
    _, history = await history_of(core, later["run_id"])
    assert [line["text"] for line in history] == ["yes", "what is up?"]
    shown, _ = await ContactStore(core.pool).messages(core.tenant, "log_anna", START, 50)
    assert [json.loads(m["data"])["text"] for m in shown] == ["what is up?", "yes", "and now?"]
    assert {m["run_id"] for m in shown} == {anew.run_id, later["run_id"]}


async def test_a_retry_that_is_asked_again_answers_the_same_run_and_accepts_no_other(core, letters):
    dead = await set_aside(core)
    answers = await asyncio.gather(*(letters("RetryDeadLetter", run_id=dead) for _ in range(8)))
    assert len({answer.run.run_id for answer in answers}) == 1
    assert await core.seen("select count(*) from router.runs") == [(2,)]
    assert (await core.run(dead))["retried_as"] == answers[0].run.run_id


async def test_a_task_is_asked_anew_as_a_task_that_its_contact_hears_of(core, letters):
    dead = await set_aside(core, kind="extract", log=new_id("tsk"))
    anew = (await letters("RetryDeadLetter", run_id=dead)).run
    old, new = await core.run(dead), await core.run(anew.run_id)
    assert new["log_id"].startswith("tsk_")
    assert new["log_id"] != old["log_id"]
    assert (new["kind"], new["notify_log"], new["input"]) == ("extract", "log_anna", old["input"])
    held = await core.claim(new["log_id"])
    assert (await core.finish(held, log=new["log_id"]))["told"] == "log_anna"


async def test_a_retry_waits_its_turn_and_is_rung_only_where_nobody_holds_the_log(core, letters):
    dead = await set_aside(core)
    active = await core.submit("first")
    held = await core.claim(holder="w3:1")
    anew = (await letters("RetryDeadLetter", run_id=dead)).run
    assert held["run_id"] == active["run_id"]
    done = await core.finish(held, holder="w3:1", next=True)
    assert done["next"]["run_id"] == anew.run_id


async def test_a_retry_is_refused_where_the_queue_is_full_and_nothing_changes(core):
    dead = await set_aside(core)
    await core.submit("waits", contact="bob")
    full = await core.call("retry_dead_letter_1", dead, new_id("run"), new_id("tsk"), new_id("ses"), "", "", 1, 1)
    assert (full["outcome"], full["run_id"]) == ("full", None)
    assert (await core.run(dead))["dead"] == "open"


async def test_a_dropped_one_is_off_the_list_and_can_be_dropped_again_but_not_retried(core, letters):
    dead = await set_aside(core)
    for _ in range(2):
        assert (await letters("DropDeadLetter", run_id=dead)).dead_letter.state == "dropped"
    assert not (await letters("ListDeadLetters", state="open")).dead_letters
    refusal = await refused(letters("RetryDeadLetter", run_id=dead), Reason.DEAD_LETTER_CLOSED)
    assert refusal.metadata["state"] == "dropped"
    other = await set_aside(core, "bob")
    await letters("RetryDeadLetter", run_id=other)
    refusal = await refused(letters("DropDeadLetter", run_id=other), Reason.DEAD_LETTER_CLOSED)
    assert refusal.metadata["state"] == "retried"


async def test_of_a_retry_and_a_drop_at_once_one_wins_and_the_other_hears_of_it(core, letters):
    for n in range(5):
        dead = await set_aside(core, f"c{n}")
        answers = await asyncio.gather(
            letters("RetryDeadLetter", run_id=dead), letters("DropDeadLetter", run_id=dead), return_exceptions=True
        )
        lost = [answer for answer in answers if isinstance(answer, RetinueError)]
        assert [error.reason for error in lost] == [Reason.DEAD_LETTER_CLOSED]
        row = await core.run(dead)
        assert (row["dead"] == "retried") == (row["retried_as"] is not None) == (lost[0] is answers[1])


async def test_what_is_no_dead_letter_or_anothers_is_not_found(core, letters):
    dead, plain = await set_aside(core), (await core.submit("hi", contact="bob"))["run_id"]
    for fields in ({"run_id": plain}, {"run_id": "run_none"}, {"run_id": dead, "tenant_id": "ten_b"}):
        for name in ("GetDeadLetter", "RetryDeadLetter", "DropDeadLetter"):
            await refused(letters(name, **fields), Reason.DEAD_LETTER_NOT_FOUND)
    assert (await core.run(dead))["dead"] == "open"
    assert not (await letters("ListDeadLetters", tenant_id="ten_b")).dead_letters


async def test_a_dead_letter_goes_with_its_contact(core, letters):
    dead = await set_aside(core)
    await core.call("delete_contact_1", "anna", "log_anna")
    await refused(letters("RetryDeadLetter", run_id=dead), Reason.DEAD_LETTER_NOT_FOUND)


async def test_open_ones_are_counted_over_all_tenants_by_a_role_that_reads_no_text(core, letters):
    for n in range(2):
        await set_aside(core, f"c{n}")
    core.tenant = "ten_b"
    dropped, _ = await set_aside(core), await set_aside(core, "bob")
    await letters("DropDeadLetter", run_id=dropped, tenant_id="ten_b")
    counts = (await letters("CountDeadLetters")).counts
    assert [(count.tenant_id, count.open_count) for count in counts] == [("ten_a", 2), ("ten_b", 1)]


async def test_bounded_no_more_of_a_tenant_is_counted_than_a_number(core, database):
    for n in range(3):
        await set_aside(core, f"c{n}")
    core.tenant = "ten_b"
    await set_aside(core)
    sweep = await postgres.connect(database.dsn("retinue_sweep"), max_size=1)
    store = DeadLetterStore(core.pool, sweep)
    for most, expected in ((2, [("ten_a", 2), ("ten_b", 1)]), (COUNTED_MAX, [("ten_a", 3), ("ten_b", 1)])):
        assert [tuple(row) for row in await store.count(9, most)] == expected
    assert [tuple(row) for row in await store.count(1)] == [("ten_a", 3)]
    await sweep.close()
