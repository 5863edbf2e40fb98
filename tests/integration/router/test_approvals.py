"""Runs that wait for an approval: parked without a lease, resumed by an answer or by the lack of one."""

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
    assert tuple(await core.call("decide_approval_1", "apr_1", "allow_once", "me")) == ("decided", "log_anna", True)
    held = await core.claim()
    assert (held["run_id"], held["attempt"], held["checkpoint"]) == (accepted["run_id"], 1, b"saved")
    assert json.loads(held["approvals"]) == [{"approval_id": "apr_1", "call_id": "call_1", "decision": "allow_once"}]
    assert [(e["type"], e["data"]) for e in events_of(held)] == [
        ("approval.decided", {"approval_id": "apr_1", "decision": "allow_once", "by": "me"})
    ]


async def test_an_approval_is_decided_once(core):
    await core.submit()
    await core.park(await core.claim())
    await core.call("decide_approval_1", "apr_1", "deny", "me")
    assert (await core.call("decide_approval_1", "apr_1", "allow_once", "me"))["outcome"] == "closed"
    assert await core.call("decide_approval_1", "apr_2", "deny", "me") is None
    core.tenant = "ten_b"
    assert await core.call("decide_approval_1", "apr_1", "deny", "me") is None


async def test_silence_becomes_a_denial(core):
    await core.submit()
    await core.park(await core.claim(), expire=GONE)
    assert (await core.call("decide_approval_1", "apr_1", "allow_once", "me"))["outcome"] == "closed"
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
        await core.call("decide_approval_1", f"apr_{i}", "allow_once", "me")
    assert (await core.finish(await core.claim()))["state"] == "succeeded"


async def test_a_waiting_run_is_cancelled_at_once(core):
    accepted = await core.submit()
    await core.park(await core.claim())
    answer = await core.call("cancel_run_1", accepted["run_id"], "me")
    assert (answer["state"], answer["ring"]) == ("cancelled", True)
    assert [e["type"] for e in events_of(await core.claim())] == ["run.cancelled"]
    assert (await core.call("decide_approval_1", "apr_1", "deny", "me"))["outcome"] == "closed"


async def test_a_wish_that_came_before_parking_is_honoured_by_it(core):
    accepted = await core.submit()
    held = await core.claim()
    await core.call("cancel_run_1", accepted["run_id"], "me")
    parked = await core.park(held)
    assert (parked["ok"], parked["ring"]) == (True, True)
    assert (await core.run(accepted["run_id"]))["state"] == "cancelled"
    assert [e["type"] for e in events_of(await core.claim())] == ["run.cancelled"]
