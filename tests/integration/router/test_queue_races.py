"""What others do to a run at the moment in which it is put back, waits for its time, or is admitted."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

SOON = timedelta(hours=1)
GONE = timedelta(seconds=-1)
NOW = timedelta(0)
RACES = 15
"""Repetitions of a race: both orders were seen in each run of as many."""

TERMINAL = ("run.succeeded", "run.failed", "run.cancelled")


def later():
    return datetime.now(UTC) + SOON


async def drained(core, log="log_anna"):
    """Execute all that is due in a log."""
    while (held := await core.claim(log)) is not None:
        if held["run_id"]:
            await core.finish(held, log=log)


async def endings(core, run_id):
    rows = await core.seen("select type from router.events where run_id = $1 order by token, n", run_id)
    return [row["type"] for row in rows if row["type"] in TERMINAL]


async def test_an_attempt_that_was_given_back_is_not_counted_and_its_message_said_once(core):
    accepted = await core.submit()
    for token in (1, 2, 3, 4):
        held = await core.claim()
        assert (held["token"], held["attempt"]) == (token, 1)
        assert (await core.finish(held, "queued", refund=True))["state"] == "queued"
    assert (await core.finish(await core.claim()))["state"] == "succeeded"
    assert (await core.types()).count("user.message") == 1
    assert (await core.types()).count("run.resumed") == 4
    assert await endings(core, accepted["run_id"]) == ["run.succeeded"]


async def test_giving_an_attempt_back_and_asking_again_gives_it_back_once(core):
    accepted = await core.submit()
    held = await core.claim()
    for _ in range(3):
        assert (await core.finish(held, "queued", refund=True))["ok"]
    assert (await core.run(accepted["run_id"]))["attempt"] == 0


@pytest.mark.parametrize("refund", [True, False])
async def test_a_wish_to_stop_that_meets_an_attempt_being_put_back_ends_the_run_once(core, refund):
    for _ in range(RACES):
        accepted = await core.submit()
        held = await core.claim()
        put_back = core.finish(held, "queued", refund=refund, delay=SOON)
        await asyncio.gather(put_back, core.call("cancel_run_1", accepted["run_id"], "me"))
        await drained(core)
        assert (await core.run(accepted["run_id"]))["state"] == "cancelled"
        assert await endings(core, accepted["run_id"]) == ["run.cancelled"]
        assert (await core.log())["due_time"] is None


@pytest.mark.parametrize("busy", ["interrupt", "rollback"])
async def test_a_run_that_rests_before_its_next_attempt_is_stopped_by_the_message_that_asks_for_it(core, busy):
    stopped = await core.submit("one")
    await core.finish(await core.claim(), "queued", delay=SOON)
    answer = await core.submit("two", busy=busy)
    assert (answer["ring"], answer["poke"]) == (True, None)
    held = await core.claim()
    assert held["run_id"] == answer["run_id"]
    assert json.loads(held["history"]) == [{"role": "user", "text": "one"}]
    assert (await core.run(stopped["run_id"]))["dropped"] == (busy == "rollback")
    assert await endings(core, stopped["run_id"]) == ["run.cancelled"]


async def test_a_message_that_stops_a_resting_run_and_a_claim_of_that_run_leave_one_ending_each(core):
    for _ in range(RACES):
        first = await core.submit("one")
        await core.finish(await core.claim(), "queued", delay=NOW)
        second, held = await asyncio.gather(core.submit("two", busy="rollback"), core.claim())
        if held is not None and held["run_id"]:
            await core.finish(held)
        await drained(core)
        assert await endings(core, first["run_id"]) == ["run.cancelled"]
        assert await endings(core, second["run_id"]) == ["run.succeeded"]
        assert (await core.run(first["run_id"]))["dropped"]


async def test_a_resting_run_makes_its_session_busy_and_one_that_never_began_is_left_in_its_place(core):
    resting = await core.submit()
    await core.finish(await core.claim(), "queued", delay=NOW)
    assert (await core.submit(busy="reject"))["outcome"] == "busy"
    assert (await core.finish(await core.claim()))["ok"]
    waiting = await core.submit()
    await core.submit(busy="interrupt")
    assert (await core.run(waiting["run_id"]))["state"] == "queued"
    assert await endings(core, resting["run_id"]) == ["run.succeeded"]


async def test_a_task_whose_time_has_not_come_is_neither_rung_for_nor_taken(core):
    task = await core.submit(kind="digest", log="tsk_1", run_at=later())
    assert not task["ring"]
    assert await core.claim("tsk_1") is None
    due = await core.submit(kind="digest", log="tsk_2", run_at=datetime.now(UTC) - SOON)
    assert due["ring"]
    assert (await core.claim("tsk_2"))["run_id"] == due["run_id"]


async def test_a_task_that_is_cancelled_before_its_time_ends_at_once_and_its_contact_hears_of_it(core):
    task = await core.submit(kind="digest", log="tsk_1", run_at=later())
    answer = await core.call("cancel_run_1", task["run_id"], "me")
    assert (answer["state"], answer["ring"], answer["told"]) == ("cancelled", True, "log_anna")
    await drained(core, "tsk_1")
    await drained(core)
    assert await endings(core, task["run_id"]) == ["run.cancelled"]
    assert "task.finished" in await core.types()
    assert await core.claim("tsk_1") is None


async def test_tasks_of_later_go_with_their_contact(core):
    for number in range(3):
        await core.submit(kind="digest", log=f"tsk_{number}", run_at=later(), key=f"k{number}")
    task = await core.submit(kind="digest", log="tsk_c", run_at=later())
    await asyncio.gather(
        core.call("delete_contact_1", "anna", "log_anna"), core.call("cancel_run_1", task["run_id"], "me")
    )
    assert await core.seen("select from router.runs") == []
    assert await core.seen("select from router.mail") == []
    assert (await core.submit(kind="digest", key="k1"))["outcome"] == "deleted"


async def test_a_cancel_and_a_claim_of_a_task_whose_time_has_come_leave_one_ending(core):
    for number in range(RACES):
        log = f"tsk_{number}"
        task = await core.submit(kind="digest", log=log, run_at=datetime.now(UTC))
        held, _ = await asyncio.gather(core.claim(log), core.call("cancel_run_1", task["run_id"], "me"))
        if held is not None and held["run_id"]:
            await core.finish(held, log=log)
        await drained(core, log)
        assert await endings(core, task["run_id"]) == ["run.cancelled"]


async def test_bounded_many_submits_at_once_overshoot_a_full_queue_by_no_more_than_their_number(core):
    answers = await asyncio.gather(*(core.submit(contact=f"c{n}", queue_max=5) for n in range(20)))
    accepted = [a for a in answers if a["outcome"] == "accepted"]
    assert 5 <= len(accepted) <= 20
    full = await core.submit(contact="new", queue_max=5)
    assert (full["outcome"], full["run_id"]) == ("full", None)
    assert await core.log("log_new") is None  # a refusal leaves nothing behind
    assert (await core.submit(contact="new", kind="digest", queue_max=5, run_at=later()))["outcome"] == "accepted"


async def test_same_key_same_answer_although_the_queue_is_full_by_now(core):
    first = await core.submit(key="k", queue_max=1)
    again = await core.submit(key="k", queue_max=1)
    assert (again["outcome"], again["run_id"]) == ("replay", first["run_id"])
    assert (await core.submit(key="other", queue_max=1))["outcome"] == "full"


@pytest.mark.parametrize("lost_by", ["death", "failure"])
async def test_answers_to_an_approval_outlive_the_attempt_that_they_were_given_to(core, lost_by):
    await core.submit()
    await core.park(await core.claim())
    await core.call("decide_approval_1", "apr_1", "allow_once", "me")
    if lost_by == "death":
        lost = await core.claim(ttl=GONE)
    else:
        lost = await core.claim()
        await core.finish(lost, "queued", delay=NOW)
    held = await core.claim(holder="w2:1")
    assert (held["attempt"], held["checkpoint"]) == (2, b"saved")
    assert held["approvals"] == lost["approvals"]
    assert json.loads(held["approvals"])[0]["decision"] == "allow_once"


async def test_mail_is_told_while_a_run_rests_and_does_not_wake_it(core):
    resting = await core.submit("one")
    later = await core.submit("two")
    await core.finish(await core.claim(), "queued", delay=SOON)
    due = (await core.log())["due_time"]
    assert (await core.call("cancel_run_1", later["run_id"], "me"))["ring"]
    told = await core.claim()
    assert (told["run_id"], told["ring"]) == (None, False)
    assert await endings(core, later["run_id"]) == ["run.cancelled"]
    assert (await core.log())["due_time"] == due, "as it was: it rests for as long as it was told to"
    assert await core.claim() is None
    assert (await core.call("cancel_run_1", resting["run_id"], "me"))["ring"], "who is stopped does not rest"
    await core.claim()
    assert await endings(core, resting["run_id"]) == ["run.cancelled"]
    assert (await core.log())["due_time"] is None
