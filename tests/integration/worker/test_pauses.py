"""Runtimes that plan tool calls, pause until that is recorded, and go on under the same token."""

import asyncio
import json

import pytest
from retinue_kit.errors import RetinueError
from retinue_router.worker import attempt as attempts
from retinue_router.worker.keeper import leases_lost
from retinue_router.worker.leases import LeaseStore

BROKEN = {"failed": {"error": {"code": 14, "message": "The model broke off."}, "retryable": True}}


def said(text):
    return [{"text_delta": {"text": text}}, {"message_completed": {"text": text}}]


def pause(state, *call_ids):
    return {"paused": {"state": state, "starting": [{"call_id": one, "tool": "count"} for one in call_ids]}}


def ended(call_id, state):
    """A call's end, with the state that holds its result."""
    return [{"checkpoint": {"state": state}}, {"tool_finished": {"call_id": call_id, "ok": True, "result": "1"}}]


def playing(*scenes):
    """A runtime that plays one scene after another, whatever it is asked."""
    left = list(scenes)

    async def script(request):
        for event in left.pop(0):
            yield event

    return script


def reason(row):
    return json.loads(row["error"])["details"][0]["reason"]


def lost_leases():
    return leases_lost.collect()[0].samples[0].value


async def texts(mesh):
    rows = await mesh.admin.fetch(
        "select data ->> 'text' as text from router.events where type = 'assistant.message' order by token, n"
    )
    return [row["text"] for row in rows]


async def test_one_effect_a_plan_and_all_that_it_begins_are_recorded_in_one_commit_before_the_runtime_goes_on(
    mesh, monkeypatch, when_over
):
    commit, commits, at_the_start = LeaseStore.checkpoint, [], []

    async def noted(self, *args):
        commits.append(([event["type"] for event in json.loads(args[3])], args[4]))
        return await commit(self, *args)

    async def planning(request):
        if not request.checkpoint:
            for event in [*said("Let me see."), {"checkpoint": {"state": b"planned"}}, pause(b"begun", "c1", "c2")]:
                yield event
            return
        at_the_start.extend(await mesh.types())
        for event in [*ended("c1", b"one"), *ended("c2", b"both"), *said("Two.")]:
            yield event
        yield {"finished": {"usage": {"input_tokens": 9, "output_tokens": 4, "model": "fake"}}}

    monkeypatch.setattr(LeaseStore, "checkpoint", noted)
    mesh.adapter.script = planning
    await mesh.start_worker()
    row = await when_over(await mesh.submit("count twice"))
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, "Let me see.\n\nTwo.")
    begun = ["run.started", "assistant.message", "tool.started", "tool.started"]
    assert [types for types, _ in commits] == [begun, ["tool.finished"], ["tool.finished"]]
    for (_, saved), state in zip(commits, (b"begun", b"one", b"both"), strict=True):
        assert state in saved
    assert at_the_start == ["user.message", *begun]
    first, second = mesh.adapter.requests
    assert (second.fencing_token, second.attempt, second.checkpoint) == (first.fencing_token, 1, b"begun")
    assert 0 < second.run_time.ToMilliseconds() < first.run_time.ToMilliseconds()
    assert json.loads(row["usage"])["input_tokens"] == 9


async def test_nothing_is_told_again_within_an_attempt_and_whole_messages_are_under_another_token(mesh, when_over):
    one, two, three = said("one"), said("two"), said("three")
    mesh.adapter.script = playing(
        [*one, pause(b"1", "c1")],
        [*ended("c1", b"1+"), *two, pause(b"2", "c2")],
        [*ended("c2", b"2+"), BROKEN],
        [*one, *two, pause(b"3", "c3")],  # a new token: what the state holds is told again, and recorded already
        [*ended("c3", b"3+"), *three, {"finished": {}}],
    )
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 2, "one\n\ntwo\n\nthree")
    assert await texts(mesh) == ["one", "two", "three"]
    asked = [(request.attempt, request.checkpoint) for request in mesh.adapter.requests]
    assert asked == [(1, b""), (1, b"1"), (1, b"2"), (2, b"2+"), (2, b"3")]
    tokens = [request.fencing_token for request in mesh.adapter.requests]
    assert tokens[0] == tokens[1] == tokens[2] < tokens[3] == tokens[4]


async def test_what_is_said_behind_a_pause_is_never_taken_for_what_was_recorded_before(mesh, when_over):
    mesh.adapter.script = playing(
        [*said("one"), {"tool_started": {"call_id": "c0", "tool": "count"}}, BROKEN],  # recorded, and in no state
        [pause(b"1", "c1")],
        [*ended("c1", b"1+"), *said("two"), {"finished": {}}],
    )
    await mesh.start_worker()
    assert (await when_over(await mesh.submit("x")))["output"] == "one\n\ntwo"
    assert await texts(mesh) == ["one", "two"]


async def test_a_plan_whose_stream_breaks_off_has_begun_nothing(mesh, when_over):
    async def script(request):
        if request.attempt == 1:
            yield pause(b"begun", "c1")
            raise RetinueError.unavailable("runtime-adapter")
        for event in [*said("x"), {"finished": {}}]:
            yield event

    mesh.adapter.script = script
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    assert [request.checkpoint for request in mesh.adapter.requests] == [b"", b""]
    assert "tool.started" not in await mesh.types()


async def test_no_stale_write_a_worker_whose_lease_is_lost_begins_nothing(mesh, gate, when_over, eventually):
    async def script(request):
        if request.fencing_token == 1:
            await gate.wait()
            yield pause(b"begun", "c1")
            return
        for event in [*said("x"), {"finished": {}}]:
            yield event

    mesh.adapter.script = script
    await mesh.start_worker(lease_s=60, renew_s=20)
    run = await mesh.submit("x")
    await eventually(lambda: mesh.adapter.requests)
    await mesh.admin.execute("update router.logs set holder = 'other:1', token = token + 1 where log_id = 'log_ada'")
    before = lost_leases()
    gate.set()
    await eventually(lambda: lost_leases() > before)
    assert len(mesh.adapter.requests) == 1
    await mesh.admin.execute("update router.logs set holder = null, due_time = clock_timestamp()")
    row = await when_over(run)
    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    assert "tool.started" not in await mesh.types()


async def test_bounded_a_runtime_that_pauses_for_ever_is_stopped(mesh, monkeypatch, when_over):
    async def endless(request):
        yield pause(b"again", f"c{len(mesh.adapter.requests)}")

    monkeypatch.setattr(attempts, "PAUSES_MAX", 3)
    mesh.adapter.script = endless
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], reason(row)) == ("failed", 1, "OUTPUT_TOO_LARGE")
    assert len(mesh.adapter.requests) == 4
    assert (await mesh.types()).count("tool.started") == 3


async def test_bounded_the_time_of_a_run_goes_on_over_its_pauses(mesh, when_over):
    async def slow(request):
        await asyncio.sleep(2 * mesh.policy.run_time_s)
        yield pause(b"again", "c1")

    mesh.policy.run_time_s = 0.01
    mesh.adapter.script = slow
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], reason(row)) == ("failed", 1, "RUN_TIMEOUT")
    assert len(mesh.adapter.requests) == 1


async def test_bounded_a_state_that_is_too_large_to_be_kept_ends_the_run(mesh, when_over):
    mesh.adapter.script = playing([pause(b"x" * (4 * 1024 * 1024 + 1), "c1")])
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], reason(row)) == ("failed", "OUTPUT_TOO_LARGE")


async def test_states_and_what_tools_answer_do_not_count_as_what_the_run_says(mesh, when_over):
    mesh.adapter.script = playing(
        *([*ended(f"c{n}", b"x" * 900_000), pause(b"y" * 900_000, f"c{n + 1}")] for n in range(6)),
        [*said("x"), {"finished": {}}],
    )
    await mesh.start_worker()
    assert (await when_over(await mesh.submit("x")))["state"] == "succeeded"


@pytest.mark.parametrize("tools", [[], ["exec", "read"]])
async def test_a_runtime_is_told_which_tools_it_may_offer_in_which_box_and_what_was_allowed(mesh, when_over, tools):
    for tenant in ("ten_a", "ten_b"):
        await mesh.admin.execute(
            "insert into router.allowances (tenant_id, allowance_id, tool, pattern, digest, principal)"
            " values ($1, 'alw_1', 'exec', $1 || ' *', 'd', 'usr_1')",
            tenant,
        )
    mesh.policy.tools = tools
    await mesh.start_worker()
    await when_over(await mesh.submit("x"))
    (request,) = mesh.adapter.requests
    assert (request.agent_id, request.kind, list(request.tools)) == ("agt_1", "chat", tools)
    given = [(one.tool, one.pattern) for one in request.allowances]
    assert given == ([("exec", "ten_a *")] if tools else [])
    box = (request.box.min_isolation, list(request.box.egress))
    assert box == (("gvisor", ["example.com:443"]) if tools else ("", []))
    assert mesh.policy.requests[0].agent_id == "agt_1"


async def test_policy_hears_that_a_run_has_called_tools_and_under_which_runtime(mesh, when_over):
    mesh.adapter.script = playing(
        [pause(b"1", "c1")], [BROKEN], [*ended("c1", b"1+"), BROKEN], [*said("x"), {"finished": {}}],
        [*said("y"), {"finished": {}}],
    )  # fmt: skip
    await mesh.start_worker()
    assert (await when_over(await mesh.submit("x")))["attempt"] == 3
    await when_over(await mesh.submit("y"))
    heard = [(r.attempt, r.tool_transaction_open, r.session_runtime) for r in mesh.policy.requests]
    assert heard == [(1, False, ""), (2, True, "light"), (3, True, "light"), (1, False, "light")]
