"""The release before this one on this release's schema: both work on the same log, in turns, and neither can tell."""

import random

import pytest

LOG = "log_anna"
DIGEST = bytes.fromhex("1a473d7363fe474a4c330b06b88e518fc97bf5abb0e73b0996ebb29354372a79")
"""What the release before this one makes of the message x to anna."""


async def types(seen):
    return [
        row["type"] for row in await seen("select type from router.events where log_id = $1 order by token, n", LOG)
    ]


async def state_of(seen, run_id):
    rows = await seen("select state, attempt, dead from router.runs where run_id = $1", run_id)
    return tuple(rows[0])


async def test_an_old_worker_does_what_a_new_router_accepted_and_the_other_way_round(released, current, seen):
    first = await current.submit("one")
    held = await released.claim()
    assert (held["run_id"], held["attempt"]) == (first["run_id"], 1)
    assert await released.renew(held["token"])
    second = await released.submit("two")
    assert (second["outcome"], second["ring"]) == ("accepted", False)
    assert (await released.finish(held, text="first"))["state"] == "succeeded"
    lease = await current.claim()
    assert (lease.run_id, [line.text for line in lease.history]) == (second["run_id"], ["first", "one"])
    assert (await current.finish(lease)).state == "succeeded"
    assert await types(seen) == ["user.message", "assistant.message", "run.succeeded"] * 2
    assert [row["type"] for row in await released.thread()] == ["user.message", "assistant.message"] * 2


async def test_each_takes_the_next_run_with_its_finish_whoever_accepted_it(released, current):
    runs = [(await who.submit("x"))["run_id"] for who in (current, released, current, released)]
    held = await released.claim()
    following = (await released.finish(held, take_next=True))["next"]
    assert following["run_id"] == runs[1]
    assert (await released.finish(following))["ring"]
    lease = await current.claim()
    assert lease.run_id == runs[2]
    assert (await current.finish(lease, take_next=True)).next.run_id == runs[3]


async def test_a_key_is_the_same_intent_for_both(released, current):
    first = await released.submit("x", key="k1", digest=DIGEST)
    again = await current.submit("x", key="k1")
    assert (again["outcome"], again["run_id"]) == ("replay", first["run_id"])
    assert (await current.submit("y", key="k1"))["outcome"] == "key_reused"
    mine = await current.submit("x", key="k2")
    again = await released.submit("x", key="k2", digest=DIGEST)
    assert (again["outcome"], again["run_id"]) == ("replay", mine["run_id"])


async def test_a_new_worker_goes_on_from_an_old_ones_checkpoint(released, current, seen):
    run = (await released.submit("x"))["run_id"]
    held = await released.claim(lease_s=-1)
    assert await released.checkpoint(held, b"step 1", lease_s=-1)
    lease = await current.claim()
    assert (lease.run_id, lease.attempt, lease.checkpoint) == (run, 2, b"step 1")
    assert await released.finish(held) is None  # fenced
    assert not await released.checkpoint(held, b"stale")
    assert (await current.finish(lease)).state == "succeeded"
    assert (await types(seen)).count("run.resumed") == 1


async def test_an_old_worker_goes_on_from_a_new_ones_checkpoint(released, current, seen):
    run = (await current.submit("x"))["run_id"]
    lease = await current.claim(dying=True)
    assert await current.checkpoint(lease, b"step 1", dying=True) is not None
    held = await released.claim()
    assert (held["run_id"], held["attempt"], held["checkpoint"]) == (run, 2, b"step 1")
    assert await current.finish(lease) is None  # fenced
    assert (await released.finish(held))["state"] == "succeeded"
    assert await types(seen) == ["user.message", "run.resumed", "assistant.message", "run.succeeded"]


async def test_an_attempt_that_a_new_worker_gave_back_is_begun_again_by_an_old_one_and_said_once(
    released, current, seen
):
    run = (await current.submit("x"))["run_id"]
    lease = await current.claim()
    assert (await current.finish(lease, "queued", refund=True)).state == "queued"
    assert await state_of(seen, run) == ("queued", 0, None)
    held = await released.claim()
    assert (held["run_id"], held["attempt"]) == (run, 1)
    await released.finish(held)
    assert (await types(seen)).count("user.message") == 1
    assert (await types(seen)).count("run.resumed") == 1


@pytest.mark.parametrize("old_parks", [True, False])
async def test_one_parks_and_the_other_goes_on_once_it_is_decided(released, current, seen, old_parks):
    run = (await current.submit("x"))["run_id"]
    if old_parks:
        assert await released.park(await released.claim(), "apr_1")
        assert (await current.decide("apr_1", "allow_once"))["outcome"] == "decided"
        lease = await current.claim()
        assert (lease.run_id, lease.checkpoint, lease.approvals[0].decision) == (run, b"parked", "allow_once")
        assert (await current.finish(lease)).state == "succeeded"
    else:
        assert await current.park(await current.claim(), "apr_1") is not None
        assert (await released.decide("apr_1", "allow_once"))["outcome"] == "decided"
        held = await released.claim()
        assert (held["run_id"], held["checkpoint"]) == (run, b"parked")
        assert (await released.finish(held))["state"] == "succeeded"
    assert await state_of(seen, run) == ("succeeded", 1, None)


async def test_a_run_that_used_up_its_attempts_under_an_old_worker_is_set_aside_all_the_same(released, current, seen):
    run = (await released.submit("x"))["run_id"]
    for n in range(3):
        assert (await released.claim(f"old:{n}", lease_s=-1))["run_id"] == run
    assert (await released.claim("old:9"))["run_id"] is None
    assert await state_of(seen, run) == ("failed", 3, "open")


async def test_what_an_old_router_stops_resets_and_deletes_is_so_for_new_ones(released, current, seen):
    queued, active = [(await current.submit("x"))["run_id"] for _ in range(2)][::-1]
    lease = await current.claim()
    assert lease.run_id == active
    assert (await released.cancel(queued))["state"] == "cancelled"
    await released.cancel(active)
    assert (await current.finish(lease)).state == "cancelled"
    before = (await current.submit("y"))["session_id"]
    assert (await released.reset())["session_id"] not in (None, before)
    lease = await current.claim()
    assert [row["log_id"] for row in await released.delete()] == [LOG]
    assert await current.finish(lease) is None
    assert await seen("select from router.runs") == []


async def test_a_task_of_an_old_router_is_heard_of_through_a_new_worker(released, current, seen):
    task = await released.submit("extract", kind="extract")
    log = (await seen("select log_id from router.runs where run_id = $1", task["run_id"]))[0]["log_id"]
    held = await released.claim(log=log)
    assert (await released.finish(held, log=log))["told"] == LOG
    lease = await current.claim()
    assert (lease.run_id, [entry.type for entry in lease.events]) == ("", ["task.finished"])


@pytest.mark.parametrize("seed", range(4))
async def test_session_order_and_cursor_monotone_hold_whoever_does_the_next_step(released, current, seen, seed):
    """Messages come, attempts end, are lost or given back, each time by whichever release happens to be asked."""
    chance = random.Random(seed)
    runs, active = [], None
    for _ in range(120):
        if len(runs) < 20 and chance.random() < 0.3:
            runs.append((await chance.choice((released, current)).submit(f"m{len(runs)}"))["run_id"])
        elif active is None:
            lost = chance.random() < 0.2
            if chance.random() < 0.5:
                held = await released.claim(f"old:{chance.random()}", lease_s=-1 if lost else 30)
                active = (released, held) if held is not None and held["run_id"] and not lost else None
            else:
                lease = await current.claim(f"new:{chance.random()}", dying=lost)
                active = (current, lease) if lease is not None and lease.run_id and not lost else None
        else:
            who, lease = active
            again = chance.random() < 0.2
            more = {"refund": True} if again and who is current else {}
            assert await who.finish(lease, "queued" if again else "succeeded", **more) is not None
            active = None
    for _ in range(4 * len(runs) + 4):
        if active is not None:
            await active[0].finish(active[1])
        lease = await current.claim(f"end:{chance.random()}")
        active = (current, lease) if lease is not None and lease.run_id else None
    found = await seen("select run_id, type, token, n, prev_token, prev_n from router.events order by token, n")
    begun = [row["run_id"] for row in found if row["type"] == "user.message"]
    ended = [row["run_id"] for row in found if row["type"] in ("run.succeeded", "run.failed")]
    assert begun == ended == runs
    cursors = [(row["token"], row["n"]) for row in found]
    assert [(row["prev_token"], row["prev_n"]) for row in found] == [(0, 0), *cursors][:-1]
