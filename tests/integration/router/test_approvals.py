"""Runs that wait for an approval: parked without a lease, resumed by an answer or by the lack of one."""

import asyncio
import json
from datetime import timedelta

GONE = timedelta(seconds=-1)


def events_of(answer):
    return json.loads(answer["events"] or "[]")


async def test_a_parked_run_holds_no_lease_and_goes_on_once_it_is_decided(core):
    accepted = await core.submit()
    parked = await core.park(await core.claim())
    assert (parked["ok"], parked["ring"]) == (True, False)
    assert events_of(parked)[0]["data"]["approval_id"] == "apr_1"
    log = await core.log()
    assert log["holder"] is None
    assert log["due_time"] > log["create_time"]
    assert await core.claim() is None
    assert tuple(await core.decide("allow_once")) == ("decided", "log_anna", True)
    held = await core.claim()
    assert (held["run_id"], held["attempt"], held["checkpoint"]) == (accepted["run_id"], 1, b"saved")
    assert json.loads(held["approvals"]) == [{"approval_id": "apr_1", "call_id": "call_1", "decision": "allow_once"}]
    assert [(e["type"], e["data"]) for e in events_of(held)] == [
        ("approval.decided", {"approval_id": "apr_1", "decision": "allow_once", "by": "me"})
    ]


async def test_whoever_is_asked_hears_what_always_would_allow(router, core):
    for contact, pattern in (("anna", "git status *"), ("bert", "")):
        await core.submit(contact=contact)
        held = await core.claim(f"log_{contact}")
        parked = await core.park(held, f"apr_{contact}", log=f"log_{contact}", pattern=pattern)
        (event,) = events_of(parked)
        assert (event["type"], event["data"].get("pattern")) == ("approval.requested", pattern or None)
        assert {"approval_id", "call_id", "tool", "summary", "expire_time"} <= event["data"].keys()
    first = await router.call("ListApprovals", state="pending", page_size=1)
    rest = await router.call("ListApprovals", state="pending", page_token=first.next_page_token)
    assert [(a.approval_id, a.pattern) for a in (*first.approvals, *rest.approvals)] == [
        ("apr_bert", ""), ("apr_anna", "git status *"),
    ]  # fmt: skip
    assert rest.next_page_token == ""
    decided = await router.call("DecideApproval", approval_id="apr_anna", decision="allow_once", principal="me")
    assert decided.approval.pattern == "git status *"


async def test_an_approval_is_decided_once(core):
    await core.submit()
    await core.park(await core.claim())
    await core.decide("deny")
    assert (await core.decide("allow_once"))["outcome"] == "closed"
    assert await core.decide("deny", "apr_2") is None
    core.tenant = "ten_b"
    assert await core.decide("deny") is None


async def test_silence_becomes_a_denial(core):
    await core.submit()
    await core.park(await core.claim(), expire=GONE)
    assert (await core.decide("allow_once"))["outcome"] == "closed"
    held = await core.claim()
    assert json.loads(held["approvals"])[0]["decision"] == "expired"
    assert events_of(held)[0]["data"] == {"approval_id": "apr_1", "decision": "deny", "by": "expiry"}


async def test_mail_for_a_waiting_run_s_log_leaves_it_parked_until_its_expiry(core):
    await core.submit()
    await core.park(await core.claim())
    until = (await core.log())["due_time"]
    second = await core.submit()
    assert not second["ring"]
    await core.call("cancel_run_1", second["run_id"], "me")
    mail = await core.claim()
    assert (mail["run_id"], [e["type"] for e in events_of(mail)]) == (None, ["run.cancelled"])
    log = await core.log()
    assert (log["due_time"], log["holder"]) == (until, None)


async def test_approvals_do_not_use_up_attempts(core):
    await core.submit()
    for i in range(5):
        held = await core.claim()
        assert held["attempt"] == 1
        await core.park(held, f"apr_{i}")
        await core.decide("allow_once", f"apr_{i}")
    assert (await core.finish(await core.claim()))["state"] == "succeeded"


async def test_a_waiting_run_is_cancelled_at_once(core):
    accepted = await core.submit()
    await core.park(await core.claim())
    answer = await core.call("cancel_run_1", accepted["run_id"], "me")
    assert (answer["state"], answer["ring"]) == ("cancelled", True)
    assert [e["type"] for e in events_of(await core.claim())] == ["run.cancelled"]
    assert (await core.decide("deny"))["outcome"] == "closed"


async def test_a_wish_that_came_before_parking_is_honoured_by_it(core):
    accepted = await core.submit()
    held = await core.claim()
    await core.call("cancel_run_1", accepted["run_id"], "me")
    parked = await core.park(held)
    assert (parked["ok"], parked["ring"]) == (True, True)
    assert (await core.run(accepted["run_id"]))["state"] == "cancelled"
    assert [e["type"] for e in events_of(await core.claim())] == ["run.cancelled"]


async def test_of_many_answers_at_once_one_counts(core):
    await core.submit()
    await core.park(await core.claim(), pattern="ls *")
    decisions = ["allow_once", "deny", "allow_always", "deny", "allow_always", "allow_once"]
    answers = await asyncio.gather(*(core.decide(decision, by=f"usr_{n}") for n, decision in enumerate(decisions)))
    (winner,) = [n for n, answer in enumerate(answers) if answer["outcome"] == "decided"]
    assert [answer["outcome"] for answer in answers].count("closed") == len(decisions) - 1
    (row,) = await core.seen("select state, decided_by from router.approvals")
    assert tuple(row) == (decisions[winner], f"usr_{winner}")
    assert bool(await core.allowed()) == (decisions[winner] == "allow_always")
    held = await core.claim()
    told = [e["data"] for e in events_of(held) if e["type"] == "approval.decided"]
    assert told == [{"approval_id": "apr_1", "decision": decisions[winner], "by": f"usr_{winner}"}]


async def test_after_its_run_has_ended_an_approval_cannot_be_answered_and_allows_nothing(core):
    await core.submit()
    await core.park(await core.claim(), pattern="ls *", expire=GONE)
    assert (await core.decide("allow_always"))["outcome"] == "closed"
    await core.finish(await core.claim())
    assert (await core.decide("allow_always"))["outcome"] == "closed"
    assert await core.allowed() == []


async def test_no_cross_tenant_an_approval_of_another_tenant_is_as_good_as_none(core):
    await core.submit()
    await core.park(await core.claim(), pattern="ls *")
    core.tenant = "ten_b"
    assert await core.decide("allow_always") is None
    assert await core.allowed() == []
    core.tenant = "ten_a"
    assert (await core.decide("deny"))["outcome"] == "decided"
