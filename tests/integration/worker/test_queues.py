"""Chats and tasks wait apart and have slots of their own; who was not rung is found, and executed once."""

import msgspec
from retinue_kit import ids
from retinue_router.domain.queues import QueueClass
from retinue_router.ring import Ring, Rings

TENANT = "ten_a"


async def submit_task(mesh, text, *, tenant=TENANT):
    """Accept a task as the router does, without ringing; answers its id and its log."""
    run, log = ids.new_id("run"), ids.new_id("tsk")
    row = await mesh.pool.fetchrow(
        "select * from submit_run_2($1,'ada',$2,true,$3,$4,'extraction',null,null,$5,'enqueue','usr_1',$6,'',"
        "null,null,null,null)",
        tenant, log, ids.new_id("ses"), run, msgspec.json.encode({"text": text}).decode(), f"log_ada_{tenant}",
    )  # fmt: skip
    assert row["outcome"] == "accepted"
    return run, log


def holding(gate, word):
    """A script that waits at the gate where it is told this word, and says what it is told."""

    async def script(request):
        if request.text.startswith(word):
            await gate.wait()
        yield {"message_completed": {"text": request.text}}
        yield {"finished": {}}

    return script


async def test_tasks_never_take_what_chats_need(mesh, gate, when_over, eventually):
    mesh.adapter.script = holding(gate, "task")
    await mesh.start_worker(slots=1, task_slots=2)
    tasks = [await submit_task(mesh, f"task {n}", tenant=f"ten_{n}") for n in range(4)]
    for n, (_, log) in enumerate(tasks):
        await Rings(mesh.redis).push(f"ten_{n}", log)
    await eventually(lambda: len(mesh.adapter.requests) == 2)
    assert (await when_over(await mesh.submit("hello")))["state"] == "succeeded"
    assert len(mesh.adapter.requests) == 3, "two tasks of four, and the chat"
    gate.set()
    assert [(await when_over(run))["state"] for run, _ in tasks] == ["succeeded"] * 4


async def test_chats_never_take_what_tasks_need(mesh, gate, when_over, eventually):
    mesh.adapter.script = holding(gate, "chat")
    await mesh.start_worker(slots=1, task_slots=1)
    chats = [await mesh.submit(f"chat {n}", contact=f"c{n}") for n in range(3)]
    await eventually(lambda: len(mesh.adapter.requests) == 1)
    run, log = await submit_task(mesh, "task")
    await Rings(mesh.redis).push(TENANT, log)
    assert (await when_over(run))["state"] == "succeeded"
    gate.set()
    assert [(await when_over(chat))["state"] for chat in chats] == ["succeeded"] * 3


async def test_a_task_that_an_older_process_put_among_the_chats_is_executed_and_its_slot_given_back(
    mesh, when_over, eventually
):
    await mesh.start_worker()
    run, log = await submit_task(mesh, "task")
    await Ring(mesh.redis, QueueClass.CHAT).push(TENANT, log)
    assert (await when_over(run))["state"] == "succeeded"

    async def given_back():
        return not await mesh.redis.exists(f"{{r:chat}}:run:{TENANT}", f"{{r:task}}:run:{TENANT}")

    await eventually(given_back)


async def test_the_sweeper_rings_tasks_and_chats_that_nobody_rang(mesh, when_over):
    await mesh.start_worker()
    run, _ = await submit_task(mesh, "task")
    chat = await mesh.submit("hello", contact="bob", ring=False)
    assert (await when_over(run))["state"] == (await when_over(chat))["state"] == "succeeded"


async def test_fair_share_a_flood_does_not_hide_from_the_sweeper_what_another_tenant_waits_for(mesh, eventually):
    await mesh.admin.execute(
        "insert into router.logs (tenant_id, log_id, session_id, due_time)"
        " select 'ten_flood', 'log_' || n, 'ses', clock_timestamp() - interval '1 minute'"
        " from generate_series(1, 3000) n"
    )
    await mesh.admin.execute(
        "insert into router.logs (tenant_id, log_id, session_id, due_time)"
        " values ('ten_b', 'log_b', 'ses', clock_timestamp() - interval '1 second')"
    )
    ring = Ring(mesh.redis)
    await ring.tell_limits("ten_flood", 1, 1.0)
    await ring.push("ten_flood", "log_0")
    await mesh.start_worker(slots=1)

    async def done():
        due = "select due_time is null from router.logs where log_id = 'log_b'"
        return await mesh.admin.fetchval(due)

    await eventually(done)
    assert await mesh.admin.fetchval("select count(*) from router.logs where due_time is not null") > 0


async def test_a_log_rung_again_while_two_workers_are_about_to_claim_it_is_executed_once(mesh, when_over, eventually):
    await mesh.start_worker()
    await mesh.start_worker()
    run = await mesh.submit("once", ring=False)
    async with mesh.admin.acquire() as connection, connection.transaction():
        await connection.execute("select from router.logs where log_id = 'log_ada' for no key update")

        async def waits(count):
            async with mesh.admin.acquire() as other:
                return count <= await other.fetchval(
                    "select count(*) from pg_stat_activity where datname = current_database()"
                    " and wait_event_type = 'Lock' and query like '%claim_1%'"
                )

        await mesh.ring.push(TENANT, "log_ada")
        await eventually(lambda: waits(1))
        await mesh.redis.flushall()  # the sweeper rings again: somebody claims a second time
        await eventually(lambda: waits(2))
    assert (await when_over(run))["state"] == "succeeded"
    assert len(mesh.adapter.requests) == 1
    assert await mesh.types() == ["user.message", "run.started", "assistant.message", "run.succeeded"]


async def test_limits_of_a_tenant_hold_at_once_after_redis_was_emptied(mesh, gate, when_over, eventually):
    active = most = 0

    async def counted(request):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await gate.wait()
        active -= 1
        yield {"message_completed": {"text": request.text}}
        yield {"finished": {}}

    mesh.policy.limit = 2
    await mesh.start_worker()
    await when_over(await mesh.submit("first"))
    mesh.adapter.script = counted
    runs = [await mesh.submit(f"held {n}", contact=f"c{n}") for n in range(2)]
    await eventually(lambda: active == 2)
    await mesh.redis.flushall()
    runs += [await mesh.submit(f"held {n}", contact=f"c{n}") for n in range(2, 8)]

    async def restored():
        assert await mesh.redis.hget("{r:chat}:lim", TENANT) == b"2"
        return await mesh.redis.llen(f"{{r:chat}}:q:{TENANT}") == 6

    await eventually(restored)
    gate.set()
    assert [(await when_over(run))["state"] for run in runs] == ["succeeded"] * 8
    assert most == 2


async def test_a_ticket_that_comes_twice_does_not_free_the_slot_of_the_run_under_way(mesh, gate, when_over, eventually):
    mesh.adapter.script = holding(gate, "wait")
    await mesh.start_worker(slots=2, lease_s=60, renew_s=20)
    run = await mesh.submit("wait")
    await eventually(lambda: len(mesh.adapter.requests) == 1)
    await mesh.ring.push(TENANT, "log_ada")

    async def taken():
        return not await mesh.ring.waiting()

    await eventually(taken)
    assert (await when_over(await mesh.submit("hello", contact="bob")))["state"] == "succeeded"  # in its place
    assert await mesh.redis.zscore(f"{{r:chat}}:run:{TENANT}", "log_ada")
    gate.set()
    assert (await when_over(run))["state"] == "succeeded"

    async def given_back():
        return not await mesh.redis.exists(f"{{r:chat}}:run:{TENANT}")

    await eventually(given_back)
