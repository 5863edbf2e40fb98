"""Whoever migrates waits for its turn, and not for ever."""

import asyncio

import asyncpg
import pytest
import pytest_asyncio
import structlog
from retinue_kit import postgres
from retinue_kit.errors import Reason, RetinueError


@pytest_asyncio.fixture
async def database(make_database):
    return await make_database("retinue_directory", "directory")


@pytest_asyncio.fixture
async def holder(database):
    """One that migrates and does not end."""
    connection = await asyncpg.connect(database.admin_dsn, server_settings={"application_name": "the slow one"})
    await connection.execute("select pg_advisory_lock(hashtext('retinue-migrations'))")
    yield connection
    await connection.close()


async def migrate(database, turn_max_s):
    await postgres.migrate(database.admin_dsn, "retinue_directory", "directory", turn_max_s)


async def test_bounded_who_waits_too_long_for_its_turn_says_whom_it_waited_for(database, holder):
    with structlog.testing.capture_logs() as lines, pytest.raises(RetinueError) as caught:
        await migrate(database, 0.05)
    pid = await holder.fetchval("select pg_backend_pid()")
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert f"waited 0.05 s to migrate, behind process {pid} (the slow one, postgres" in caught.value.private
    assert [line["detail"] for line in lines if line["log_level"] == "error"] == [caught.value.private]


async def test_a_turn_comes_when_the_other_ends_and_is_given_back(database, holder, eventually):
    watcher = await asyncpg.connect(database.admin_dsn)
    waits = "select from pg_stat_activity where wait_event = 'advisory' and application_name like 'retinue_directory %'"

    async def waiting():
        return await watcher.fetch(waits)

    async with asyncio.TaskGroup() as group:
        group.create_task(migrate(database, 30))
        await eventually(waiting)
        await holder.close()
    assert await watcher.fetchval("select pg_try_advisory_lock(hashtext('retinue-migrations'))")
    await watcher.close()


async def test_a_lock_of_another_database_is_nobody_s_turn(database, make_database, holder):
    await migrate(await make_database("retinue_directory", "directory"), 0.05)
