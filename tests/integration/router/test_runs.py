"""Runs over the wire: accepted, read, listed, stopped; and what is refused."""

import asyncio

import pytest
from google.protobuf import json_format
from retinue.router.v1 import run_pb2
from retinue_kit.errors import Reason, RetinueError
from retinue_router.domain.contacts import log_id_of
from retinue_router.ring import Ring

ANNA = log_id_of("ten_a", "anna")


async def test_an_accepted_run_is_answered_as_it_is_read(router):
    run = await router.submit("hello", metadata={"a": 1})
    assert run.state == run_pb2.RUN_STATE_QUEUED
    assert (run.contact, run.kind, run.log_id, run.after_cursor) == ("anna", "chat", ANNA, "0-0")
    assert run.run_id.startswith("run_")
    assert run.session_id.startswith("ses_")
    assert (await router.call("GetRun", run_id=run.run_id)).run == run


async def test_ack_is_durable_an_accepted_run_is_in_the_ring_and_can_be_claimed(router, core):
    run = await router.submit("hello", runtime="light", reasoning=True, context=[{"role": "user", "text": "before"}])
    assert (await Ring(router.redis).pop(1)).ticket == ("ten_a", ANNA)
    held = await core.claim(ANNA)
    assert held["run_id"] == run.run_id
    assert '"before"' in held["input"]


async def test_ack_is_durable_without_redis(router, redis_server, core):
    redis_server.kill()
    run = await router.submit()
    assert (await core.run(run.run_id))["state"] == "queued"
    assert (await core.log(ANNA))["due_time"] is not None  # the sweeper will ring
    await router.call("CancelRun", run_id=run.run_id)


async def test_a_run_behind_a_live_holder_is_not_rung_for(router, core):
    await router.submit()
    assert await Ring(router.redis).pop(1)
    await core.claim(ANNA)
    await router.submit()
    assert await Ring(router.redis).pop(1) is None


async def test_same_key_same_answer(router):
    asked = {"idempotency_key": "k", "metadata": {"b": 1, "a": [1.5, None]}}
    answers = await asyncio.gather(
        *(
            router.call("SubmitRun", contact="anna", kind="chat", on_busy="enqueue", text="x", **asked)
            for _ in range(20)
        )
    )
    assert len({a.run.run_id for a in answers}) == 1
    assert sorted(a.replayed for a in answers) == [False] + 19 * [True]
    again = await router.submit("x", runtime="auto", **asked)
    assert again.run_id == answers[0].run.run_id


async def test_same_key_other_body_is_refused(router):
    await router.submit("x", idempotency_key="k")
    others = [
        {"text": "y"}, {"contact": "berta"}, {"metadata": {"a": 1}}, {"on_busy": "reject"}, {"runtime": "light"},
    ]  # fmt: skip
    for other in others:
        with pytest.raises(RetinueError) as refused:
            await router.submit(**{"text": "x", "idempotency_key": "k", **other})
        assert refused.value.reason == Reason.IDEMPOTENCY_KEY_REUSED


async def test_same_key_after_deletion_says_that_the_run_is_gone(router):
    await router.submit("x", idempotency_key="k")
    await router.call("DeleteContact", contact="anna")
    with pytest.raises(RetinueError, match="deleted with its contact") as refused:
        await router.submit("x", idempotency_key="k")
    assert refused.value.reason == Reason.RUN_NOT_FOUND


async def test_a_busy_session_is_refused_where_that_is_asked_for(router):
    await router.submit()
    with pytest.raises(RetinueError) as refused:
        await router.submit(on_busy="reject")
    assert refused.value.reason == Reason.SESSION_BUSY


async def test_an_interrupted_holder_is_poked(router, core):
    await router.submit()
    held = await core.claim(ANNA, "wrk_1:3")
    async with router.redis.pubsub() as pubsub:
        await pubsub.subscribe("w:wrk_1")
        assert (await pubsub.get_message(timeout=5))["type"] == "subscribe"
        await router.submit(on_busy="interrupt")
        assert (await pubsub.get_message(timeout=5))["data"] == f"ten_a {ANNA}".encode()
        await router.call("CancelRun", run_id=held["run_id"])
        assert (await pubsub.get_message(timeout=5))["data"] == f"ten_a {ANNA}".encode()


async def test_a_queued_run_is_cancelled_at_once(router):
    run = await router.submit()
    cancelled = (await router.call("CancelRun", run_id=run.run_id, principal="me")).run
    assert cancelled.state == run_pb2.RUN_STATE_CANCELLED
    assert cancelled.HasField("end_time")
    assert (await router.call("CancelRun", run_id=run.run_id)).run == cancelled


async def test_a_finished_run_shows_what_it_said_used_and_why_it_was_decided_so(router, core):
    run = await router.submit()
    await core.finish(await core.claim(ANNA), log=ANNA)
    done = (await router.call("GetRun", run_id=run.run_id)).run
    assert (done.state, done.output_text, done.runtime) == (run_pb2.RUN_STATE_SUCCEEDED, "yes", "light")
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.model) == (3, 5, "small")
    assert done.decision["runtime"] == "light"
    assert not done.HasField("error")


async def test_a_failed_run_shows_why(router, core):
    run = await router.submit()
    for _ in range(3):
        await core.claim(ANNA, ttl=core.GONE)
    await core.claim(ANNA)
    failed = (await router.call("GetRun", run_id=run.run_id)).run
    shown = json_format.MessageToDict(failed.error, preserving_proto_field_name=True)
    assert shown["details"][0]["reason"] == "ATTEMPTS_EXHAUSTED"


async def test_runs_are_listed_newest_first_in_pages(router):
    runs = [(await router.submit(contact=name)).run_id for name in ("anna", "berta", "anna", "anna", "berta")]
    await router.call("CancelRun", run_id=runs[2])
    found, token = [], ""
    while True:
        page = await router.call("ListRuns", page_size=2, page_token=token)
        found += [run.run_id for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert found == runs[::-1]
    of_anna = await router.call("ListRuns", contact="anna")
    assert [run.run_id for run in of_anna.runs] == [runs[3], runs[2], runs[0]]
    cancelled = await router.call("ListRuns", contact="anna", state="RUN_STATE_CANCELLED")
    assert [run.run_id for run in cancelled.runs] == [runs[2]]


async def test_a_page_token_from_elsewhere_is_refused(router):
    for token in ("x", "r.", "r.nonsense!", "c.anna", "r.run_1\n", "…"):
        with pytest.raises(RetinueError) as refused:
            await router.call("ListRuns", page_token=token)
        assert refused.value.reason == Reason.CURSOR_INVALID


async def test_accepting_a_run_takes_one_trip_to_redis(router):
    async def calls():
        stats = await router.redis.info("commandstats")
        return {name: s["calls"] for name, s in stats.items() if name in ("cmdstat_evalsha", "cmdstat_eval")}

    await router.submit(contact="first")  # loads the script
    before = await calls()
    for i in range(10):
        await router.submit(contact=f"c{i}")
    assert sum((await calls()).values()) - sum(before.values()) == 10


REFUSED = [
    ({"text": ""}, "text"),
    ({"text": "a\0b"}, "text"),
    ({"text": "x" * 100_001}, "text"),
    ({"contact": ".."}, "contact"),
    ({"contact": "a/b"}, "contact"),
    ({"contact": "anna:reset"}, "contact"),
    ({"contact": "A\u030angstrom"}, "contact"),
    ({"on_busy": "wait"}, "on_busy"),
    ({"metadata": {"a\0": 1}}, "request"),
    ({"metadata": {"deep": [{"a": "\0"}]}}, "request"),
    ({"kind": "a\0"}, "request"),
    ({"idempotency_key": "a b"}, "idempotency_key"),
]


async def test_what_cannot_be_executed_is_refused_naming_the_field(router):
    for asked, field in REFUSED:
        with pytest.raises(RetinueError) as refused:
            await router.submit(**asked)
        assert (refused.value.reason, refused.value.metadata["field"]) == (Reason.FIELD_INVALID, field)
    assert not (await router.call("ListRuns")).runs


async def test_numbers_that_json_has_not_are_refused_and_large_ones_kept(router, core):
    for wrong in ("NaN", "Infinity"):
        with pytest.raises(RetinueError) as refused:
            await router.submit(parameters={"temperature": float(wrong)})
        assert refused.value.metadata["field"] == "parameters"
    run = await router.submit(parameters={"a": 1e300, "b": 2, "c": 0.5, "d": -(2**60)})
    assert '"b": 2' in (await core.run(run.run_id))["input"]


async def test_a_task_runs_beside_the_chat_and_says_its_input(router, core):
    await router.submit()
    task = await router.submit("", kind="extract", input={"text": "find names"})
    assert task.log_id != ANNA
    held = await core.claim(task.log_id)
    assert '"find names"' in held["input"]
    other = await router.submit("", kind="extract", input={"url": "x"})
    assert "url" in (await core.claim(other.log_id))["input"]


async def test_no_cross_tenant_foreign_runs_look_as_if_they_were_missing(router):
    run = await router.submit()
    router.tenant = "ten_b"
    for call in ("GetRun", "CancelRun"):
        with pytest.raises(RetinueError) as refused:
            await router.call(call, run_id=run.run_id)
        assert refused.value.reason == Reason.RUN_NOT_FOUND
    assert not (await router.call("ListRuns")).runs
    assert (await router.call("GetLog", contact="anna")).last_cursor == "0-0"


async def test_without_postgres_calls_say_so_and_when_to_come_back(router, postgres_server):
    postgres_server.kill()
    with pytest.raises(RetinueError) as refused:
        await router.submit()
    assert refused.value.reason == Reason.DEPENDENCY_UNAVAILABLE
    assert refused.value.retry_after_s
    with pytest.raises(RetinueError):
        await router.call("GetRun", run_id="run_1")
    postgres_server.start()


async def test_health_tells_of_each_dependency(router, redis_server, eventually):
    await router.peer.check("postgres")
    await router.peer.check("redis")
    await router.peer.check()
    redis_server.kill()

    async def unwell():
        try:
            await router.peer.check("redis")
        except RetinueError:
            return True
        return False

    await eventually(unwell)
    await router.peer.check("postgres")
