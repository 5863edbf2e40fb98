"""Tasks that begin at a time of their own, or come again: in logs of their own, whatever their contact is doing."""

import asyncio
import json
from datetime import timedelta

import msgspec
import pytest
from retinue_kit import ids, postgres
from retinue_kit.streams import START, Bus, log_key
from retinue_router.domain.contacts import log_id_of
from retinue_router.store.schedules import ScheduleStore

LOG = log_id_of("ten_a", "ada")
"""Where ada's messages are, and where the ends of her tasks are told."""


async def accept(mesh, *, task=True, contact="ada", text="now", ahead=None, key=None):
    """Accept a task, or a message, without ringing; answers its run's id and its log's."""
    run, contact_log = ids.new_id("run"), log_id_of("ten_a", contact)
    log = ids.new_id("tsk") if task else contact_log
    now = await mesh.pool.fetchval("select clock_timestamp()")
    body = msgspec.json.encode({"text": text, "message_id": "msg_1"}).decode()
    row = await mesh.pool.fetchrow(
        "select * from submit_run_2('ten_a',$1,$2,$3,$4,$5,$6,$7,$8,$9,'enqueue','usr_1',$10,'',$11,null,null,null)",
        contact, log, task, ids.new_id("ses"), run, "extract" if task else "chat", key, b"d" if key else None, body,
        contact_log if task else None, ahead and now + ahead,
    )  # fmt: skip
    assert row["outcome"] == "accepted"
    return run, log, row["ring"]


async def bring(mesh, run, log):
    """Have a task's time come."""
    await mesh.admin.execute("update router.runs set run_at = clock_timestamp() where run_id = $1", run)
    await mesh.admin.execute("update router.logs set due_time = clock_timestamp() where log_id = $1", log)


async def schedule(mesh, text="again"):
    """Make a schedule that was due a moment ago."""
    schedule_id = ids.new_id("sch")
    await mesh.pool.fetchrow(
        "select * from create_schedule_1('ten_a',$1,'ada',$2,'digest',$3,'0 0 * * *','UTC','usr_1',"
        "clock_timestamp(),null,null,100)",
        schedule_id, LOG, json.dumps({"text": text}),
    )  # fmt: skip
    return schedule_id


@pytest.fixture
def last_run(mesh, eventually):
    """Wait until a schedule has fired; answers the run's id."""

    async def wait(schedule_id):
        async def fired():
            return await mesh.admin.fetchval(
                "select last_run_id from router.schedules where schedule_id = $1", schedule_id
            )

        return await eventually(fired)

    return wait


async def told(mesh):
    """Read what the contact's log holds."""
    rows = await mesh.admin.fetch("select type, data from router.events where log_id = $1 order by token, n", LOG)
    return [(row["type"], json.loads(row["data"])) for row in rows]


async def test_a_task_waits_for_its_time_through_restarts_and_an_empty_redis(mesh, when_over, eventually):
    first = await mesh.start_worker()
    run, log, ring = await accept(mesh, ahead=timedelta(days=30))
    assert not ring
    await when_over((await accept_and_ring(mesh))[0])
    await first.aclose()
    await mesh.redis.flushall()
    assert (await mesh.run(run))["state"] == "queued"
    await bring(mesh, run, log)
    await mesh.start_worker()
    done = await when_over(run)
    assert (done["state"], done["attempt"]) == ("succeeded", 1)
    finished = ("task.finished", {"run_id": run, "kind": "extract", "state": "succeeded", "summary": "now "})

    async def heard():
        return finished in await told(mesh)

    await eventually(heard)


async def accept_and_ring(mesh, **more):
    run, log, ring = await accept(mesh, **more)
    assert ring
    await mesh.ring.push("ten_a", log)
    return run, log


async def test_a_time_that_is_past_means_at_once(mesh, when_over):
    await mesh.start_worker()
    run, _ = await accept_and_ring(mesh, ahead=timedelta(days=-3))
    assert (await when_over(run))["state"] == "succeeded"


async def test_a_task_that_waits_for_its_time_can_be_cancelled_and_its_contact_hears_of_it(mesh, eventually):
    await mesh.start_worker()
    run, log, _ = await accept(mesh, ahead=timedelta(days=30))
    answer = await mesh.pool.fetchrow("select * from cancel_run_1('ten_a', $1, 'me')", run)
    assert (answer["state"], answer["told"]) == ("cancelled", LOG)

    async def heard():
        return [(kind, data["state"]) for kind, data in await told(mesh)] == [("task.finished", "cancelled")]

    await eventually(heard)

    async def at_rest():
        rows = await mesh.admin.fetch("select due_time from router.logs where log_id in ($1, $2)", log, LOG)
        return [row["due_time"] for row in rows] == [None, None]

    await eventually(at_rest)
    assert mesh.adapter.requests == []


async def test_a_task_that_waits_for_its_time_goes_with_its_contact(mesh):
    await accept(mesh, ahead=timedelta(days=30), key="k")
    await mesh.pool.fetch("select * from delete_contact_1('ten_a', 'ada', $1)", LOG)
    assert await mesh.admin.fetch("select from router.logs") == []
    assert await mesh.admin.fetch("select from router.runs") == []
    assert await mesh.admin.fetchval("select idem_key from router.deleted_keys") == "k"


async def test_the_wait_in_the_queue_counts_from_the_time_that_was_given(mesh):
    run, log, _ = await accept(mesh, ahead=timedelta(days=30))
    await mesh.admin.execute(
        "update router.runs set create_time = clock_timestamp() - interval '1 day',"
        " run_at = clock_timestamp() - interval '1 hour' where run_id = $1",
        run,
    )
    await mesh.admin.execute("update router.logs set due_time = clock_timestamp() where log_id = $1", log)
    claim = "select queued_s from claim_1('ten_a', $1, 'w:1', interval '30 s', 3)"
    for _ in range(2):  # the second is asked by the same holder, whose first answer was lost
        assert 3600 <= await mesh.pool.fetchval(claim, log) < 7200


async def test_a_schedule_fires_and_a_contact_that_never_spoke_hears_of_its_end(mesh, when_over, eventually, last_run):
    await mesh.start_worker()
    run = await when_over(await last_run(await schedule(mesh)))
    assert (run["state"], run["kind"], run["output"]) == ("succeeded", "digest", "again ")
    expected = {"run_id": run["run_id"], "kind": "digest", "state": "succeeded", "summary": "again "}

    async def heard():
        return await told(mesh) == [("task.finished", expected)]

    await eventually(heard)

    async def live():
        entries = await Bus(mesh.redis).read(log_key("ten_a", LOG), START, 100)
        return [e.type for e in entries if e.type] == ["task.finished"]

    await eventually(live)


async def test_a_task_runs_while_its_contact_is_in_the_middle_of_an_answer(mesh, gate, when_over, last_run, eventually):
    async def slow_for_messages(request):
        if request.text == "long":
            yield {"text_delta": {"text": "well …"}}
            await gate.wait()
        yield {"message_completed": {"text": request.text}}
        yield {"finished": {}}

    mesh.adapter.script = slow_for_messages
    await mesh.start_worker()
    chat, _ = await accept_and_ring(mesh, task=False, text="long")

    async def begun():
        return any(request.text == "long" for request in mesh.adapter.requests)

    await eventually(begun)
    task, _ = await accept_and_ring(mesh)
    scheduled = await last_run(await schedule(mesh))
    for run in (task, scheduled):
        assert (await when_over(run))["state"] == "succeeded"
    assert (await mesh.run(chat))["state"] == "running"
    gate.set()
    await when_over(chat)

    async def heard():
        return sorted(data["run_id"] for kind, data in await told(mesh) if kind == "task.finished")

    async def both():
        return await heard() == sorted([task, scheduled])

    await eventually(both)


async def test_two_workers_fire_a_schedule_once_and_a_paused_one_not_at_all(mesh, when_over, last_run):
    pool = await postgres.connect(mesh.settings["postgres_dsn"], max_size=1)
    resting = await schedule(mesh)
    assert (await ScheduleStore(pool).pause("ten_a", resting))["next_time"] is None
    found = [await schedule(mesh, f"again {i}") for i in range(6)]
    await asyncio.gather(mesh.start_worker(), mesh.start_worker())
    runs = [await when_over(await last_run(schedule_id)) for schedule_id in found]
    assert [run["output"] for run in runs] == [f"again {i} " for i in range(6)]
    assert await mesh.admin.fetchval("select count(*) from router.runs") == 6
    await pool.close()
