"""Instances as processes of this machine: a folder each, a keeper each, a port of loopback each."""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends import cgroup, keeper
from retinue_runtime_adapter.openclaw.gateway_config import CONFIG_NAME
from retinue_runtime_adapter.openclaw.ports import Backend, InstanceSpec, Process

HOST = "127.0.0.1"

FOLDER_PREFIX = "ins_"
"""How the folders of instances begin; nothing else in the state folder is ever touched."""

CACHE_NAME = "compile-cache"
"""Beside OpenClaw: what Node has compiled of it, which makes a start twice as fast."""

TRASH_NAME = ".Trash"
"""Where OpenClaw puts what it deletes, in its home."""

LOCK_NAME = "adapter.lock"
"""In each folder, locked by the adapter whose instance it is: no other one takes it for left behind."""

FILES_MAX = 4096
"""Open files of a process: each agent has a few databases."""

SEMI_SPACE_MIB = 2
"""New space of Node's heap. A larger one costs memory for each of many worker threads."""

BEGIN_TIMEOUT_S = 10.0
"""Time for the keeper to say that it has begun the gateway; it takes a twentieth of a second."""

KILL_TIMEOUT_S = 10.0
"""Time for killed processes to be gone: one that reads from a slow disk is not at once."""

LEFT_OVER_MAX = 1_000
"""Folders of former adapters that are removed at a start; what is more is for the next start."""

LAST_LINES_MAX = 20
LINE_SIZE_MAX_BYTES = 4096
"""What is kept, in memory, of what an instance says on standard error: enough to tell why it did not begin."""

LISTEN_TIMEOUT_S = 1.0
"""For the last words of one that has ended to be read; whoever holds the pipe open is killed by then."""

REASON_SIZE_MAX = 200
"""Characters of it that are told."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class _Begun:
    """What this backend holds of an instance."""

    keeper: asyncio.subprocess.Process
    folder: Path
    port: socket.socket
    lock: int
    said: deque[str]
    listener: "asyncio.Task[None]"
    group: cgroup.Group | None


class ProcessBackend(Backend):
    """Runs instances with Node on this machine. Where a control group is ours to divide, each has a memory limit."""

    name = "process"

    def __init__(self, settings: Settings) -> None:
        folder = Path(settings.openclaw_dir).absolute()
        self._node = folder / "node"
        self._openclaw = folder / "node_modules/openclaw/openclaw.mjs"
        self._cache_dir = folder / CACHE_NAME
        self._state_dir = Path(settings.openclaw_state_dir).absolute()
        self._begun: dict[str, _Begun] = {}
        self._parent_group = cgroup.find()

    async def prepare(self) -> None:
        for needed in (self._node, self._openclaw):
            if not needed.is_file():
                raise _unavailable(f"OpenClaw is not installed: there is no {needed}.")
        try:
            self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._state_dir.chmod(0o700)
        except OSError as error:
            raise _unavailable(f"The folder {error.filename} cannot be made: {error.strerror}.") from None
        await asyncio.to_thread(_remove_left_over, self._state_dir)

    async def begin(self, spec: InstanceSpec) -> Process:
        folder, port = Path(spec.folder), _reserve()
        address = f"{HOST}:{port.getsockname()[1]}"
        lock = -1
        group: cgroup.Group | None = None
        try:
            lock = _make_folder(folder)
            _write(folder / CONFIG_NAME, spec.config(HOST, port.getsockname()[1]))
            group = cgroup.make(self._parent_group, spec.instance_id, spec.memory_mib)
            begun = await self._spawn(spec, folder, port, lock, group)
        except OSError as error:
            _let_go(folder, port, lock, group)
            raise _unavailable(f"A gateway cannot be begun here: {error.strerror}.") from None
        except BaseException:
            _let_go(folder, port, lock, group)
            raise
        process = Process(spec.instance_id, address, {"limited": group is not None, "pid": 0})
        self._begun[spec.instance_id] = begun
        try:
            async with asyncio.timeout(BEGIN_TIMEOUT_S):
                assert begun.keeper.stdout is not None
                process.detail["pid"] = int(await begun.keeper.stdout.readline())
        except (TimeoutError, ValueError):
            await self.end(process, 0)
            raise _unavailable(f"A gateway did not begin: {_ending(begun)} {_words(begun)}") from None
        except BaseException:
            await self.end(process, 0)
            raise
        return process

    async def _spawn(
        self, spec: InstanceSpec, folder: Path, port: socket.socket, lock: int, group: cgroup.Group | None
    ) -> _Begun:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            keeper.__file__,
            str(FILES_MAX),
            str(group.path) if group else "",
            str(self._node),
            f"--max-old-space-size={spec.heap_mib}",
            f"--max-semi-space-size={SEMI_SPACE_MIB}",
            str(self._openclaw),
            "gateway",
            "run",
            "--port",
            str(port.getsockname()[1]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_SIZE_MAX_BYTES,
            cwd=folder,
            env=self._environment(folder),
            start_new_session=True,
        )
        said: deque[str] = deque(maxlen=LAST_LINES_MAX)
        assert process.stderr is not None
        listener = asyncio.create_task(_listen(process.stderr, said), name=f"listen-{spec.instance_id}")
        return _Begun(process, folder, port, lock, said, listener, group)

    def _environment(self, folder: Path) -> dict[str, str]:
        """All that an instance sees of ours: nothing of the mesh, and no key."""
        return {
            "PATH": f"{self._node.parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "MALLOC_ARENA_MAX": "2",
            "NODE_COMPILE_CACHE": str(self._cache_dir),
            # Else the gateway begins itself once more, as a child of a process that then only waits.
            "OPENCLAW_PACKAGED_COMPILE_CACHE_RESPAWNED": "1",
            "OPENCLAW_NO_RESPAWN": "1",
            "OPENCLAW_STATE_DIR": str(folder),
            "OPENCLAW_CONFIG_PATH": str(folder / CONFIG_NAME),
            "OPENCLAW_NO_AUTO_UPDATE": "1",
            "OPENCLAW_DISABLE_BONJOUR": "1",
            "OPENCLAW_EXEC_SHELL_SNAPSHOT": "0",
            "OPENCLAW_SKIP_CHANNELS": "1",
            "OPENCLAW_SKIP_CANVAS_HOST": "1",
            "OPENCLAW_SKIP_CRON": "1",
        }

    async def is_alive(self, process: Process) -> bool:
        begun = self._begun.get(process.instance_id)
        if begun is None:
            return False
        if begun.keeper.returncode is None:
            return True
        await asyncio.wait([begun.listener], timeout=LISTEN_TIMEOUT_S)
        process.detail.update(end=_ending(begun), said=_words(begun))
        return False

    async def memory_bytes(self, process: Process) -> int:
        begun = self._begun.get(process.instance_id)
        if begun is None or begun.keeper.returncode is not None:
            return 0
        await asyncio.to_thread(_empty_trash, begun.folder)
        return await asyncio.to_thread(_memory, begun.keeper.pid)

    async def end(self, process: Process, grace_s: float) -> None:
        begun = self._begun.pop(process.instance_id, None)
        if begun is None:
            return
        ending = asyncio.create_task(_end(begun, grace_s))
        await asyncio.shield(ending)  # once begun it is carried through, whoever stops waiting for it

    async def close(self) -> None:
        begun = list(self._begun.values())
        self._begun.clear()
        await asyncio.gather(*(_end(each, 0) for each in begun))


def _unavailable(what: str) -> RetinueError:
    return RetinueError(Reason.RUNTIME_UNAVAILABLE, what)


def _reserve() -> socket.socket:
    """Take a free port and keep it: bound and not listening, it goes to nobody else, and the gateway may listen."""
    port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind((HOST, 0))
    return port


def _make_folder(folder: Path) -> int:
    """Make an instance's folder and lock it; answers the lock."""
    folder.mkdir(mode=0o700)
    (folder / "tmp").mkdir(mode=0o700)
    lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _let_go(folder: Path, port: socket.socket, lock: int, group: cgroup.Group | None) -> None:
    port.close()
    if lock >= 0:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
    if group is not None:
        cgroup.remove(group)


async def _listen(stream: asyncio.StreamReader, said: deque[str]) -> None:
    """Keep the last lines, so that the pipe never fills up."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # a line beyond the limit; the stream has dropped it
            continue
        if not line:
            return
        said.append(line.decode(errors="replace").strip())


def _ending(begun: _Begun) -> str:
    """How an instance ended."""
    status = begun.keeper.returncode
    return "it does not answer." if status is None else f"it ended with status {status}."


def _words(begun: _Begun) -> str:
    """What it said last, in one line."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in " ".join(begun.said)).split())
    return words[-REASON_SIZE_MAX:]


def _empty_trash(folder: Path) -> None:
    """Remove what OpenClaw only puts aside when an agent is deleted: it is a tenant's."""
    for left in (folder / TRASH_NAME).glob("*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _memory(pid: int) -> int:
    total = 0
    with suppress(psutil.Error):
        main = psutil.Process(pid)
        for each in [main, *main.children(recursive=True)]:
            with suppress(psutil.Error):
                total += each.memory_info().rss
    return total


async def _end(begun: _Begun, grace_s: float) -> None:
    keeper_process = begun.keeper
    if grace_s > 0 and keeper_process.returncode is None:
        with suppress(ProcessLookupError):
            keeper_process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await keeper_process.wait()
    assert keeper_process.stdin is not None
    keeper_process.stdin.close()  # the keeper kills all that is left
    try:
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await keeper_process.wait()
    except TimeoutError:
        log.error("a keeper does not end", folder=str(begun.folder))
        with suppress(ProcessLookupError):
            keeper_process.kill()
    await asyncio.to_thread(_kill_users, begun.folder)
    begun.listener.cancel()
    await asyncio.to_thread(_let_go, begun.folder, begun.port, begun.lock, begun.group)


def _users(folder: Path) -> list[psutil.Process]:
    """Processes that were begun for a folder: each has its name in its environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("OPENCLAW_STATE_DIR") == str(folder):
                found.append(process)
    return found


def _kill_users(folder: Path) -> None:
    users = _users(folder)
    for process in users:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(users, KILL_TIMEOUT_S)


def _remove_left_over(state_dir: Path) -> None:
    """Remove the instances of adapters that are gone; those of one that lives stay."""
    for folder in sorted(state_dir.glob(f"{FOLDER_PREFIX}*"))[:LEFT_OVER_MAX]:
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            log.warning("a folder left behind cannot be removed", folder=str(folder), detail=error.strerror)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill_users(folder)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            log.info("another adapter has this folder", folder=str(folder))
        finally:
            os.close(lock)
