"""Boxes as bubblewrap makes them here: what is in one, what it takes to make one, and what becomes of it."""

import asyncio
import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.bwrap import finding, forwarder, options, seccomp
from retinue_sandbox.bwrap.cgroup import Cgroups
from retinue_sandbox.bwrap.launcher import BwrapLauncher, Ground
from retinue_sandbox.bwrap.options import Interpreter
from retinue_sandbox.ports import BoxSpec, Launched, Workspace

Eventually = Callable[..., Awaitable[Any]]

UID = 700_123 if os.geteuid() == 0 else os.geteuid()
ANSWER_TIMEOUT_S = 5.0

AGENT = """
import json, socket
control = socket.socket(fileno=0)
control.sendall(b"\\n")
for line in control.makefile():
    names = {}
    try:
        exec(json.loads(line), names)
    except BaseException as error:
        names["answer"] = repr(error)
    control.sendall((json.dumps(names["answer"]) + "\\n").encode())
"""
"""Answers each line of source with what it calls `answer`."""

SCENE = """
import os, resource, socket
def read(path):
    with open(path) as file:
        return file.read()
def tried(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    return "written"
answer = {
    "fds": {n: os.readlink(f"/proc/self/fd/{n}").partition(":")[0] for n in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{n}") and int(n) < 100},
    "environ": dict(os.environ),
    "folders": {path: sorted(os.listdir(path)) for path in ("/", "/etc", "/run", "/workspace", "/tmp")},
    "pids": [name for name in os.listdir("/proc") if name.isdigit()],
    "user": [os.getpid(), os.getuid(), os.getgid(), os.getgroups()],
    "host": socket.gethostname(),
    "where": os.getcwd(),
    "mounts": read("/proc/self/mountinfo"),
    "first": os.readlink("/proc/1/exe") + read("/proc/1/cmdline"),
    "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in
               ("NPROC", "NOFILE", "CORE", "MEMLOCK")},
    "oom": read("/proc/self/oom_score_adj"),
    "written": {path: tried(path + "/new") for path in ("/", "/etc", "/usr", "/run", "/dev", "/workspace", "/tmp")},
}
os.chmod("/workspace/new", 0o4755)
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """What boxes are made with here. Where bubblewrap is there and refuses, tests fail by what it says."""
    found, check = finding.look()
    assert found is not None, check.detail
    source = tmp_path_factory.mktemp("agent") / "agent.py"
    source.write_text(AGENT)
    python = options.interpreter()
    return Ground(found, Cgroups.find(), seccomp.filters(), python, options.compiled(python, [source]))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A tenant's files, in a folder that nobody but the service can enter."""
    folder = tmp_path / "closed" / "files"
    folder.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    (folder / "there.txt").write_text("there")
    for path in (folder, folder / "there.txt"):
        if os.geteuid() == 0:
            os.chown(path, UID, UID)
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    yield Workspace("ten_a", fd, UID)
    os.close(fd)


@asynccontextmanager
async def box(launcher: BwrapLauncher, spec: BoxSpec) -> AsyncIterator[Launched]:
    launched = await launcher.launch(spec)
    try:
        yield launched
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(launched.pidfd, signal.SIGKILL)
        await launcher.settle(launched)
        os.close(launched.pidfd)
        launched.control.close()


async def ask(launched: Launched, source: str) -> Any:
    """Run source in a box; answers its `answer`."""
    loop = asyncio.get_running_loop()
    said = b""
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        await loop.sock_sendall(launched.control, json.dumps(source).encode() + b"\n")
        while not said.strip() or not said.endswith(b"\n"):
            piece = await loop.sock_recv(launched.control, 1 << 20)
            assert piece, "the box has ended"
            said += piece
    return json.loads(said.splitlines()[-1])


def open_fds() -> int:
    gc.collect()  # what other tests have left open is not counted
    return len(os.listdir("/proc/self/fd"))


async def test_a_box_sees_its_workspace_and_nothing_else_that_is_the_machine_s(
    ground: Ground, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETINUE_MODEL_API_KEY", "a secret of the service")
    async with box(BwrapLauncher(ground), BoxSpec(workspace, process_count=99)) as launched:
        seen = await ask(launched, SCENE)
        status = Path(f"/proc/{launched.pid}/status").read_text()
        files = Path(os.readlink(f"/proc/self/fd/{workspace.fd}"))
    assert {int(number): kind for number, kind in seen["fds"].items()} == {0: "socket", 1: "/dev/null", 2: "pipe"}
    assert seen["environ"] == options.ENVIRONMENT | {"PWD": "/workspace"}
    assert set(seen["folders"]["/"]) <= {
        "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "opt", "proc", "run", "sbin", "tmp", "usr", "var",
        "workspace",
    }  # fmt: skip
    assert set(seen["folders"]["/etc"]) <= {"alternatives", "group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd",
                                            "pki", "ssl"}  # fmt: skip
    assert seen["folders"]["/run"] == ["agent.pyc"]
    assert seen["folders"]["/workspace"] == ["there.txt"]
    assert seen["folders"]["/tmp"] == []
    assert seen["pids"] == ["1"]
    assert seen["user"][:3] == [1, options.BOX_UID, options.BOX_UID]
    assert os.geteuid() != 0 or seen["user"][3] == []  # an ordinary user cannot give its groups up
    assert (seen["host"], seen["where"]) == ("box", "/workspace")
    assert str(ground.bwrap.path) not in seen["first"] + seen["mounts"]
    assert seen["limits"] == {"NPROC": [99, 99], "NOFILE": [4096, 4096], "CORE": [0, 0], "MEMLOCK": [65536, 65536]}
    assert seen["oom"].strip() == "500"
    assert {path for path, result in seen["written"].items() if result == "written"} == {"/workspace", "/tmp"}
    assert f"\nUid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    # What a box leaves behind is its user's, and a set-uid bit means nothing within a box.
    left = (files / "new").stat()
    assert left.st_uid == UID
    assert stat.S_IMODE(left.st_mode) == 0o4755
    line = next(line for line in seen["mounts"].splitlines() if " /workspace " in line)
    assert {"nosuid", "nodev", "rw"} <= set(line.split()[5].split(","))


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's boxes are its own")
async def test_no_box_is_root_s_where_the_machine_has_no_program_that_changes_the_user(
    ground: Ground, workspace: Workspace
) -> None:
    async with box(BwrapLauncher(replace(ground, setpriv=Path("/nowhere"))), BoxSpec(workspace)) as launched:
        status = Path(f"/proc/{launched.pid}/status").read_text()
    assert f"\nUid:\t{UID}\t{UID}\t{UID}\t{UID}\nGid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    assert "\nGroups:\t \n" in status


async def test_a_box_leaves_nothing_open_and_nothing_mounted_in_the_service(
    ground: Ground, workspace: Workspace
) -> None:
    launcher = BwrapLauncher(ground)
    async with box(launcher, BoxSpec(workspace)):
        pass
    before, mounts = open_fds(), Path("/proc/thread-self/mountinfo").read_text()
    async with box(launcher, BoxSpec(workspace)) as launched:
        pid = launched.pid
    assert open_fds() == before
    assert Path("/proc/thread-self/mountinfo").read_text() == mounts
    assert not Path(f"/proc/{pid}").exists()


async def test_what_ends_a_box_ends_all_that_it_has_started(
    ground: Ground, workspace: Workspace, eventually: Eventually
) -> None:
    source = """
import os
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import signal
            signal.pause()
        os._exit(0)
answer = len([name for name in os.listdir("/proc") if name.isdigit()])
"""
    async with box(BwrapLauncher(ground), BoxSpec(workspace)) as launched:
        assert await ask(launched, source) >= 4
        namespace = os.stat(f"/proc/{launched.pid}/ns/pid").st_ino
    assert not [path for path in Path("/proc").glob("[0-9]*/ns/pid") if _inode(path) == namespace]


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


SERVICE = """
import asyncio, os, sys
from pathlib import Path
from retinue_sandbox.bwrap import finding, options, seccomp
from retinue_sandbox.bwrap.cgroup import Cgroups
from retinue_sandbox.bwrap.launcher import BwrapLauncher, Ground
from retinue_sandbox.ports import BoxSpec, Workspace

async def main(folder, agent, uid):
    python = options.interpreter()
    ground = Ground(finding.look()[0], Cgroups({}, unified=False), seccomp.filters(), python,
                    options.compiled(python, [Path(agent)]))
    workspace = Workspace("ten_a", os.open(folder, os.O_PATH | os.O_DIRECTORY), int(uid))
    launched = await BwrapLauncher(ground).launch(BoxSpec(workspace))
    print(launched.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_box_ends_with_its_service_however_that_ends(
    workspace: Workspace, tmp_path: Path, eventually: Eventually
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    folder = os.readlink(f"/proc/self/fd/{workspace.fd}")
    arguments = [sys.executable, "-c", SERVICE, folder, str(tmp_path / "agent.py"), str(UID)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            pid = int(await asyncio.to_thread(service.stdout.readline))
            assert Path(f"/proc/{pid}").exists()
        finally:
            service.kill()
    await eventually(lambda: not Path(f"/proc/{pid}").exists())


async def test_a_box_as_a_whole_has_limits_where_the_machine_lets_us_set_them(
    ground: Ground, workspace: Workspace
) -> None:
    """Memory that is shared counts too, which no limit of a single process sees."""
    groups = Cgroups.find(memory_bytes=48 << 20)
    if not groups.has("memory"):
        assert not groups.checks()[0].ok  # and says so
        return
    source = """
import mmap, os
pid = os.fork()
if pid == 0:
    shared = mmap.mmap(-1, 96 << 20)
    for at in range(0, len(shared), 4096):
        shared[at] = 1
    os._exit(0)
answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    async with box(BwrapLauncher(replace(ground, cgroups=groups)), BoxSpec(workspace)) as launched:
        assert await ask(launched, source) == -signal.SIGKILL
        assert await ask(launched, "answer = 'still there'") == "still there"


async def test_a_box_can_be_lent_the_python_that_runs_the_service(ground: Ground, workspace: Workspace) -> None:
    prefix = Path(sys.base_prefix).resolve()
    program = Path(f"bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    python = options.lent(prefix / program, prefix)
    source = "import sys, hashlib, ssl\nanswer = sys.prefix, sys.executable"
    lent = replace(ground, interpreter=python, agent=_compiled_by(python, workspace))
    async with box(BwrapLauncher(lent), BoxSpec(workspace)) as launched:
        assert await ask(launched, source) == ["/opt/python", f"/opt/python/{program}"]


def _compiled_by(python: Interpreter, workspace: Workspace) -> dict[str, bytes]:
    source = Path(os.readlink(f"/proc/self/fd/{workspace.fd}")).parent / "agent.py"
    source.write_text(AGENT)
    return options.compiled(python, [source])


async def test_a_box_reaches_the_proxy_s_socket_and_no_network(
    ground: Ground, workspace: Workspace, run_dir: Path
) -> None:
    folder = run_dir / "closed" / "way-out"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    folder.chmod(0o755)
    path = folder / forwarder.PROXY_SOCKET
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        listening.settimeout(ANSWER_TIMEOUT_S)
        async with box(BwrapLauncher(ground), BoxSpec(workspace, egress_folder=str(folder))) as launched:
            inside = f"{forwarder.PROXY_FOLDER}/{forwarder.PROXY_SOCKET}"
            source = f"import os, socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({inside!r})\n"
            seen = await ask(launched, f"{source}s.sendall(b'hello')\nanswer = dict(os.environ)")
            assert "PATH" in seen, seen
            heard, _ = listening.accept()
            with heard:
                assert heard.recv(5) == b"hello"
    assert seen["HTTPS_PROXY"] == "http://127.0.0.1:3128"


async def refused(launcher: BwrapLauncher, spec: BoxSpec) -> RetinueError:
    with pytest.raises(RetinueError) as found:
        await launcher.launch(spec)
    assert found.value.reason == Reason.SANDBOX_UNAVAILABLE
    assert "nothing is executed outside of one" in found.value.message
    return found.value


def pretending(ground: Ground, folder: Path, script: str) -> Ground:
    """A bubblewrap that does something else."""
    program = folder / "pretended"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)
    return replace(ground, bwrap=finding.Found(program, "0"), timeout_s=5.0)


async def test_box_or_refuse_what_bubblewrap_fails_of_is_said_and_nothing_is_left(
    ground: Ground, workspace: Workspace, tmp_path: Path
) -> None:
    told = BwrapLauncher(
        pretending(ground, tmp_path, "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    )
    before = open_fds()
    error = await refused(told, BoxSpec(workspace))
    assert error.metadata == {"check": "user_namespaces"}
    assert "setting up uid map" in error.private
    assert "uid map" not in error.message
    assert open_fds() == before


async def test_box_or_refuse_a_box_that_does_not_come_to_be_in_time_is_given_up(
    ground: Ground, workspace: Workspace, tmp_path: Path
) -> None:
    slow = replace(pretending(ground, tmp_path, "exec sleep 60"), timeout_s=0.2)
    error = await refused(BwrapLauncher(slow), BoxSpec(workspace))
    assert error.metadata == {"check": "box"}


async def test_box_or_refuse_a_box_whose_agent_ends_is_none(ground: Ground, workspace: Workspace) -> None:
    broken = replace(ground, agent={"agent.pyc": b"x" * 20})
    error = await refused(BwrapLauncher(broken), BoxSpec(workspace))
    assert error.metadata == {"check": "box"}


async def test_box_or_refuse_no_box_is_root_s(ground: Ground, workspace: Workspace) -> None:
    error = await refused(BwrapLauncher(ground), BoxSpec(replace(workspace, uid=0)))
    assert error.metadata == {"check": "users"}


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's boxes bind what is open as it is")
async def test_no_cross_tenant_a_workspace_that_was_replaced_behind_its_descriptor_is_not_bound(
    ground: Ground, workspace: Workspace
) -> None:
    folder = Path(os.readlink(f"/proc/self/fd/{workspace.fd}"))
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    launcher = BwrapLauncher(ground)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        folder.rmdir()
        folder.symlink_to("/etc")
        error = await refused(launcher, BoxSpec(replace(workspace, fd=descriptor)))
    finally:
        os.close(descriptor)
    assert error.metadata == {"check": "paths"}


async def test_boxes_are_started_by_one_thread_alone(ground: Ground, workspace: Workspace) -> None:
    launcher = BwrapLauncher(ground)
    async with box(launcher, BoxSpec(workspace)):
        pass
    with pytest.raises(RuntimeError, match="one thread"):
        await asyncio.to_thread(lambda: asyncio.run(launcher.launch(BoxSpec(workspace))))
