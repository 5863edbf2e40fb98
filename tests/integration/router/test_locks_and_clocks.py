"""What the functions of the core may not get wrong about locks, snapshots, clocks and rows that are read only."""

import asyncio
from datetime import timedelta

from retinue_kit import postgres

LEASE = timedelta(seconds=30)


async def waits_for_a_lock(core):
    rows = await core.seen("select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%claim_1%'")
    return len(rows) == 1


async def test_a_claim_waits_for_whoever_writes_the_log_instead_of_passing_it_over(core, eventually):
    """The bell that brought it here has been taken by then: to pass over would lose the run."""
    first = await core.submit()
    async with core.pool.acquire() as connection, connection.transaction():
        own = type(core)(connection, core.admin)
        assert (await own.submit())["ring"]
        claim = asyncio.create_task(core.claim())
        await eventually(lambda: waits_for_a_lock(core))
        assert not claim.done()
    assert (await claim)["run_id"] == first["run_id"]


async def test_a_claim_that_comes_before_a_holder_gives_back_is_followed_by_that_holder_s_own_bell(core):
    await core.submit()
    second = await core.submit()
    held = await core.claim()
    async with core.pool.acquire() as connection, connection.transaction():
        own = type(core)(connection, core.admin)
        done = await own.finish(held)
        assert await core.claim(holder="w2:1") is None
    assert done["ring"]
    assert (await core.claim(holder="w2:1"))["run_id"] == second["run_id"]


async def test_a_lease_lasts_from_when_it_was_granted_however_long_the_grant_was_waited_for(core):
    """now() would be the beginning of the transaction: a claim that waited would be given a lease that is half over."""
    await core.submit()
    async with core.pool.acquire() as connection, connection.transaction():
        began = await connection.fetchval("select now()")
        own = type(core)(connection, core.admin)
        held = await own.claim(ttl=LEASE)
        granted = await connection.fetchval("select due_time from logs") - LEASE
        assert granted > began
        await own.renew(("ten_a", "log_anna", held["token"]))
        assert await connection.fetchval("select due_time from logs") - LEASE > granted


async def test_no_stale_write_a_token_is_one_run_s_even_within_one_lease(core):
    """What still runs of the run before, in the same process, may not write into the next one."""
    first = await core.submit()
    await core.submit()
    held = await core.claim()
    after = (await core.finish(held, next=True))["next"]
    assert after["token"] == held["token"] + 1
    late = ("log_anna", held["token"], first["run_id"], "[]", b"late", "{}", LEASE)
    assert not (await core.call("checkpoint_1", *late))["ok"]
    assert not (await core.park(held))["ok"]
    assert await core.renew(("ten_a", "log_anna", held["token"])) == []
    assert (await core.run(after["run_id"]))["checkpoint"] is None


async def test_a_replay_writes_nothing(core):
    first = await core.submit(key="k")
    rows = "select xmin, xmax, ctid from router.{}"
    before = [tuple(row) for table in ("runs", "logs", "contacts") for row in await core.seen(rows.format(table))]
    for _ in range(3):
        assert (await core.submit(key="k"))["run_id"] == first["run_id"]
    after = [tuple(row) for table in ("runs", "logs", "contacts") for row in await core.seen(rows.format(table))]
    assert [(xmin, ctid) for xmin, _, ctid in before] == [(xmin, ctid) for xmin, _, ctid in after]


async def test_a_key_used_for_two_contacts_at_once_is_one_run_and_leaves_nothing_to_do_for_the_other(core):
    for number in range(15):
        names = [f"a{number}", f"b{number}"]
        answers = await asyncio.gather(*(core.submit(contact=c, key=f"k{number}", digest=c.encode()) for c in names))
        assert sorted(a["outcome"] for a in answers) == ["accepted", "key_reused"]
        (won,) = [name for name, answer in zip(names, answers, strict=True) if answer["outcome"] == "accepted"]
        for name in names:
            log = await core.log(f"log_{name}")
            assert (log is not None and log["due_time"] is not None) == (name == won)


async def test_deltas_of_the_run_that_goes_on_are_never_trimmed_and_those_of_ten_minutes_ago_are(core):
    for _ in range(3):
        await core.submit()
    first = await core.claim()
    assert first["keep_token"] == 0
    second = (await core.finish(first, next=True))["next"]
    assert second["keep_token"] == 0  # the run before it ended just now
    await core.seen("update router.runs set end_time = end_time - interval '11 minutes' where end_time is not null")
    third = (await core.finish(second, next=True))["next"]
    assert third["keep_token"] == first["token"]


async def test_transactions_that_their_process_has_left_alone_are_ended_by_the_database(make_database, core):
    await make_database("retinue_directory", "directory")
    roles = await core.seen("select rolname, rolconfig from pg_roles where rolname like 'retinue%'")
    assert len(roles) >= 3
    for name, settings in roles:
        assert {"idle_in_transaction_session_timeout=5s", "transaction_timeout=15s"} <= set(settings), name
    assert postgres.COMMAND_TIMEOUT_S < 15, "a statement is given up by its caller first"


async def test_a_database_without_read_committed_is_refused_at_the_start(database, run_dir, launch, redis_url):
    """Under a stricter isolation a function sees one snapshot: what it looks up after a lock would be out of date."""
    stricter = "&options=-c%20default_transaction_isolation=serializable"
    process = launch(
        "retinue_router",
        RETINUE_ADDRESS=f"unix:{run_dir}/router.sock",
        RETINUE_POSTGRES_DSN=database.dsn("retinue_router") + stricter,
        RETINUE_SWEEP_DSN=database.dsn("retinue_sweep"),
        RETINUE_REDIS_URL=redis_url,
        RETINUE_WORKSPACES_DIR=str(run_dir),
    )
    assert await asyncio.to_thread(process.wait, 30) != 0
    assert "read committed" in process.log().lower()
