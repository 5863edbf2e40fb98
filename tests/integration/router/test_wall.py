"""The wall between tenants holds where a query forgets it, and the service runs as nobody who could climb it."""

import importlib
import inspect
import json
import pkgutil
import re
from datetime import UTC, datetime

import pytest
from retinue_kit import postgres
from retinue_router import store
from retinue_router.worker import projection

CONDITION = re.compile(r"\b(?:\w+\.)?tenant_id = \$1\b")
SOME = {"text": "", "int8": 0, "int4": 0, "float8": 0.0, "int4[]": [], "text[]": []}
"""A value for each type of parameter."""


FACT = {
    "fact_id": "fct_1", "domain": "home", "kind": "note", "importance": 5, "text": "hers", "digest": "01", "grams": [1],
    "model": "m", "vector": "[1,0]",
}  # fmt: skip


def statements():
    """Find every statement of the stores that names the tenant."""
    modules = [importlib.import_module(f"{store.__name__}.{m.name}") for m in pkgutil.iter_modules(store.__path__)]
    found = {}
    for module in [*modules, projection]:
        for name, value in inspect.getmembers(module):
            if isinstance(value, str) and value.lstrip().startswith("select") and CONDITION.search(value):
                found[f"{module.__name__}.{name}"] = value
    return found


async def answer(core, tenant_id, query):
    async with postgres.as_tenant(core.pool, tenant_id) as connection:
        prepared = await connection.prepare(query)
        _, *others = prepared.get_parameters()
        return await prepared.fetch(tenant_id, *(SOME[parameter.name] for parameter in others))


async def make_schedule(core, key=None):
    await core.call(
        "create_schedule_1", "sch_1", "anna", "log_anna", "digest", '{"text": "News?"}', "0 0 * * *", "UTC", "usr_1",
        datetime.now(UTC), key, b"1" if key else None, 100,
    )  # fmt: skip


async def make_webhook(core):
    """Make one that what is said is sent to, before anything is said."""
    await core.call(
        "create_webhook_1", "whk_1", "standard", "https://example.com/", "example.com", ["user.message"], b"s", 16
    )


async def test_no_cross_tenant_a_query_that_forgets_its_condition_sees_nothing_foreign(core):
    await make_webhook(core)
    await core.submit()
    await core.park(await core.claim(), pattern="ls *")
    await core.decide("allow_always")
    await make_schedule(core)
    await core.call("remember_1", "anna", "", json.dumps([FACT]), 100)
    await core.submit(contact="bob")
    await core.call("delete_contact_1", "bob", "log_bob")
    found = statements()
    assert len(found) >= 12
    for name, statement in found.items():
        forgetful = CONDITION.sub("$1::text is not null", statement)
        # Every other condition is cut off as well: what is left is the wall.
        open_to_all = re.split(r"\bwhere\b", forgetful)[0] + " where $1::text is not null"
        assert await answer(core, "ten_b", forgetful) == [], name
        assert await answer(core, "ten_b", open_to_all) == [], name
        assert await answer(core, "ten_a", open_to_all) != [], f"{name}: its owner should see something"


async def test_no_cross_tenant_without_a_tenant_nothing_is_seen(core):
    await make_webhook(core)
    await core.submit()
    await core.claim()
    await make_schedule(core)
    for table in (
        "contacts",
        "logs",
        "runs",
        "events",
        "mail",
        "approvals",
        "usage_logs",
        "deleted_logs",
        "deleted_keys",
        "schedules",
        "deleted_schedules",
        "webhooks",
        "deleted_webhooks",
        "deliveries",
        "facts",
    ):
        assert await core.pool.fetch(f"select from {table}") == []


async def test_no_cross_tenant_rows_cannot_be_written_for_another_tenant(core):
    await core.submit()
    async with postgres.as_tenant(core.pool, "ten_b") as connection:
        assert await connection.execute("delete from runs") == "DELETE 0"
        with pytest.raises(Exception, match="row-level security"):
            await connection.execute(
                "insert into contacts (tenant_id, contact, contact_id) values ('ten_a', 'x', 'con_x')"
            )


async def test_no_cross_tenant_every_table_of_a_tenant_has_a_forced_wall(core):
    rows = await core.seen(
        "select c.relname, c.relrowsecurity and c.relforcerowsecurity as walled from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'router' and c.relkind = 'r'"
    )
    assert {row["relname"] for row in rows if not row["walled"]} == {"migrations"}


async def test_the_service_s_role_is_neither_owner_nor_superuser(core):
    (role,) = await core.seen("select rolsuper, rolbypassrls from pg_roles where rolname = 'retinue_router'")
    assert tuple(role) == (False, False)
    owners = await core.seen("select distinct tableowner from pg_tables where schemaname = 'router'")
    assert [tuple(owner) for owner in owners] == [("postgres",)]


async def test_no_cross_tenant_a_schedule_is_fired_by_nobody_but_its_tenant(core):
    await make_schedule(core, key="k")
    (mine,) = await core.seen("select schedule_id, next_time from router.schedules")
    core.tenant = "ten_b"
    fire = ("sch_1", mine["next_time"], None, "log_x", "tsk_1", "ses_1", "run_1", "{}", 9, 9)
    assert (await core.call("fire_schedule_1", *fire))["outcome"] == "moved"
    assert not (await core.call("put_off_schedule_1", "sch_1", mine["next_time"], mine["next_time"]))[0]
    assert await core.call("look_at_schedule_1", "sch_1") is None
    assert (await core.seen("select schedule_id, next_time from router.schedules")) == [mine]
    assert await core.seen("select from router.runs") == []
    # Another tenant's key is no key.
    await make_schedule(core, key="k")
    assert len(await core.seen("select from router.schedules")) == 2


async def test_the_sweeper_sees_ids_numbers_and_decisions_of_all_tenants_and_nothing_else(core, database):
    await core.submit()
    pool = await postgres.connect(database.dsn("retinue_sweep"), max_size=1)
    await make_schedule(core)
    assert len(await pool.fetch("select tenant_id, log_id, due_time, last_token, last_n from logs")) == 1
    assert len(await pool.fetch("select tenant_id, schedule_id, next_time from schedules")) == 1
    assert len(await pool.fetch("select tenant_id, run_id, create_time, decision from runs")) == 1
    for refused in (
        "select contact from logs",
        "select session_id from logs",
        "select input from runs",
        "select output from runs",
        "update logs set due_time = null",
        "select contact from schedules",
        "select input from schedules",
        "update schedules set next_time = null",
        "select from deleted_schedules",
    ):
        with pytest.raises(Exception, match="permission denied"):
            await pool.execute(refused)
    await pool.close()
