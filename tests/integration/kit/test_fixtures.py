"""The shared fixtures do what they say."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import whole_mesh


async def test_each_database_is_fresh_and_migrated(make_database):
    first = await make_database("retinue_directory", "directory")
    second = await make_database("retinue_directory", "directory")
    connection = await asyncpg.connect(first.admin_dsn)
    await connection.execute("create table directory.only_here()")
    await connection.close()
    connection = await asyncpg.connect(second.dsn("retinue_directory"))
    assert await connection.fetchval("select current_user") == "retinue_directory"
    assert await connection.fetchval("select to_regclass('directory.only_here')") is None
    assert await connection.fetchval("select to_regclass('directory.tenants')") is not None
    await connection.close()


async def test_a_database_may_hold_several_schemas(make_database):
    database = await make_database("retinue_directory", "directory", also=[("retinue_router", "router")])
    connection = await asyncpg.connect(database.admin_dsn)
    assert await connection.fetchval("select to_regclass('directory.tenants')") is not None
    assert await connection.fetchval("select to_regclass('router.runs')") is not None
    await connection.close()


async def test_a_killed_postgres_is_started_again_with_what_it_held(make_database, postgres_server):
    database = await make_database("retinue_directory", "directory")
    postgres_server.kill()
    with pytest.raises(OSError, match="Connect"):
        await asyncpg.connect(database.admin_dsn)
    postgres_server.start()
    connection = await asyncpg.connect(database.admin_dsn)
    assert await connection.fetchval("select to_regclass('directory.tenants')") is not None
    await connection.close()


def test_a_killed_redis_is_started_again(redis_server, redis_url):
    redis_server.kill()
    redis_server.start()
    assert redis_url == f"unix://{redis_server.socket_dir}/redis.sock"


async def test_eventually_waits_for_truth_and_reports_what_was_wrong(eventually):
    answers = iter([0, 0, 7])
    assert await eventually(lambda: next(answers)) == 7

    async def wrong():
        raise AssertionError("as it is")

    with pytest.raises(AssertionError, match="as it is"):
        await eventually(wrong, timeout_s=0.05)


GUARDED = """
import sys, whole_mesh
with whole_mesh.guarded("touch", sys.argv[1]):
    print("within", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [True, False])
async def test_what_a_killed_test_process_has_started_is_stopped_after_it(run_dir, eventually, killed):
    mark = run_dir / "stopped"
    path = f"{Path(whole_mesh.__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED, mark],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"within\n"
        if killed:
            process.send_signal(signal.SIGKILL)
            await eventually(mark.exists)
        else:
            process.communicate()
            assert not mark.exists()
