"""Accepting runs: keys, order, what happens when another run is active, and stopping runs."""

import asyncio
import json

import asyncpg
import pytest


def events_of(answer):
    return json.loads(answer["events"] or "[]")


async def test_same_key_same_answer_under_a_race(core):
    answers = await asyncio.gather(*(core.submit(key="k", contact=f"c{i % 3}") for i in range(20)))
    assert sorted(a["outcome"] for a in answers) == ["accepted"] + 19 * ["replay"]
    assert len({a["run_id"] for a in answers}) == 1
    assert len(await core.seen("select from router.runs")) == 1


async def test_same_key_with_another_body_is_refused(core):
    await core.submit(key="k", digest=b"1")
    assert (await core.submit(key="k", digest=b"2"))["outcome"] == "key_reused"
    core.tenant = "ten_b"
    assert (await core.submit(key="k", digest=b"2"))["outcome"] == "accepted"


async def test_same_key_after_its_contact_was_deleted_does_not_run_again(core):
    accepted = await core.submit(key="k")
    await core.call("delete_contact_1", "anna", "log_anna")
    again = await core.submit(key="k")
    assert (again["outcome"], again["run_id"]) == ("deleted", accepted["run_id"])
    assert (await core.submit(key="k", digest=b"2"))["outcome"] == "key_reused"
    assert await core.seen("select from router.runs") == []


async def test_a_key_never_runs_twice_while_its_contact_is_being_deleted(core):
    for i in range(20):
        key = f"k{i}"
        answers = await asyncio.gather(
            *(core.submit(key=key) for _ in range(6)), core.call("delete_contact_1", "anna", "log_anna"),
            *(core.submit(key=key) for _ in range(6)),
        )  # fmt: skip
        assert [a["outcome"] for a in answers if a and "outcome" in a].count("accepted") == 1


async def test_session_order_is_the_order_of_commit(core):
    await asyncio.gather(*(core.submit(str(i)) for i in range(40)))
    rows = await core.seen(
        "select position, run_id, xmin::text::bigint as x, create_time from router.runs order by position"
    )
    assert [r["position"] for r in rows] == list(range(1, 41))
    assert [r["create_time"] for r in rows] == sorted(r["create_time"] for r in rows)
    held = await core.claim()
    executed = []
    while held:
        executed.append(held["run_id"])
        held = (await core.finish(held, next=True))["next"]
    assert executed == [r["run_id"] for r in rows]


async def test_reject_lets_one_through_of_many_at_once(core):
    answers = await asyncio.gather(*(core.submit(busy="reject") for _ in range(20)))
    assert sorted(a["outcome"] for a in answers) == ["accepted"] + 19 * ["busy"]
    held = await core.claim()
    assert (await core.submit(busy="reject"))["outcome"] == "busy"
    await core.finish(held)
    assert (await core.submit(busy="reject"))["outcome"] == "accepted"


@pytest.mark.parametrize("busy", ["interrupt", "rollback"])
async def test_a_wish_to_stop_turns_success_into_cancelled(core, busy):
    stopped = await core.submit()
    held = await core.claim(holder="w1:7")
    answer = await core.submit(busy=busy)
    assert (answer["outcome"], answer["ring"], answer["poke"]) == ("accepted", False, "w1:7")
    assert (await core.renew(("ten_a", "log_anna", 1)))[0]["cancel"] == busy
    done = await core.finish(held, holder="w1:7", next=True)
    assert done["state"] == "cancelled"
    data = events_of(done)[-1]["data"]
    assert data == ({"by": "somebody", "rewind_to": "1-1"} if busy == "rollback" else {"by": "somebody"})
    assert done["next"]["run_id"] == answer["run_id"]
    run = await core.run(stopped["run_id"])
    assert (run["state"], run["dropped"]) == ("cancelled", busy == "rollback")


async def test_what_a_rolled_back_run_said_is_not_part_of_the_conversation(core):
    await core.submit("one")
    held = await core.claim()
    await core.submit("two", busy="rollback")
    after = (await core.finish(held, next=True))["next"]
    assert json.loads(after["history"]) == [{"role": "user", "text": "one"}]


@pytest.mark.parametrize("busy", ["interrupt", "rollback"])
async def test_a_failed_run_stays_failed_and_is_dropped_where_that_was_promised(core, busy):
    accepted = await core.submit()
    held = await core.claim()
    await core.submit(busy=busy)
    assert (await core.finish(held, "failed"))["state"] == "failed"
    assert (await core.run(accepted["run_id"]))["dropped"] == (busy == "rollback")


async def test_only_the_active_run_is_stopped_and_queued_ones_keep_their_order(core):
    await core.submit()
    second = await core.submit()
    held = await core.claim()
    third = await core.submit(busy="interrupt")
    done = await core.finish(held, next=True)
    assert done["next"]["run_id"] == second["run_id"]
    assert (await core.finish(done["next"], next=True))["next"]["run_id"] == third["run_id"]


async def test_an_interrupted_waiting_run_ends_at_once(core):
    waiting = await core.submit()
    await core.park(await core.claim())
    answer = await core.submit(busy="interrupt")
    assert (answer["ring"], answer["poke"]) == (True, None)
    assert (await core.run(waiting["run_id"]))["state"] == "cancelled"
    held = await core.claim()
    assert held["run_id"] == answer["run_id"]
    assert [e["type"] for e in events_of(held)] == ["run.cancelled", "user.message"]
    assert (await core.seen("select state from router.approvals"))[0]["state"] == "expired"


async def test_a_queued_run_is_cancelled_at_once_and_its_event_follows(core):
    accepted = await core.submit()
    answer = await core.call("cancel_run_1", accepted["run_id"], "me")
    assert tuple(answer) == ("cancelled", "log_anna", True, None, None)
    held = await core.claim()
    assert (held["run_id"], [e["type"] for e in events_of(held)]) == (None, ["run.cancelled"])
    log = await core.log()
    assert (log["holder"], log["due_time"]) == (None, None)


async def test_the_event_of_a_run_cancelled_behind_a_holder_is_written_by_its_finish(core):
    await core.submit()
    held = await core.claim()
    second = await core.submit()
    answer = await core.call("cancel_run_1", second["run_id"], "me")
    assert (answer["state"], answer["ring"]) == ("cancelled", False)
    done = await core.finish(held, next=True)
    assert done["next"]["run_id"] is None
    assert [e["type"] for e in events_of(done["next"])] == ["run.cancelled"]


async def test_the_event_of_a_run_cancelled_behind_a_holder_is_not_lost_when_he_gives_back(core):
    await core.submit()
    held = await core.claim()
    second = await core.submit()
    await core.call("cancel_run_1", second["run_id"], "me")
    assert (await core.finish(held))["ring"]
    assert [e["type"] for e in events_of(await core.claim())] == ["run.cancelled"]


async def test_a_running_run_is_asked_to_stop_and_its_holder_poked(core):
    accepted = await core.submit()
    held = await core.claim(holder="w1:2")
    answer = await core.call("cancel_run_1", accepted["run_id"], "me")
    assert tuple(answer) == ("running", "log_anna", False, "w1:2", None)
    done = await core.finish(held)
    assert (done["state"], events_of(done)[-1]["data"]) == ("cancelled", {"by": "me"})
    again = await core.call("cancel_run_1", accepted["run_id"], "me")
    assert tuple(again) == ("cancelled", "log_anna", False, None, None)


async def test_a_wish_to_roll_back_outlives_a_plain_one(core):
    accepted = await core.submit()
    await core.claim()
    await core.submit(busy="rollback")
    await core.call("cancel_run_1", accepted["run_id"], "me")
    await core.submit(busy="interrupt")
    assert (await core.run(accepted["run_id"]))["cancel"] == "rollback"


async def test_an_unknown_run_is_not_cancelled(core):
    accepted = await core.submit()
    core.tenant = "ten_b"
    assert await core.call("cancel_run_1", accepted["run_id"], "me") is None


async def test_a_task_has_a_log_of_its_own_and_its_end_is_told_to_the_contact(core):
    await core.submit()
    chat = await core.claim()
    task = await core.submit(kind="extract", log="log_t")
    assert task["ring"]
    held = await core.claim("log_t", "w2:1")
    assert (held["run_id"], held["kind"], events_of(held)) == (task["run_id"], "extract", [])
    done = await core.finish(held, log="log_t")
    assert done["told"] == "log_anna"
    assert (await core.finish(chat))["ring"]
    told = events_of(await core.claim())
    assert [e["type"] for e in told] == ["task.finished"]
    assert told[0]["data"] == {"run_id": task["run_id"], "kind": "extract", "state": "succeeded", "summary": "yes"}
    assert told[0]["session_id"] == chat["session_id"] != held["session_id"]


async def test_a_cancelled_task_is_told_to_the_contact(core):
    task = await core.submit(kind="extract", log="log_t")
    assert (await core.call("cancel_run_1", task["run_id"], "me"))["told"] == "log_anna"
    assert [e["type"] for e in events_of(await core.claim())] == ["task.finished"]


async def test_the_end_of_a_task_is_never_stranded_between_two_locks(core):
    for i in range(40):
        await core.submit()
        chat = await core.claim()
        await core.submit(kind="extract", log=f"log_t{i}")
        held = await core.claim(f"log_t{i}", "w2:1")
        done, _ = await asyncio.gather(core.finish(chat), core.finish(held, log=f"log_t{i}", events=[]))
        assert done["ok"]
        mail = await core.claim()
        assert mail or (await core.log())["due_time"] is None
        assert await core.seen("select from router.mail") == []


async def test_tasks_of_a_contact_end_while_leases_are_renewed_and_nothing_locks_up(core):
    await core.submit()
    chat = await core.claim()
    leases = [("ten_a", "log_anna", chat["token"])]
    held = []
    for i in range(12):
        await core.submit(kind="extract", log=f"log_{i:02}")
        held.append(await core.claim(f"log_{i:02}"))
        leases.append(("ten_a", f"log_{i:02}", 1))
    renewals = [core.renew(*leases) for _ in range(20)]
    ends = [core.finish(h, log=f"log_{i:02}", events=[]) for i, h in enumerate(held)]
    answers = await asyncio.gather(*renewals, *ends)
    assert all(a["ok"] for a in answers[20:])


async def test_tasks_that_come_and_end_while_their_contact_is_deleted_leave_nothing(core):
    for i in range(10):
        await core.submit()
        held = []
        for n in range(3):
            await core.submit(kind="extract", log=f"log_{i}_{n}")
            held.append(await core.claim(f"log_{i}_{n}"))
        answers = await asyncio.gather(
            *(core.submit(kind="extract") for _ in range(4)),
            core.call("delete_contact_1", "anna", "log_anna"),
            *(core.finish(h, log=f"log_{i}_{n}", events=[]) for n, h in enumerate(held)),
            *(core.submit(kind="extract") for _ in range(4)),
            return_exceptions=True,
        )
        # The database resolves a deadlock by an error, after which the caller repeats; nothing else may go wrong.
        assert {type(a) for a in answers if isinstance(a, BaseException)} <= {asyncpg.DeadlockDetectedError}
        await core.call("delete_contact_1", "anna", "log_anna")
        for table in ("contacts", "logs", "runs", "events", "mail", "approvals"):
            assert await core.seen(f"select * from router.{table}") == []
