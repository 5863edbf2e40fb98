"""Orders to a supervisor: services restarted one after another without a moment in which nobody serves."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

from retinue_kit.errors import RetinueError
from retinue_local import paths
from retinue_local.processes import Life

RETINUE = [sys.executable, "-m", "retinue_cli"]
IGNORANT = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"


async def order(supervisor, *names):
    """Give an order as the command does; answers its exit code, what it said, and how it was refused."""
    process = await asyncio.create_subprocess_exec(
        *RETINUE, "restart", *names, "--state-dir", str(supervisor.state),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    said, refused = await process.communicate()
    return process.returncode, said.decode(), refused.decode()


async def test_a_service_is_replaced_without_a_moment_in_which_nobody_serves(run_dir, supervise, eventually, peer):
    supervisor = supervise(run_dir / "state", "redis,sandbox")
    await eventually(supervisor.is_ready, timeout_s=60)
    before = {name: supervisor.entry(name) for name in ("redis", "sandbox")}
    asked, missed = 0, []

    async def ask():
        nonlocal asked
        while True:
            fresh = peer("sandbox", before["sandbox"].address)
            try:
                await fresh.check()
            except RetinueError as error:
                missed.append(error)
            asked += 1
            await fresh.close()

    asking = asyncio.create_task(ask())
    code, said, refused = await order(supervisor)
    asking.cancel()
    assert (code, refused) == (0, "")
    assert said.splitlines()[0] == "sandbox: restarting"
    assert said.splitlines()[1].startswith("sandbox: serving anew after ")
    assert asked
    assert not missed
    after = supervisor.entry("sandbox")
    assert (after.health, after.restarts) == ("serving", 0)
    assert after.pid != before["sandbox"].pid
    assert supervisor.entry("redis") == before["redis"]  # a store is restarted only if it is named
    assert before["sandbox"].pid not in supervisor.below()


async def test_a_store_that_is_named_is_restarted(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "redis,sandbox")
    await eventually(supervisor.is_ready, timeout_s=60)
    before = supervisor.entry("redis")
    assert (await order(supervisor, "redis"))[0] == 0
    after = supervisor.entry("redis")
    assert (after.health, after.restarts) == ("serving", 0)
    assert after.pid != before.pid


async def test_an_unknown_name_is_refused_before_anything_is_restarted(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "redis")
    await eventually(supervisor.is_ready, timeout_s=60)
    before = supervisor.entry("redis")
    code, said, refused = await order(supervisor, "redis", "abacus")
    assert (code, said) == (2, "")
    assert refused == "error: No process is called 'abacus'; there are redis.\n"
    assert supervisor.entry("redis") == before


async def test_a_second_order_is_refused_while_one_is_followed(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "redis,sandbox")
    await eventually(supervisor.is_ready, timeout_s=60)
    pid = supervisor.entry("sandbox").pid
    os.kill(pid, signal.SIGSTOP)  # so that it takes its time to leave
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(paths.of_state(supervisor.state).control))
        first.sendall(json.dumps({"restart": ["sandbox"]}).encode() + b"\n")
        assert await asyncio.to_thread(first.recv, 1024)
        code, _, refused = await order(supervisor, "redis")
        assert (code, refused) == (2, "error: Another restart is under way; wait for its end.\n")
        os.kill(pid, signal.SIGCONT)


async def test_a_new_process_that_does_not_come_up_leaves_the_former_in_its_place(run_dir, supervise, eventually):
    supervisor = supervise(run_dir / "state", "sandbox")
    await eventually(supervisor.is_ready, timeout_s=60)
    before = supervisor.entry("sandbox")
    in_the_way = paths.of_state(supervisor.state).run / "sandbox.sock.new"
    in_the_way.mkdir()
    code, _, refused = await order(supervisor, "sandbox")
    assert code == 1
    assert refused.startswith("error: sandbox goes on as it was; a new one did not come up: ")
    assert supervisor.entry("sandbox") == before
    in_the_way.rmdir()
    assert (await order(supervisor, "sandbox"))[0] == 0


async def test_a_process_that_never_serves_is_told_of_within_seconds(run_dir, supervise, eventually):
    state = run_dir / "state"
    in_the_way = paths.of_state(state).run / "sandbox.sock.new"
    in_the_way.mkdir(parents=True)
    supervisor = supervise(state, "redis,sandbox")
    assert await asyncio.to_thread(supervisor.process.wait, 30) != 0
    assert "StartError: sandbox ended 5 times before it served, at last with 1: " in supervisor.output()


async def test_one_that_ignores_the_wish_to_leave_is_killed():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", IGNORANT, stdout=subprocess.PIPE, process_group=0
    )
    assert await process.stdout.readline() == b"on\n"
    ended = asyncio.ensure_future(process.wait())
    await Life("ignorant", process.pid, ended).leave(signal.SIGTERM, 0.1)
    assert ended.result() == -signal.SIGKILL
