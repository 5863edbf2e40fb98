"""A worker executes what is due, in order, and records each end once."""

import asyncio
import json


async def test_a_message_is_answered_and_its_events_are_told_and_kept(mesh, when_over, eventually):
    await mesh.start_worker()
    run = await when_over(await mesh.submit("hello there"))
    assert run["state"] == "succeeded"
    assert run["output"] == "hello there "
    assert json.loads(run["usage"]) == {"input_tokens": 3, "output_tokens": 2, "model": "fake"}
    assert json.loads(run["decision"])["rules"][0]["rule"] == "only_light"
    assert await mesh.types() == ["user.message", "run.started", "assistant.message", "run.succeeded"]

    async def told():
        entries = [e for e in await mesh.told() if e.type]
        return entries if entries and entries[-1].type == "run.succeeded" else None

    entries = await eventually(told)
    cursors = [e.cursor for e in entries]
    assert cursors == sorted(set(cursors))
    text = "".join(json.loads(e.json)["data"]["text"] for e in entries if e.type == "assistant.delta")
    assert text == "hello there "
    assert entries[-1].prev == entries[-2].cursor


async def test_each_run_leaves_one_row_of_what_it_used(mesh, when_over):
    await mesh.start_worker()
    run = await when_over(await mesh.submit("hello there"))
    rows = await mesh.admin.fetch("select * from router.usage_logs where run_id = $1", run["run_id"])
    assert [(r["agent_id"], r["runtime"], r["model"]) for r in rows] == [("agt_1", "light", "fake")]
    assert [(r["message_count"], r["input_tokens"], r["output_tokens"]) for r in rows] == [(2, 3, 2)]


async def test_a_card_is_kept_where_it_was_told_and_its_whole_numbers_stay_whole(mesh, when_over, eventually):
    async def drawn(request):
        yield {"text_delta": {"text": "See:"}}
        yield {"card": {"kind": "weather", "title": "Rome", "body": {"degrees": 20, "rain": 0.5, "days": [1, None]}}}
        yield {"message_completed": {"text": "See:"}}
        yield {"finished": {}}

    mesh.adapter.script = drawn
    await mesh.start_worker()
    await when_over(await mesh.submit("the weather?"))
    assert await mesh.types() == ["user.message", "run.started", "card", "assistant.message", "run.succeeded"]
    row = await mesh.admin.fetchrow("select token, n, data::text from router.events where type = 'card'")
    body = json.loads(row["data"])["body"]
    assert json.dumps(body, sort_keys=True) == '{"days": [1, null], "degrees": 20, "rain": 0.5}'

    async def told():
        return [(e.cursor.token, e.cursor.n) for e in await mesh.told() if e.type == "card"]

    assert await eventually(told) == [(row["token"], row["n"])]


async def test_runs_of_a_session_execute_in_order_and_see_what_was_said(mesh, when_over):
    runs = [await mesh.submit(f"message {i}") for i in range(5)]
    await mesh.start_worker()
    rows = [await when_over(run) for run in runs]
    assert [r.text for r in mesh.adapter.requests] == [f"message {i}" for i in range(5)]
    assert [(c.role, c.text) for c in mesh.adapter.requests[1].context] == [
        ("user", "message 0"),
        ("assistant", "message 0 "),
    ]
    for before, after in zip(rows, rows[1:], strict=False):
        assert before["end_time"] <= after["start_time"]
        assert before["token"] < after["token"]


async def test_thread_file_holds_the_conversation_once(mesh, when_over, eventually):
    await mesh.start_worker()
    for i in range(3):
        await when_over(await mesh.submit(f"m{i}"))
    path = mesh.workspaces / "ten_a" / "contacts" / "ada" / "thread.jsonl"

    def whole():
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return lines if len(lines) == 6 else None

    lines = await eventually(whole)
    assert [(line["role"], line["text"]) for line in lines[:2]] == [("user", "m0"), ("assistant", "m0 ")]
    assert len({line["cursor"] for line in lines}) == 6


async def test_interrupt_keeps_what_was_said_and_rollback_drops_it(mesh, when_over, gate):
    async def slow(request):
        yield {"text_delta": {"text": f"half of {request.text}"}}
        if not request.text.startswith("last"):
            await gate.wait()
        yield {"message_completed": {"text": f"half of {request.text}"}}
        yield {"finished": {}}

    mesh.adapter.script = slow
    await mesh.start_worker()
    first = await mesh.submit("one")
    await asyncio.wait_for(_until(lambda: len(mesh.adapter.requests) == 1), 10)
    second = await mesh.submit("two", busy="interrupt")
    row = await when_over(first)
    assert (row["state"], row["output"], row["dropped"]) == ("cancelled", "half of one", False)
    await asyncio.wait_for(_until(lambda: len(mesh.adapter.requests) == 2), 10)
    third = await mesh.submit("last", busy="rollback")
    row = await when_over(second)
    assert (row["state"], row["dropped"]) == ("cancelled", True)
    assert (await when_over(third))["state"] == "succeeded"
    assert mesh.adapter.aborted == 2
    heard = [(c.role, c.text) for c in mesh.adapter.requests[2].context]
    assert heard == [("user", "one"), ("assistant", "half of one"), ("user", "two")]
    data = await mesh.admin.fetchval(
        "select data from router.events where run_id = $1 and type = 'run.cancelled'", second
    )
    said = await mesh.run(second)
    assert json.loads(data)["rewind_to"] == f"{said['said_token']}-{said['said_n']}"


async def test_a_failing_attempt_is_tried_again_and_then_fails_with_its_reason(mesh, when_over):
    async def failing(request):
        yield {"text_delta": {"text": "so far"}}
        yield {"failed": {"error": {"code": 14, "message": "The model broke off."}, "retryable": True}}

    mesh.adapter.script = failing
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert row["state"] == "failed"
    assert row["attempt"] == 3
    assert json.loads(row["error"])["message"] == "The model broke off."
    assert (await mesh.types()).count("run.failed") == 1
    assert (await mesh.types()).count("run.resumed") == 2


async def test_policy_may_allow_fewer_attempts(mesh, when_over):
    async def failing(request):
        yield {"failed": {"error": {"code": 14, "message": "The model broke off."}, "retryable": True}}

    mesh.adapter.script = failing
    mesh.policy.attempts = 1
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"]) == ("failed", 1)


async def test_without_redis_runs_are_found_in_the_log(mesh, redis_server, when_over):
    redis_server.stop()
    try:
        run = await mesh.submit("x", ring=False)
        await mesh.start_worker()
        assert (await when_over(run))["state"] == "succeeded"
    finally:
        redis_server.start()


async def test_a_lost_bell_is_rung_again_by_the_sweeper(mesh, when_over):
    await mesh.start_worker()
    run = await mesh.submit("x", ring=False)
    assert (await when_over(run))["state"] == "succeeded"


async def test_redis_emptied_in_the_middle_of_a_run_loses_no_durable_event(mesh, when_over, eventually, gate):
    async def slow(request):
        yield {"text_delta": {"text": "a"}}
        await gate.wait()
        yield {"text_delta": {"text": "b"}}
        yield {"message_completed": {"text": "ab"}}
        yield {"finished": {}}

    mesh.adapter.script = slow
    await mesh.start_worker()
    run = await mesh.submit("x")
    await eventually(lambda: mesh.told())
    await mesh.redis.flushall()
    gate.set()
    assert (await when_over(run))["output"] == "ab"

    async def told():
        return [e.type for e in await mesh.told()][-2:] == ["assistant.message", "run.succeeded"]

    await eventually(told)


async def test_a_parked_run_goes_on_after_its_approval_without_counting_an_attempt(mesh, when_over, eventually):
    async def asking(request):
        if not request.approvals:
            yield {
                "approval_requested": {
                    "call_id": "c1", "tool": "rm", "summary": "rm -r x", "expire_s": 600, "checkpoint": b"step",
                }
            }  # fmt: skip
            return
        assert request.checkpoint == b"step"
        yield {"message_completed": {"text": request.approvals[0].decision}}
        yield {"finished": {}}

    mesh.adapter.script = asking
    await mesh.start_worker()
    run = await mesh.submit("x")

    async def waiting():
        return (await mesh.run(run))["state"] == "waiting"

    await eventually(waiting)
    approval = await mesh.admin.fetchval("select approval_id from router.approvals where run_id = $1", run)
    row = await mesh.pool.fetchrow("select * from decide_approval_1('ten_a', $1, 'deny', 'usr_1')", approval)
    assert row["outcome"] == "decided"
    row = await when_over(run)
    assert (row["state"], row["output"], row["attempt"]) == ("succeeded", "deny", 1)
    assert (await mesh.types())[2:4] == ["approval.requested", "approval.decided"]


async def _until(check):
    while not check():
        await asyncio.sleep(0.01)
