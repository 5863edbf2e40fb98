"""The shared fixtures do what they say."""

import asyncpg


async def test_each_database_is_fresh_and_migrated(make_database):
    first = await make_database("retinue_router", "router")
    second = await make_database("retinue_router", "router")
    connection = await asyncpg.connect(first.admin_dsn)
    await connection.execute("create table router.only_here()")
    await connection.close()
    connection = await asyncpg.connect(second.dsn("retinue_router"))
    assert await connection.fetchval("select current_user") == "retinue_router"
    assert await connection.fetchval("select to_regclass('router.only_here')") is None
    assert await connection.fetchval("select to_regclass('router.runs')") is not None
    await connection.close()


def test_a_stopped_redis_runs_again_when_asked_for(redis_server, redis_url, request):
    redis_server.kill()
    redis_server.start()
    assert redis_url.startswith("unix:///")


async def test_eventually_waits_for_truth_and_reports_what_was_wrong(eventually):
    answers = iter([0, 0, 7])
    assert await eventually(lambda: next(answers)) == 7
