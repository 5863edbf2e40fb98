"""What was rung for nobody, or taken by somebody who died of it, is rung again, by one process at a time."""

import asyncio

import pytest
from retinue_kit import postgres
from retinue_router.domain.queues import QueueClass
from retinue_router.ring import Rings
from retinue_router.worker.sweeper import _SWEEP_LOCK as SWEEP_LOCK
from retinue_router.worker.sweeper import Sweeper


@pytest.fixture
async def sweeper(mesh):
    """Make sweepers as processes of their own would have them."""
    pools = []

    async def make():
        pools.append(await postgres.connect(mesh.settings["sweep_dsn"], max_size=2))
        return pools[-1], Sweeper(pools[-1], Rings(mesh.redis))

    yield make
    for pool in pools:
        pool.terminate()


async def overdue(mesh, count):
    for number in range(count):
        await mesh.submit("x", contact=f"c{number}", tenant=f"ten_{number}", ring=False)
    await mesh.admin.execute("update router.logs set due_time = due_time - interval '1 minute'")


async def test_one_process_at_a_time_sweeps(mesh, sweeper):
    await overdue(mesh, 3)
    pool, _ = await sweeper()
    _, other = await sweeper()
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", SWEEP_LOCK)
        assert await other._due_alone() == []
    assert len(await other._due_alone()) == 3


async def test_a_sweeper_that_is_stopped_in_the_middle_does_not_keep_others_from_sweeping(mesh, sweeper, eventually):
    """Stopped, not killed: its connection stays open and its transaction with it, until the database ends both."""
    await overdue(mesh, 1)
    database = await mesh.admin.fetchval("select current_database()")
    await mesh.admin.execute(
        f"alter role retinue_sweep in database {database} set idle_in_transaction_session_timeout = '300ms'"
    )
    pool, _ = await sweeper()
    stopped = await pool.acquire()
    await stopped.execute("begin")
    await stopped.execute("select pg_advisory_xact_lock($1)", SWEEP_LOCK)
    _, other = await sweeper()
    assert await other._due_alone() == []
    await eventually(other._due_alone)


async def test_a_lease_that_ran_out_is_swept_at_once_and_what_was_rung_just_now_is_not(mesh, sweeper):
    for contact in ("left", "rung"):
        await mesh.submit("x", contact=contact, tenant=f"ten_{contact}", ring=False)
    await mesh.admin.execute("update router.logs set due_time = clock_timestamp() - interval '1 ms'")
    await mesh.admin.execute("update router.logs set holder = 'gone:1' where tenant_id = 'ten_left'")
    _, one = await sweeper()
    found = await one._due_alone()
    assert "ten_left" in [ticket.tenant_id for ticket in found]
    ages = "select due_time < clock_timestamp() - interval '0.5 s' from router.logs where tenant_id = 'ten_rung'"
    assert "ten_rung" not in [ticket.tenant_id for ticket in found] or await mesh.admin.fetchval(ages)


async def test_workers_without_a_ring_do_not_all_begin_with_the_same_log(mesh, sweeper):
    await overdue(mesh, 30)
    _, first = await sweeper()
    _, second = await sweeper()
    one, two = [await one.due_now(QueueClass.CHAT) for one in (first, second)]
    assert sorted(one) == sorted(two)
    assert one != two


async def test_a_run_whose_ticket_was_taken_by_a_worker_that_died_before_its_claim_is_served(mesh, when_over):
    run = await mesh.submit("x")
    assert (await mesh.ring.pop()).ticket.log_id == "log_ada"
    assert await mesh.ring.pop() is None  # nobody else would find it
    await mesh.start_worker()
    assert (await when_over(run))["state"] == "succeeded"


async def test_finish_gives_a_session_back_after_each_run_while_others_wait(mesh, when_over):
    """fair_share: many runs of one session must not keep a worker from everybody else's."""
    flood = [await mesh.submit(f"flood {number}") for number in range(12)]
    other = await mesh.submit("other", tenant="ten_b")
    await mesh.start_worker(slots=1)
    await asyncio.gather(*(when_over(run) for run in [*flood, other]))
    asked = [request.text for request in mesh.adapter.requests]
    assert asked.index("other") <= 2
    assert [text for text in asked if text != "other"] == [f"flood {number}" for number in range(12)]


async def test_no_cross_tenant_the_keys_that_all_tenants_share_hold_ids_and_numbers_only(mesh, when_over):
    secret = "Wintermute"
    await mesh.submit(f"hello {secret}", contact="ada")
    run = await mesh.submit(f"hello {secret}", contact="grace")
    shared = [key async for key in mesh.redis.scan_iter() if not key.startswith(b"t:")]
    assert shared
    assert all(key.startswith(b"{r:") for key in shared)
    kept = b"".join([await mesh.redis.dump(key) for key in shared])
    assert b"log_ada" in kept
    assert secret.encode() not in kept
    assert b"hello" not in kept
    await mesh.start_worker()
    await when_over(run)
