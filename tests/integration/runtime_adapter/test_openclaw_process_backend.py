"""Instances as processes: what they see, what they leave, and that nothing of them outlives the adapter.

In place of Node there is a program that begins helpers as a gateway does: one beside it, one in a session of its own.
"""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends import cgroup
from retinue_runtime_adapter.openclaw.backends.process import REASON_SIZE_MAX, ProcessBackend
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Isolation, Process

Eventually = Callable[..., Awaitable[Any]]

NODE = """#!{python}
import json, os, pathlib, resource, subprocess, sys, time
home = pathlib.Path(os.environ["HOME"])
found = {{
    "environment": dict(os.environ),
    "arguments": sys.argv[1:],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
    "session": os.getsid(0),
    "stdin": os.readlink("/proc/self/fd/0"),
    "stdout": os.readlink("/proc/self/fd/1"),
}}
print("what a tenant said")
{more}
helpers = [
    subprocess.Popen(["sleep", "1000"], start_new_session=True),
    subprocess.Popen(["sh", "-c", "sleep 1000 & wait"]),
]
(home / "new.json").write_text(json.dumps(found))
(home / "new.json").rename(home / "found.json")
time.sleep(1000)
"""


class Installed:
    """An installation whose Node is a script, and a backend of it."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder / "installed"
        self.state = folder / "state"
        program = self.dir / "node_modules/openclaw/openclaw.mjs"
        program.parent.mkdir(parents=True)
        program.touch()
        self.write()
        self.settings = Settings(address="", openclaw_dir=str(self.dir), openclaw_state_dir=str(self.state))
        self.backend = ProcessBackend(self.settings)

    def write(self, more: str = "") -> None:
        """Write the script, with more lines in the middle."""
        node = self.dir / "node"
        node.write_text(NODE.format(python=sys.executable, more=more))
        node.chmod(0o755)

    def spec(self, instance_id: str = "ins_a") -> InstanceSpec:
        return InstanceSpec(
            instance_id=instance_id,
            isolation=Isolation.SHARED,
            folder=str(self.state / instance_id),
            config=lambda host, port: json.dumps({"host": host, "port": port}).encode(),
            heap_mib=300,
            memory_mib=1000,
        )

    async def begun(self, eventually: Eventually) -> tuple[Process, dict[str, Any], list[psutil.Process]]:
        """Begin an instance; answers also what it saw and all its processes."""
        process = await self.backend.begin(self.spec())
        file = self.state / "ins_a" / "found.json"
        await eventually(file.exists)
        main = psutil.Process(process.detail["pid"])
        everything = await eventually(lambda: _whole([main, *main.children(recursive=True)]))
        return process, json.loads(file.read_text()), everything


@pytest_asyncio.fixture
async def installed(tmp_path: Path) -> AsyncIterator[Installed]:
    found = Installed(tmp_path)
    await found.backend.prepare()
    yield found
    await found.backend.close()


def _whole(tree: list[psutil.Process]) -> list[psutil.Process]:
    """The tree, once both helpers and the helper's own are there."""
    return tree if len(tree) == 4 else []


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_an_instance_sees_its_own_folder_and_nothing_of_the_mesh(
    installed: Installed, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETINUE_MODEL_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    process, found, _ = await installed.begun(eventually)
    folder = installed.state / "ins_a"
    environment = found["environment"]
    assert "secret" not in environment.values()
    assert not [name for name in environment if name.startswith("RETINUE_")]
    assert environment["HOME"] == environment["OPENCLAW_STATE_DIR"] == str(folder)
    assert environment["MALLOC_ARENA_MAX"] == "2"
    assert Path(environment["TMPDIR"]).is_relative_to(folder)
    assert found["arguments"][0] == "--max-old-space-size=300"
    assert (found["core"], found["stdin"], found["stdout"]) == (0, os.devnull, os.devnull)
    assert found["session"] != os.getsid(0)
    host, _, port = process.address.rpartition(":")
    assert json.loads((folder / "openclaw.json").read_text()) == {"host": host, "port": int(port)}
    assert found["arguments"][-1] == port


async def test_only_its_owner_reads_what_an_instance_keeps(installed: Installed) -> None:
    await installed.backend.begin(installed.spec())
    folder = installed.state / "ins_a"
    assert stat.S_IMODE(installed.state.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "openclaw.json").stat().st_mode) == 0o600


async def test_its_port_is_nobody_elses_while_it_lives_and_can_be_listened_on(installed: Installed) -> None:
    process = await installed.backend.begin(installed.spec())
    port = int(process.address.rpartition(":")[2])
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Node does
        listener.bind(("127.0.0.1", port))
        listener.listen()


async def test_an_end_takes_every_helper_and_the_folder_with_it(installed: Installed, eventually: Eventually) -> None:
    process, _, everything = await installed.begun(eventually)
    assert await installed.backend.is_alive(process)
    assert await installed.backend.memory_bytes(process) > 4 * 1024 * 1024
    await installed.backend.end(process, 5)
    assert all(map(is_gone, everything))
    assert not (installed.state / "ins_a").exists()
    assert not await installed.backend.is_alive(process)
    assert await installed.backend.memory_bytes(process) == 0
    await installed.backend.end(process, 5)


async def test_an_end_whose_waiter_is_cancelled_is_carried_through(
    installed: Installed, eventually: Eventually
) -> None:
    process, _, everything = await installed.begun(eventually)
    ending = asyncio.create_task(installed.backend.end(process, 0))
    await asyncio.sleep(0)
    ending.cancel()
    await eventually(lambda: all(map(is_gone, everything)) and not (installed.state / "ins_a").exists())


async def test_helpers_do_not_outlive_a_gateway_that_is_killed(installed: Installed, eventually: Eventually) -> None:
    process, _, everything = await installed.begun(eventually)
    os.kill(process.detail["pid"], signal.SIGKILL)
    await eventually(lambda: all(map(is_gone, everything)))

    async def is_seen() -> bool:
        return not await installed.backend.is_alive(process)

    await eventually(is_seen)
    assert process.detail["end"] == f"it ended with status {128 + signal.SIGKILL}."


ADAPTER = """
import asyncio, json, sys
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends.process import ProcessBackend
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Isolation
async def main():
    settings = Settings(address="", openclaw_dir=sys.argv[1], openclaw_state_dir=sys.argv[2])
    backend = ProcessBackend(settings)
    await backend.prepare()
    spec = InstanceSpec("ins_other", Isolation.SHARED, sys.argv[2] + "/ins_other", lambda *_: b"{}", 300, 1000)
    print((await backend.begin(spec)).detail["pid"], flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_nothing_outlives_an_adapter_that_is_killed_and_the_next_one_tidies_up(
    installed: Installed, eventually: Eventually
) -> None:
    folder = installed.state / "ins_other"
    command = [sys.executable, "-c", ADAPTER, str(installed.dir), str(installed.state)]
    adapter = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert adapter.stdout is not None
        main = psutil.Process(int(await asyncio.to_thread(adapter.stdout.readline)))
        await eventually((folder / "found.json").exists)
        everything = await eventually(lambda: _whole([main, *main.children(recursive=True)]))
        await installed.backend.prepare()
        assert folder.exists(), "another adapter has it"
    finally:
        adapter.kill()
        adapter.wait()
        adapter.stdout.close()
    await eventually(lambda: all(map(is_gone, everything)))
    assert folder.exists()
    await installed.backend.prepare()
    assert not folder.exists()


async def test_processes_that_a_former_adapter_left_are_ended_with_their_folder(
    installed: Installed, tmp_path: Path
) -> None:
    folder = installed.state / "ins_left"
    folder.mkdir()
    other, outside = installed.state / "notes", tmp_path / "outside"
    other.mkdir()
    outside.mkdir()
    (installed.state / "ins_link").symlink_to(outside)
    environment = {"OPENCLAW_STATE_DIR": str(folder), "PATH": os.environ["PATH"]}
    left = subprocess.Popen(["sleep", "1000"], env=environment)
    await installed.backend.prepare()
    left.wait(5)  # else it raises
    assert not folder.exists()
    assert other.exists()
    assert outside.exists()


async def test_why_an_instance_did_not_begin_can_be_read(installed: Installed, eventually: Eventually) -> None:
    installed.write("sys.stderr.write('first\\n' * 1000 + 'x' * 100_000 + '\\nthe config is bad\\n'); sys.exit(78)")
    process = await installed.backend.begin(installed.spec())

    async def is_over() -> bool:
        return not await installed.backend.is_alive(process)

    await eventually(is_over)
    assert process.detail["end"] == "it ended with status 78."
    assert process.detail["said"].endswith("the config is bad")
    assert len(process.detail["said"]) <= REASON_SIZE_MAX


async def test_a_program_that_cannot_be_executed_is_told_of(installed: Installed, eventually: Eventually) -> None:
    (installed.dir / "node").write_bytes(b"\x7fno program")
    process = await installed.backend.begin(installed.spec())

    async def is_over() -> bool:
        return not await installed.backend.is_alive(process) and "cannot begin" in process.detail["said"]

    await eventually(is_over)


async def test_what_openclaw_puts_aside_of_a_tenant_is_removed(installed: Installed, eventually: Eventually) -> None:
    process, _, _ = await installed.begun(eventually)
    trash = installed.state / "ins_a" / ".Trash"
    (trash / "workspace").mkdir(parents=True)
    (trash / "workspace" / "letter").touch()
    (trash / "agent.sqlite").touch()
    await installed.backend.memory_bytes(process)
    assert list(trash.iterdir()) == []


async def test_a_missing_installation_is_a_clear_refusal(tmp_path: Path) -> None:
    settings = Settings(address="", openclaw_dir=str(tmp_path / "no"), openclaw_state_dir=str(tmp_path / "state"))
    with pytest.raises(RetinueError, match="not installed") as refused:
        await ProcessBackend(settings).prepare()
    assert refused.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_a_folder_that_is_there_already_is_not_taken(installed: Installed) -> None:
    (installed.state / "ins_a").mkdir()
    with pytest.raises(RetinueError, match="cannot be begun"):
        await installed.backend.begin(installed.spec())
    assert (installed.state / "ins_a").exists()


# --- control groups, in folders that look like them ----------------------------------------------------------------


def groups(tmp_path: Path, own: str, *, controllers: str) -> Path | None:
    """Find what may be divided, in a tree where an adapter is in the group `own`."""
    (tmp_path / own).mkdir(parents=True)
    (tmp_path / own).parent.joinpath("cgroup.subtree_control").write_text(controllers)
    file = tmp_path / "own"
    file.write_text(f"1:name=systemd:/elsewhere\n0::/{own}\n")
    return cgroup.find(tmp_path, file)


def test_instances_become_neighbours_of_an_adapter_in_a_delegated_group(tmp_path: Path) -> None:
    parent = groups(tmp_path, "retinue.service/adapter", controllers="cpu memory pids")
    assert parent == tmp_path / "retinue.service"
    group = cgroup.make(parent, "ins_a", 1000)
    assert group is not None
    assert (group.path / "memory.max").read_text() == str(1000 * 1024 * 1024)


def test_a_group_without_memory_is_not_divided(tmp_path: Path) -> None:
    assert groups(tmp_path, "retinue.service/adapter", controllers="cpu") is None
    assert cgroup.make(None, "ins_a", 1000) is None


def test_the_root_group_is_not_divided(tmp_path: Path) -> None:
    file = tmp_path / "own"
    file.write_text("0::/\n")
    assert cgroup.find(tmp_path, file) is None
