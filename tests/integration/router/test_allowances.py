"""What was allowed for good: written by the answer to an approval, given to every attempt, taken back."""

import asyncio
import json

import pytest
from retinue_kit.errors import Reason, RetinueError


async def ask(core, number, *, pattern="ls *", contact=None):
    """Have a run wait for an approval; answers the approval's id."""
    log = f"log_{contact or f'c{number}'}"
    await core.submit(contact=log.removeprefix("log_"))
    await core.park(await core.claim(log), f"apr_{number}", log=log, pattern=pattern)
    return f"apr_{number}"


async def state_of(core, approval):
    (row,) = await core.seen("select state from router.approvals where approval_id = $1", approval)
    return row["state"]


async def test_no_cross_tenant_what_is_allowed_for_good_is_its_own_tenants(core):
    await core.decide("allow_once", await ask(core, 1, pattern="once"))
    await core.decide("deny", await ask(core, 2, pattern="never"))
    assert (await core.decide("allow_always", await ask(core, 3)))["outcome"] == "decided"
    assert await state_of(core, "apr_3") == "allow_always"
    await core.decide("allow_always", await ask(core, 4))  # the same once more
    assert await core.allowed() == [("shell", "ls *")]
    (row,) = await core.seen(
        "select tenant_id, principal, create_time <= clock_timestamp() as past from router.allowances"
    )
    assert tuple(row) == ("ten_a", "me", True)
    core.tenant = "ten_b"
    assert await core.allowed() == []


async def test_what_is_allowed_for_good_outlives_the_contact_with_whom_it_was(core):
    await core.decide("allow_always", await ask(core, 1, contact="anna"))
    await core.call("delete_contact_1", "anna", "log_anna")
    assert await core.allowed() == [("shell", "ls *")]


async def test_where_nothing_can_be_allowed_for_good_the_answer_counts_once_and_says_so(core):
    await core.decide("allow_always", await ask(core, 1, pattern="", contact="anna"))
    assert await state_of(core, "apr_1") == "allow_once"
    held = await core.claim()
    assert json.loads(held["approvals"])[0]["decision"] == "allow_once"
    assert json.loads(held["events"])[0]["data"]["decision"] == "allow_once"
    assert await core.allowed() == []


@pytest.mark.parametrize("bound", [{"most": 3}, {"most_bytes": 3 * len("ls 0")}])
async def test_bounded_many_answers_at_once_allow_no_more_than_a_tenant_may(core, bound):
    asked = [await ask(core, number, pattern=f"ls {number}") for number in range(8)]
    await asyncio.gather(*(core.decide("allow_always", approval, **bound) for approval in asked))
    states = [await state_of(core, approval) for approval in asked]
    kept = [f"ls {number}" for number, state in enumerate(states) if state == "allow_always"]
    assert (len(kept), states.count("allow_once")) == (3, 5)
    assert sorted(pattern for _, pattern in await core.allowed()) == kept
    again = await ask(core, 9, pattern=kept[0])
    await core.decide("allow_always", again, **bound)
    assert await state_of(core, again) == "allow_always"  # which needs no more room


async def test_a_pattern_may_be_longer_than_an_index_holds(core):
    long = "".join(chr(0x4E00 + n * 7 % 20_000) for n in range(4000))
    await core.decide("allow_always", await ask(core, 1, pattern=long))
    await core.decide("allow_always", await ask(core, 2, pattern=long + "x"))
    assert [pattern for _, pattern in await core.allowed()] == [long, long + "x"]


async def test_allowances_are_listed_newest_first_and_taken_back(router, core):
    for number in range(3):
        approval = await ask(core, number, pattern=f"ls {number}")
        decided = await router.call("DecideApproval", approval_id=approval, decision="allow_always", principal="usr_1")
        assert decided.approval.state == "allow_always"
    page = await router.call("ListAllowances", page_size=2)
    assert [(a.tool, a.pattern, a.principal) for a in page.allowances] == [
        ("shell", "ls 2", "usr_1"), ("shell", "ls 1", "usr_1"),
    ]  # fmt: skip
    rest = await router.call("ListAllowances", page_size=2, page_token=page.next_page_token)
    assert ([a.pattern for a in rest.allowances], rest.next_page_token) == (["ls 0"], "")
    newest = page.allowances[0].allowance_id
    assert newest.startswith("alw_")
    assert page.allowances[0].HasField("create_time")
    assert not (await router.call("ListAllowances", tenant_id="ten_b")).allowances
    for of in ({"tenant_id": "ten_b", "allowance_id": newest}, {"allowance_id": "alw_none"}):
        with pytest.raises(RetinueError) as refused:
            await router.call("DeleteAllowance", **of)
        assert refused.value.reason is Reason.ALLOWANCE_NOT_FOUND
    await router.call("DeleteAllowance", allowance_id=newest)
    assert [pattern for _, pattern in await core.allowed()] == ["ls 0", "ls 1"]
    with pytest.raises(RetinueError) as refused:
        await router.call("ListAllowances", page_token="a.apr_1")
    assert refused.value.reason is Reason.CURSOR_INVALID


TOLD = {"call_id": "c1", "tool": "exec", "arguments": {}, "ok": True}


async def record(core, held, n, type_, call_id):
    """Record an event of a tool with a step."""
    event = {"n": n, "type": type_, "data": {**TOLD, "call_id": call_id}, "run_id": held["run_id"],
             "session_id": held["session_id"]}  # fmt: skip
    await core.pool.fetchrow(
        "select * from checkpoint_1($1, 'log_anna', $2, $3, $4, 's', $5, interval '30 s')",
        core.tenant, held["token"], held["run_id"], json.dumps([event]), json.dumps({"runtime": "openclaw"}),
    )  # fmt: skip


async def test_a_run_is_bound_to_its_runtime_from_the_start_of_a_tool_call_to_the_run_s_end(core):
    async def bound():
        return await core.pool.fetchval("select tool_runtime_1($1, $2)", core.tenant, run)

    run = (await core.submit())["run_id"]
    held = await core.claim()
    assert await bound() is None
    await record(core, held, 11, "tool.started", "c1")
    await record(core, held, 12, "tool.started", "c2")
    assert await bound() == "openclaw"
    await record(core, held, 13, "tool.finished", "c1")
    assert await bound() == "openclaw"
    core.tenant = "ten_b"
    assert await bound() is None
    core.tenant = "ten_a"
    await record(core, held, 14, "tool.finished", "c2")
    assert await bound() == "openclaw"  # another would begin the run anew, and make both calls again
    await core.finish(held, "succeeded", events=[])
    assert (await core.submit("and now?"))["run_id"] != run
    run = (await core.claim())["run_id"]
    assert await bound() is None


@pytest.mark.parametrize(("decision", "runtime"), [("allow_once", "light"), ("deny", None)])
async def test_a_call_that_was_allowed_binds_its_run_and_one_that_was_denied_does_not(core, decision, runtime):
    run = (await core.submit())["run_id"]
    await core.park(await core.claim())
    await core.decide(decision)
    assert await core.pool.fetchval("select tool_runtime_1($1, $2)", core.tenant, run) == runtime
