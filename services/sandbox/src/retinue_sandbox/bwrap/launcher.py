"""Makes boxes with bubblewrap: held back until its limits are set, and given over once its agent speaks."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from retinue_sandbox.bwrap import finding, options
from retinue_sandbox.bwrap.cgroup import Cgroups, Group
from retinue_sandbox.bwrap.options import Interpreter, Parts
from retinue_sandbox.bwrap.stage import Stage
from retinue_sandbox.ports import AGENT_FD, BoxSpec, Check, Launched
from retinue_sandbox.refuse import NoBoxError

LAUNCH_TIMEOUT_S = 10.0
"""Until the agent speaks; on an idle machine it takes 20 ms."""

END_TIMEOUT_S = 5.0
"""For the end of a box that was killed."""

SETPRIV = Path("/usr/bin/setpriv")
"""Becomes another user, and then a program."""

BECOME = """
import os, sys
try:
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
    os.execv(sys.argv[2], ["bwrap", *sys.argv[3:]])
except OSError as error:
    sys.exit(f"setpriv: {error}")
"""
"""The same in Python, for machines without it; that takes some milliseconds more."""

SAID_MAX_BYTES = 4096
"""Looked at of what bubblewrap says on standard error."""

INFO_MAX_BYTES = 4096
"""Read of what it says of the box's process; about 100 bytes are usual."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ground:
    """What boxes are made with on this machine."""

    bwrap: finding.Found
    cgroups: Cgroups
    filters: Sequence[Path]
    interpreter: Interpreter
    agent: Mapping[str, bytes]
    """The agent's modules, by name of the file; see options.compiled."""
    setpriv: Path = SETPRIV
    timeout_s: float = LAUNCH_TIMEOUT_S


class BwrapLauncher:
    """Implements ports.Launcher. Lives in the event loop's thread: a box ends with the thread that has started it."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._stage = Stage()
        self._thread = 0
        self._groups: dict[int, Group] = {}

    async def launch(self, spec: BoxSpec) -> Launched:
        """Make a box. Raises RetinueError(SANDBOX_UNAVAILABLE, metadata.check) if it does not come to be in time."""
        self._prepare()
        if spec.workspace.uid == 0:
            raise NoBoxError(Check("users", False, "it would run as root"))
        with ExitStack() as stack:
            launch = _Launch(self._ground, self._stage, spec, stack)
            launched = await launch.run()
        if launch.group is not None:
            self._groups[launched.pid] = launch.group
        return launched

    async def settle(self, launched: Launched) -> None:
        """Wait for the end of a box that was told to end, and let go of what limited it."""
        await _ended(launched.process)
        if group := self._groups.pop(launched.pid, None):
            await group.remove()

    def _prepare(self) -> None:
        if not self._thread:
            self._thread = threading.get_ident()
            try:
                self._stage.set_up()
            except OSError as error:
                log.warning("boxes are shown things where they are, which their users may not reach", error=str(error))
        if threading.get_ident() != self._thread:
            raise RuntimeError("Boxes are started by one thread, the event loop's.")


class _Launch:
    """One launch. `stack` lets go of what is needed until its end."""

    def __init__(self, ground: Ground, stage: Stage, spec: BoxSpec, stack: ExitStack) -> None:
        self._ground, self._stage, self._spec, self._stack = ground, stage, spec, stack
        self._limiting: asyncio.Task[Group | None] | None = None
        self.group: Group | None = None

    async def run(self) -> Launched:
        """Do it. Raises as `launch` does."""
        with ExitStack() as undo:
            control, agent_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(control.close)
            control.setblocking(False)
            with ExitStack() as given:
                given.callback(agent_end.close)
                said, self._said_end = self._pipe(given)
                info, self._info_end = self._pipe(given)
                release, self._held = reversed(self._pipe(given, theirs=0))
                process = await self._spawn(agent_end, given)
            undo.callback(_kill, process)
            try:
                async with asyncio.timeout(self._ground.timeout_s):
                    pid = await _child_of(process.pid, info)
                    pidfd = os.pidfd_open(pid)
                    undo.callback(os.close, pidfd)
                    # The kernel takes some milliseconds for it, in which bubblewrap sets the box up.
                    self._limiting = asyncio.create_task(asyncio.to_thread(self._limited, pid))
                    self.group = await asyncio.shield(self._limiting)
                    os.write(release, b"x")
                    await _speaks(control)
            except BaseException as error:
                await asyncio.shield(self._undo(process))
                if isinstance(error, TimeoutError):
                    problem = Check("box", False, f"it did not come to be within {self._ground.timeout_s:g} s")
                    raise NoBoxError(problem, _read(said)) from None
                if isinstance(error, EOFError | OSError):
                    private = f"bubblewrap ended with {process.returncode}: {error!r}"
                    raise NoBoxError(finding.explain(_read(said) or str(error)), private) from error
                raise
            undo.pop_all()
        return Launched(control, pidfd, pid, process)

    def _pipe(self, given: ExitStack, *, theirs: int = 1) -> tuple[int, int]:
        """Make a pipe; the end that bubblewrap gets is open as long as `given`."""
        ends = os.pipe()
        given.callback(os.close, ends[theirs])
        self._stack.callback(os.close, ends[1 - theirs])
        os.set_blocking(ends[1 - theirs], False)
        return ends

    async def _spawn(self, agent_end: socket.socket, given: ExitStack) -> asyncio.subprocess.Process:
        spec, ground = self._spec, self._ground
        try:
            parts = self._parts(given)
            bwrap = self._bwrap()
        except OSError as error:
            raise NoBoxError(Check("paths", False, str(error), finding.UNREACHABLE), str(error)) from error
        environ = options.environment(ground.interpreter, egress=bool(spec.egress_folder))
        listed = _holding("\0".join(options.options(parts, environ)).encode(), given)
        passed = (listed, self._info_end, self._held, parts.workspace_fd, *parts.seccomp_fds, *parts.file_fds.values())
        asked = ("--args", str(listed), "--", *options.command(ground.interpreter, spec.process_count))
        program, *arguments = self._as_user(bwrap, asked)
        assert AGENT_FD == 0
        try:
            return await asyncio.create_subprocess_exec(
                "bwrap" if program == bwrap else program,
                *arguments,
                executable=program,
                stdin=agent_end.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=self._said_end,
                pass_fds=passed,
                cwd="/",
                env={},
                start_new_session=True,
            )
        except OSError as error:
            raise NoBoxError(Check("bwrap", False, str(error), finding.INSTALL), str(error)) from error

    def _as_user(self, bwrap: str, asked: Sequence[str]) -> list[str]:
        """Put what changes the user before bubblewrap, where this is root.

        Not left to the starting of the process: then Python forks, which a process with gRPC in it does not survive
        now and then, where it would otherwise do what is safe beside other threads. Nobody's groups are kept: those of
        root would open what is closed to others.
        """
        if os.geteuid() != 0:
            return [bwrap, *asked]
        uid = str(self._spec.workspace.uid)
        if self._ground.setpriv.exists():
            become = (f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--")
            return [str(self._ground.setpriv), *become, bwrap, *asked]
        python = str(self._ground.interpreter.machine_program)
        return [python, "-I", "-S", "-c", BECOME, uid, bwrap, *asked]

    def _parts(self, given: ExitStack) -> Parts:
        spec, ground, stage = self._spec, self._ground, self._stage
        files = {path: _holding(text.encode(), given) for path, text in options.FILES.items()}
        files |= {f"{options.AGENT_FOLDER}/{name}": _holding(data, given) for name, data in ground.agent.items()}
        egress = ""
        if spec.egress_folder:
            way_out = os.open(spec.egress_folder, os.O_PATH | os.O_CLOEXEC)
            self._stack.callback(os.close, way_out)
            egress = os.readlink(f"/proc/self/fd/{self._stack.enter_context(stage.borrow(way_out))}")
        prefix = ground.interpreter.prefix
        return Parts(
            workspace_fd=self._stack.enter_context(stage.borrow(spec.workspace.fd)),
            info_fd=self._info_end,
            block_fd=self._held,
            seccomp_fds=[_opened(path, given) for path in ground.filters],
            file_fds=files,
            egress_path=egress,
            python_path=str(stage.show(prefix)) if prefix is not None else "",
            library=ground.interpreter.library,
        )

    def _bwrap(self) -> str:
        found = self._ground.bwrap
        if not found.wheel:
            return str(found.path)
        # Its library lies beside the package's folder, and is looked for from where the program is.
        installed = found.path.parent.parent.parent
        return str(self._stage.show(installed) / found.path.relative_to(installed))

    def _limited(self, pid: int) -> Group | None:
        """Set what holds for the box as a whole, before anything in it has run. Raises OSError. Blocks."""
        group = self._ground.cgroups.make(self._spec.process_count)
        if group is not None:
            try:
                group.add(pid)
            except OSError:
                group.drop()
                raise
        return group

    async def _undo(self, process: asyncio.subprocess.Process) -> None:
        _kill(process)
        await _ended(process)
        if self._limiting is not None:
            with suppress(OSError):  # of a box that was gone by then
                if group := await self._limiting:
                    await group.remove()


def _holding(data: bytes, given: ExitStack) -> int:
    fd = os.memfd_create("box", os.MFD_CLOEXEC)
    given.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _opened(path: Path, given: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    given.callback(os.close, fd)
    return fd


async def _child_of(parent: int, info: int) -> int:
    """Read which process is the box's first. Raises EOFError if bubblewrap ends before it says so."""
    said = b""
    while b"}" not in said:
        await _readable(info)
        piece = os.read(info, INFO_MAX_BYTES)
        if not piece or len(said) > INFO_MAX_BYTES:
            raise EOFError
        said += piece
    pid = int(json.loads(said)["child-pid"])
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    if f"\nPPid:\t{parent}\n" not in status:  # it has ended, and its number is another's
        raise EOFError
    return pid


async def _speaks(control: socket.socket) -> None:
    """Wait until the agent has said something, which stays to be read. Raises EOFError if it ends instead."""
    await _readable(control.fileno())
    if not control.recv(1, socket.MSG_PEEK):
        raise EOFError


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _done, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _done(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _read(fd: int) -> str:
    try:
        return os.read(fd, SAID_MAX_BYTES).decode("utf-8", "replace")
    except BlockingIOError:
        return ""


def _kill(process: asyncio.subprocess.Process) -> None:
    # Not by the process' own `kill`, which looks whether it has ended and then takes that from whoever waits for it.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        log.error("a box does not end", pid=process.pid)
