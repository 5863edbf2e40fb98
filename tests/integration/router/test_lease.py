"""Claim, renew, checkpoint, park and finish: what a lease's holder may do, and what nobody else may."""

import asyncio
import json
from datetime import timedelta

LEASE = timedelta(seconds=30)
GONE = timedelta(seconds=-1)


def events_of(answer):
    return json.loads(answer["events"] or "[]")


async def test_a_turn_goes_from_accepted_to_succeeded(core):
    accepted = await core.submit("hello")
    assert (accepted["outcome"], accepted["ring"], accepted["poke"]) == ("accepted", True, None)
    assert (accepted["after_token"], accepted["after_n"]) == (0, 0)
    held = await core.claim()
    assert (held["token"], held["run_id"], held["attempt"]) == (1, accepted["run_id"], 1)
    assert [(e["n"], e["type"], e["prev"]) for e in events_of(held)] == [(1, "user.message", "0-0")]
    assert held["session_id"] == accepted["session_id"]
    done = await core.finish(held)
    assert (done["ok"], done["state"], done["ring"], done["next"]) == (True, "succeeded", False, None)
    assert [(e["n"], e["type"], e["prev"]) for e in events_of(done)] == [
        (5, "assistant.message", "1-1"),
        (9, "run.succeeded", "1-5"),
    ]
    run, log = await core.run(accepted["run_id"]), await core.log()
    assert (run["state"], run["output"], run["runtime"]) == ("succeeded", "yes", "light")
    assert (log["holder"], log["due_time"], log["last_token"], log["last_n"]) == (None, None, 1, 9)
    assert len(await core.seen("select from router.usage_logs where run_id = $1", run["run_id"])) == 1


async def test_one_runner_a_log_that_is_held_is_not_given_to_another(core):
    await core.submit()
    await core.submit()
    held = await asyncio.gather(*(core.claim(holder=f"w{i}:1") for i in range(8)))
    assert len([h for h in held if h]) == 1


async def test_one_runner_runs_of_a_log_are_taken_one_after_another(core):
    runs = [(await core.submit(str(i)))["run_id"] for i in range(3)]
    held = await core.claim()
    taken = [held["run_id"]]
    while True:
        done = await core.finish(held, next=True)
        held = done["next"]
        if held is None:
            break
        assert held["token"] == len(taken) + 1
        taken.append(held["run_id"])
    assert taken == runs
    assert (await core.log())["due_time"] is None


async def test_finish_without_next_gives_the_log_back_and_says_that_there_is_more(core):
    await core.submit()
    second = await core.submit()
    assert second["ring"]  # nobody holds the log yet
    held = await core.claim()
    third = await core.submit()
    assert not third["ring"]  # the holder will look
    done = await core.finish(held)
    assert done["ring"]
    assert done["next"] is None
    assert (await core.claim())["run_id"] == second["run_id"]


async def test_no_run_is_stranded_between_a_finish_and_a_submit(core):
    for _ in range(40):
        await core.submit()
        held = await core.claim()
        submitted, done = await asyncio.gather(core.submit(), core.finish(held, next=True))
        after = done["next"] or (submitted["ring"] and await core.claim())
        assert after
        assert after["run_id"] == submitted["run_id"]
        await core.finish(after)


async def test_no_stale_write_what_a_former_holder_does_is_refused(core):
    await core.submit()
    lost = await core.claim(ttl=GONE)
    held = await core.claim(holder="w2:1")
    assert (held["token"], held["attempt"]) == (2, 2)
    assert [e["type"] for e in events_of(held)] == ["run.resumed"]
    assert events_of(held)[0]["data"] == {"attempt": 2, "rewind_to": "1-1"}
    assert not (await core.finish(lost))["ok"]
    assert not (await core.call("checkpoint_1", "log_anna", 1, lost["run_id"], "[]", b"", "{}", LEASE))["ok"]
    assert not (await core.park(lost))["ok"]
    assert await core.renew(("ten_a", "log_anna", 1)) == []
    assert (await core.finish(held, holder="w2:1"))["ok"]
    assert await core.types() == ["user.message", "run.resumed", "assistant.message", "run.succeeded"]


async def test_a_holder_whose_lease_ran_out_may_still_finish_while_nobody_took_over(core):
    await core.submit()
    assert (await core.finish(await core.claim(ttl=GONE)))["ok"]


async def test_a_late_renewal_does_not_revive_a_lease_that_was_given_back(core):
    await core.submit()
    held = await core.claim()
    assert [r["log_id"] for r in await core.renew(("ten_a", "log_anna", 1))] == ["log_anna"]
    await core.finish(held)
    assert await core.renew(("ten_a", "log_anna", 1)) == []
    assert (await core.log())["due_time"] is None


async def test_renewals_of_many_tenants_answer_what_still_holds_and_the_wishes(core):
    await core.submit()
    await core.submit(contact="berta")
    core.tenant = "ten_b"
    await core.submit(contact="berta")
    await core.claim("log_berta")
    core.tenant = "ten_a"
    await core.claim()
    berta = await core.claim("log_berta")
    await core.call("cancel_run_1", berta["run_id"], "me")
    leases = [("ten_a", "log_anna", 1), ("ten_a", "log_berta", 1), ("ten_b", "log_berta", 1), ("ten_b", "log_anna", 1)]
    answer = {(r["tenant_id"], r["log_id"], r["token"]): r["cancel"] for r in await core.renew(*leases)}
    assert answer == {
        ("ten_a", "log_anna", 1): None,
        ("ten_a", "log_berta", 1): "cancel",
        ("ten_b", "log_berta", 1): None,
    }


async def test_asked_again_claim_answers_what_this_very_holder_got(core):
    await core.submit()
    first, again = await core.claim(), await core.claim()
    assert dict(first.items()) | {"queued_s": 0} == dict(again.items()) | {"queued_s": 0}
    assert (await core.log())["token"] == 1
    assert await core.claim(holder="w1:2") is None


async def test_asked_again_finish_answers_what_it_wrote_and_took(core):
    await core.submit()
    await core.submit()
    held = await core.claim()
    first, again = [await core.finish(held, next=True) for _ in range(2)]
    assert (again["ok"], again["state"], events_of(again)) == (True, "succeeded", events_of(first))
    assert again["next"]["run_id"] == first["next"]["run_id"]
    assert again["next"]["token"] == 2
    assert (await core.log())["token"] == 2


async def test_a_run_that_was_ended_for_a_dead_holder_is_not_taken_by_him_for_his_own_end(core):
    accepted = await core.submit()
    lost = await core.claim(ttl=GONE)
    await core.call("cancel_run_1", accepted["run_id"], "me")
    ended = await core.claim(holder="w2:1")
    assert ended["run_id"] is None
    assert [e["type"] for e in events_of(ended)] == ["run.cancelled"]
    assert not (await core.finish(lost))["ok"]


async def test_a_run_that_is_lost_too_often_fails_and_the_next_one_is_served(core):
    first = await core.submit()
    second = await core.submit()
    for attempt in range(1, 4):
        assert (await core.claim(ttl=GONE))["attempt"] == attempt
    ended = await core.claim(holder="w2:1")
    assert (ended["run_id"], ended["ring"]) == (None, True)
    run = await core.run(first["run_id"])
    assert run["state"] == "failed"
    assert json.loads(run["error"])["details"][0]["reason"] == "ATTEMPTS_EXHAUSTED"
    assert (await core.claim())["run_id"] == second["run_id"]


async def test_a_checkpoint_is_what_the_next_attempt_goes_on_from(core):
    await core.submit()
    held = await core.claim(ttl=GONE)
    step = [
        {
            "n": 4,
            "type": "tool.finished",
            "data": {"ok": True},
            "run_id": held["run_id"],
            "session_id": held["session_id"],
        }
    ]
    answer = await core.call(
        "checkpoint_1", "log_anna", 1, held["run_id"], json.dumps(step), b"half", '{"runtime": "light"}', GONE
    )
    assert answer["ok"]
    assert [(e["n"], e["prev"]) for e in events_of(answer)] == [(4, "1-1")]
    assert (await core.claim(holder="w2:1"))["checkpoint"] == b"half"


async def test_an_attempt_that_is_to_be_repeated_waits_and_keeps_its_place(core):
    first = await core.submit()
    await core.submit()
    done = await core.finish(await core.claim(), "queued", delay=LEASE, next=True)
    assert (done["ok"], done["state"], done["next"]) == (True, "queued", None)
    assert await core.claim() is None  # not due yet
    assert not (await core.submit())["ring"]
    await core.admin.execute(
        "update router.logs set due_time = clock_timestamp(); update router.runs set rest_until = clock_timestamp()"
    )
    held = await core.claim()
    assert (held["run_id"], held["attempt"]) == (first["run_id"], 2)


async def test_history_holds_what_was_said_before_and_nothing_of_the_run_itself(core):
    await core.submit("one")
    await core.finish(await core.claim())
    await core.submit("two")
    await core.claim(ttl=GONE)
    held = await core.claim(holder="w2:1")
    said = [(line["role"], line["text"]) for line in json.loads(held["history"])]
    assert said == [("assistant", "yes"), ("user", "one")]
