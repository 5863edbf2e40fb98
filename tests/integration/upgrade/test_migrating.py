"""The schema is brought up to date while the former release works on it."""

import asyncio

import pytest_asyncio
from retinue_kit import postgres

SINCE = "0004"
FILES = (
    "select c.relname, pg_relation_filenode(c.oid) as file from pg_class c"
    " where c.relnamespace = 'router'::regnamespace and c.relkind in ('r', 'i')"
)


@pytest_asyncio.fixture
async def older(database, migrate_to):
    """A database as the former release left it."""
    await migrate_to(database, SINCE)
    return database


async def test_runs_in_flight_are_finished_and_no_table_is_written_anew(older, released, current, seen):
    for n in range(20):
        await released.submit(f"done {n}")
        await released.finish(await released.claim(f"old:{n}"), "failed" if n % 3 == 0 else "succeeded")
    active, queued = [(await released.submit(text))["run_id"] for text in ("active", "queued")]
    held = await released.claim("old:1")
    before = {row["relname"]: row["file"] for row in await seen(FILES)}
    rows = await seen("select run_id, state, output from router.runs order by run_id")

    await postgres.migrate(older.admin_dsn, "retinue_router", "router")

    after = {row["relname"]: row["file"] for row in await seen(FILES)}
    assert {name: after[name] for name in before} == before
    assert await seen("select run_id, state, output from router.runs order by run_id") == rows
    assert await seen("select from router.runs where dead is not null") == []  # what failed before stays as it is
    assert held["run_id"] == active
    assert (await released.finish(held))["state"] == "succeeded"
    lease = await current.claim()
    assert lease.run_id == queued
    assert [line.text for line in lease.history][:2] == ["yes", "active"]


async def test_migrating_twice_at_once_applies_each_file_once(older, seen):
    migrating = (postgres.migrate(older.admin_dsn, "retinue_router", "router") for _ in range(3))
    await asyncio.gather(*migrating)
    names = [row["name"] for row in await seen("select name from router.migrations order by time, name")]
    assert names == sorted(set(names))


async def test_the_former_release_works_on_while_the_schema_changes_under_it(older, released, seen):
    over = asyncio.Event()

    async def work():
        count = 0
        while not over.is_set() or count < 10:
            await released.submit(f"m{count}")
            held = await released.claim(f"old:{count}")
            assert await released.checkpoint(held, b"s")
            assert (await released.finish(held))["state"] == "succeeded"
            count += 1
        return count

    working = asyncio.create_task(work())
    await postgres.migrate(older.admin_dsn, "retinue_router", "router")
    over.set()
    count = await working
    assert [tuple(row) for row in await seen("select state, count(*) from router.runs group by 1")] == [
        ("succeeded", count)
    ]
