"""The outbox is written with the event, by every version of a worker, and seen by nobody whom it does not concern."""

import json
from datetime import timedelta

import asyncpg
import pytest
from retinue_kit import postgres

ENDS = ["run.succeeded", "run.failed", "run.cancelled", "task.finished"]


async def make_webhook(core, webhook="whk_1", types=(), url="https://example.com/hook", tenant="ten_a", most=16):
    return await core.pool.fetchval(
        "select create_webhook_1($1, $2, 'standard', $3, 'example.com', $4, 'sealed', $5)",
        tenant, webhook, url, list(types) or ENDS, most,
    )  # fmt: skip


async def outbox(core):
    return await core.seen("select * from router.deliveries order by delivery_id")


async def test_an_event_that_is_asked_for_is_in_the_outbox_with_its_own_commit(core):
    await make_webhook(core, types=["run.succeeded", "assistant.message"])
    await core.submit()
    held = await core.claim()
    assert await outbox(core) == []
    await core.finish(held)
    rows = await outbox(core)
    assert [row["event_type"] for row in rows] == ["assistant.message", "run.succeeded"]
    for row in rows:
        event = (
            await core.seen(
                "select * from router.events where log_id = $1 and token = $2 and n = $3",
                *(row[name] for name in ("log_id", "token", "n")),
            )
        )[0]
        assert (row["contact"], row["run_id"], row["state"]) == ("anna", held["run_id"], "pending")
        assert (row["data"], row["event_time"]) == (event["data"], event["time"])
        assert row["delivery_id"].startswith("dlv_")


async def test_what_is_rolled_back_is_sent_to_nobody(core):
    await make_webhook(core)
    await core.submit()
    held = await core.claim()
    async with core.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        inside = type(core)(connection, core.admin)
        assert (await inside.finish(held))["ok"]
        async with postgres.as_tenant(core.pool, "ten_a") as other:
            assert await other.fetch("select from deliveries") == []
        await transaction.rollback()
    assert await outbox(core) == []
    assert "run.succeeded" not in await core.types()


async def test_a_worker_of_the_release_before_fills_the_outbox_as_well(core):
    await make_webhook(core)
    await core.submit()
    held = await core.claim()
    await core.pool.fetchrow(
        "select * from finish_1('ten_a', 'log_anna', $1, $2, 'succeeded', 'yes', '{}', null, '{}', 'agt_1', '[]', 9,"
        " $3, 'w1:1', $4, false, 3)",
        held["token"], held["run_id"], timedelta(0), timedelta(seconds=30),
    )  # fmt: skip
    assert [row["event_type"] for row in await outbox(core)] == ["run.succeeded"]


async def test_a_commit_that_is_asked_for_again_puts_nothing_in_twice(core):
    await make_webhook(core, types=["assistant.message", "run.succeeded"])
    await core.submit()
    held = await core.claim()
    events = [{"n": 5, "type": "assistant.message", "data": {"text": "yes"}, "run_id": held["run_id"],
               "session_id": held["session_id"]}]  # fmt: skip
    for _ in range(2):
        answer = await core.call(
            "checkpoint_1",
            "log_anna",
            held["token"],
            held["run_id"],
            json.dumps(events),
            b"",
            "{}",
            timedelta(seconds=9),
        )
        assert answer["ok"]
    await core.finish(held, events=events)
    assert [row["event_type"] for row in await outbox(core)] == ["assistant.message", "run.succeeded"]


async def test_a_tasks_events_name_the_contact_and_its_end_is_told_as_the_contacts(core):
    await make_webhook(core)
    await core.submit(kind="extraction", log="tsk_1")
    held = await core.claim("tsk_1")
    await core.finish(held, log="tsk_1")
    await core.claim()
    rows = {row["event_type"]: row for row in await outbox(core)}
    assert rows.keys() == {"run.succeeded", "task.finished"}
    assert {row["contact"] for row in rows.values()} == {"anna"}
    assert (rows["run.succeeded"]["log_id"], rows["task.finished"]["log_id"]) == ("tsk_1", "log_anna")


async def test_a_webhook_that_is_not_on_gets_nothing(core):
    for state in ("off", "gone"):
        await make_webhook(core, f"whk_{state}")
        await core.admin.execute("update router.webhooks set state = $1 where webhook_id = 'whk_' || $1", state)
    await core.submit()
    await core.finish(await core.claim())
    assert await outbox(core) == []


async def test_what_is_too_large_is_told_without_its_data(core):
    await make_webhook(core, types=["assistant.message"])
    await core.submit()
    held = await core.claim()
    events = [{"n": n, "type": "assistant.message", "data": {"text": "x" * size}} for n, size in ((5, 65_600), (6, 9))]
    await core.finish(held, events=events)
    large, small = await outbox(core)
    assert large["data"] is None
    assert json.loads(small["data"]) == {"text": "x" * 9}


async def test_a_receiver_that_is_a_day_behind_gets_no_more_than_the_record(core):
    await make_webhook(core)
    for hours in (23, 25):
        await core.submit()
        await core.finish(await core.claim())
        await core.admin.execute(
            "update router.deliveries set due_time = clock_timestamp() - make_interval(hours => $1)"
            " where state = 'pending'",
            hours,
        )
    await core.submit()
    await core.finish(await core.claim())
    assert [(row["state"], row["last_result"]) for row in await outbox(core)] == [
        ("pending", ""),
        ("pending", ""),
        ("dead", "its receiver is too far behind"),
    ]


async def test_a_deleted_contacts_deliveries_go_with_it(core):
    await make_webhook(core)
    for contact in ("anna", "boris"):
        await core.submit(contact=contact)
        await core.finish(await core.claim(f"log_{contact}"), log=f"log_{contact}")
    await core.submit(kind="extraction", log="tsk_1")
    await core.finish(await core.claim("tsk_1"), log="tsk_1")
    assert len(await outbox(core)) == 3
    await core.call("delete_contact_1", "anna", "log_anna")
    assert [row["contact"] for row in await outbox(core)] == ["boris"]


async def test_a_tenant_has_so_many_webhooks_and_no_more(core):
    assert [await make_webhook(core, f"whk_{i}", most=2) for i in range(3)] == [True, True, False]
    assert await make_webhook(core, "whk_9", most=2, tenant="ten_b")


async def test_no_cross_tenant_an_event_goes_to_its_own_tenants_webhooks_only(core):
    await make_webhook(core, "whk_a")
    await make_webhook(core, "whk_b", tenant="ten_b")
    await core.submit()
    await core.finish(await core.claim())
    assert [(row["tenant_id"], row["webhook_id"]) for row in await outbox(core)] == [("ten_a", "whk_a")]


async def test_the_couriers_role_sees_the_outbox_of_all_tenants_and_nothing_else(core, database):
    await make_webhook(core)
    await core.submit()
    await core.finish(await core.claim())
    connection = await asyncpg.connect(database.dsn("retinue_courier"))
    try:
        assert len(await connection.fetch("select delivery_id, data from deliveries")) == 1
        assert len(await connection.fetch("select webhook_id, url, secret from webhooks")) == 1
        tables = await core.seen(
            "select relname from pg_class where relnamespace = 'router'::regnamespace and relkind = 'r'"
        )
        for name in {row["relname"] for row in tables} - {"deliveries", "webhooks"}:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"select from router.{name}")
        for forbidden in (
            "insert into deliveries (tenant_id) values ('ten_a')",
            "update deliveries set data = '{}'",
            "update webhooks set url = 'https://evil.example'",
            "delete from webhooks",
            "insert into webhooks (tenant_id) values ('a')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(forbidden)
        rights = await core.seen(
            "select rolbypassrls or rolsuper or rolcreaterole or rolcreatedb as any from pg_roles"
            " where rolname = 'retinue_courier'"
        )
        assert [row["any"] for row in rights] == [False]
    finally:
        await connection.close()
