"""Runs the whole mesh in the foreground: starts it by health, keeps it up, ends it without leaving anything behind."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from retinue_kit.config import SettingError

from retinue_local import model_choice, paths, plan, postgres, processes, runtimes, status
from retinue_local.control import Control
from retinue_local.launching import SHARED_MODULES, Launcher
from retinue_local.options import Options
from retinue_local.paths import Paths
from retinue_local.plan import EDGE_STAGE, SERVICE_STAGE, STORE_STAGE, WORK_STAGE, Ground, Plan
from retinue_local.processes import Process, StartError
from retinue_local.runtimes import Runtimes

START_TIMEOUT_S = 120.0
"""A first start on a slow machine makes the database and reads everything from disk."""

STAGE_TIMEOUT_S = {EDGE_STAGE: 2.0, WORK_STAGE: 7.0, SERVICE_STAGE: 3.0, STORE_STAGE: 3.0}
"""How long each kind of process may take to end; fifteen seconds in all."""

TICK_S = 1.0
"""How often logs are measured and the parent is looked for."""

OPEN_FILES_MAX = 65_536
"""Each client socket costs two descriptors at the edge; the usual soft limit of 1,024 would be 500 clients."""

HURRY_S = 1.0
"""Told again after this, somebody does not want to wait. Before it, it is the same wish twice: programs that run others
signal both the process and its group."""

_PARENTS = ("uv", "make", "gmake")
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
T = TypeVar("T")
log = logging.getLogger("retinue_local")


class Progress(NamedTuple):
    """A process has changed: `state` is starting, serving, not_serving or restarting."""

    process: str
    state: str
    seconds: float
    """Of its own start, where it serves; else 0."""


class Ready(NamedTuple):
    """The mesh serves."""

    address: str
    """Where clients come in."""
    directory_address: str
    """The directory's gRPC address, for whoever makes tokens."""
    state_dir: Path
    model: str
    """Which model answers, in plain words."""
    seconds: float
    """Since what it needs was there."""
    runtimes: Runtimes


OnNote = Callable[[str], None]
OnProgress = Callable[[Progress], None]
OnReady = Callable[[Ready], Awaitable[None]]


async def run(
    options: Options,
    on_progress: OnProgress,
    on_ready: OnReady,
    make_plans: Callable[[Ground], list[Plan]] = plan.make,
    on_note: OnNote = lambda _: None,
) -> None:
    """Run until SIGTERM, SIGINT, SIGHUP, or the end of the `uv run` or `make` that started this.

    Raises SettingError before anything is started, or where a service refuses its settings, and StartError if the mesh
    does not come up in time; nothing is left running in any case. `on_note` hears what is fetched before the start.
    `on_ready` is awaited once, while the mesh runs.
    """
    folders = paths.of_state(options.state_dir)
    paths.make(folders)
    with _locked(folders), _logged(folders):
        try:
            _free_port(options.host, options.port)
            known = await _unless_stopped(runtimes.prepare(options, folders, on_note))
            if known is None:
                return
            began = time.monotonic()
            port = _free_port(options.host, options.port)
            model = await model_choice.complete(options.model)
            home = postgres.make_home(folders, options.postgres_user)
            model_port = _free_port("127.0.0.1", 0) if model.is_offline else 0
            ground = Ground(options, folders, home, model, port, model_port, known)
            mesh = Mesh(ground, make_plans(ground), on_progress)
            _raise_open_files()
            await mesh.run(began, on_ready)
        finally:
            folders.status.unlink(missing_ok=True)
            paths.remove_run(folders)


async def _unless_stopped(work: Coroutine[Any, Any, T]) -> T | None:
    """Do what comes before the start; None if told to stop meanwhile."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
        task.cancel()


class Mesh:
    """All processes of one deployment."""

    def __init__(self, ground: Ground, plans: list[Plan], on_progress: OnProgress) -> None:
        self._ground = ground
        self._on_progress = on_progress
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop_time = 0.0
        folders = ground.paths
        environ = plan.basic_environ(ground.options.environ)
        output = plan.log_file(folders, "forkserver")
        programs, modules = Launcher([], environ, output), Launcher(SHARED_MODULES, environ, output)
        self._launchers = (programs, modules)
        self._processes: dict[str, Process] = {}
        self._told: dict[str, str] = {}
        for item in plans:
            needs = [self._processes[name] for name in item.needs]
            file = plan.log_file(folders, item.name)
            self._processes[item.name] = Process(item, file, modules if item.module else programs, needs, self._changed)

    async def run(self, began: float, on_ready: OnReady) -> None:
        """Start, tell, wait for the end, stop."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._told_to_stop)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(process.run()) for process in self._processes.values()]
            tasks.append(group.create_task(self._tick()))
            control = Control(self._ground.paths.control, self._processes)
            try:
                await control.start()
                if await self._until_ready():
                    await self._until_stopped(on_ready, began)
            except Exception as error:
                failure = error
            finally:
                self._stop.set()  # from here on, whatever ends is meant to
                await control.stop()
                await self._shut_down()
                for task in tasks:
                    task.cancel()
        if failure:  # raised here, so that it arrives as itself and not as a group
            raise failure

    async def _until_ready(self) -> bool:
        """Wait for all; False if told to stop before. Raises SettingError or StartError."""
        ready = asyncio.create_task(self._all_ready())
        failures = [process.failure for process in self._processes.values()]
        stopped = asyncio.create_task(self._stop.wait())
        first: list[asyncio.Future[Any]] = [ready, stopped, *failures]
        try:
            await asyncio.wait(first, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            for failure in failures:
                if failure.done():
                    raise failure.result()
            if not ready.done() and not stopped.done():
                late = next(process for process in self._processes.values() if not process.ready.is_set())
                raise StartError(f"{late.plan.name} did not come up in {START_TIMEOUT_S:.0f} s; see {late.log_file}.")
            return not stopped.done()
        finally:
            stopped.cancel()
            ready.cancel()

    async def _all_ready(self) -> None:
        for process in self._processes.values():
            await process.ready.wait()

    async def _until_stopped(self, on_ready: OnReady, began: float) -> None:
        ground = self._ground
        ready = Ready(
            address=plan.edge_address(ground),
            directory_address=ground.paths.address("directory"),
            state_dir=ground.paths.state,
            model=ground.model.note,
            seconds=time.monotonic() - began,
            runtimes=ground.runtimes,
        )
        telling = asyncio.ensure_future(on_ready(ready))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([telling, stopped], return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                await telling
            await stopped
        finally:
            telling.cancel()
            stopped.cancel()

    async def _shut_down(self) -> None:
        hurry = asyncio.create_task(self._hurry.wait())
        stages = asyncio.create_task(self._stop_stages())
        await asyncio.wait([hurry, stages], return_when=asyncio.FIRST_COMPLETED)
        if not stages.done():
            await asyncio.gather(*(process.kill() for process in self._processes.values()))
        hurry.cancel()
        await stages
        for launcher in self._launchers:
            await launcher.close()
        for process in self._processes.values():
            await process.plan.close()

    async def _stop_stages(self) -> None:
        for stage, timeout_s in STAGE_TIMEOUT_S.items():
            members = [process for process in self._processes.values() if process.plan.stage == stage]
            await asyncio.gather(*(process.stop(timeout_s) for process in members))

    def _told_to_stop(self) -> None:
        now = time.monotonic()
        if not self._stop.is_set():
            self._stop_time = now
            self._stop.set()
        elif now - self._stop_time > HURRY_S:
            self._hurry.set()

    def _changed(self, process: Process) -> None:
        known = self._processes.values()
        entries = [status.ProcessStatus(p.plan.name, p.pid, p.plan.address, p.health, p.restarts) for p in known]
        address = plan.edge_address(self._ground)
        model = self._ground.model
        url = "" if model.base_url == "file" else model.base_url
        missing = self._ground.runtimes.missing
        found = status.MeshStatus(os.getpid(), address, entries, model.note, url, missing)
        status.write(self._ground.paths.status, found)
        if self._told.get(process.plan.name) != process.health and not self._stop.is_set():
            self._told[process.plan.name] = process.health
            seconds = process.seconds if process.health == "serving" else 0.0
            self._on_progress(Progress(process.plan.name, process.health, seconds))

    async def _tick(self) -> None:
        parents = _launchers() if self._ground.options.follow_parent else []
        while True:
            await asyncio.sleep(TICK_S)
            for process in self._processes.values():
                processes.rotate(process.log_file)
            if parents != [parent for parent in parents if _born(parent[0]) == parent[1]] and not self._stop.is_set():
                log.info("the process that started this is gone")
                self._stop.set()


def _born(pid: int) -> str:
    """Tell when a process began, which with its number names it; empty if it is gone."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, str, int]:
    """Read a process' name, its start, and its parent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return "", "", 0
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return ("", "", 0) if fields[0] == "Z" else (name, fields[19], int(fields[1]))


def _launchers() -> list[tuple[int, str]]:
    """List the `uv` and `make` processes right above this one."""
    found: list[tuple[int, str]] = []
    pid = os.getppid()
    while (known := _stat(pid))[0] in _PARENTS:
        found.append((pid, known[1]))
        pid = known[2]
    return found


@contextmanager
def _locked(folders: Paths) -> Iterator[None]:
    with folders.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise SettingError(f"{folders.state} is in use: Retinue runs there already, as process {holder}.") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


@contextmanager
def _logged(folders: Paths) -> Iterator[None]:
    path = plan.log_file(folders, "supervisor")
    processes.rotate(path)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _free_port(host: str, port: int) -> int:
    """Check that a port can be had by taking it for a moment; 0 asks for any. Raises SettingError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            how = "; choose another one with --port or PORT" if error.errno == errno.EADDRINUSE else ""
            raise SettingError(f"Port {port} of {host} cannot be used: {os.strerror(error.errno or 0)}{how}.") from None
        return int(probe.getsockname()[1])


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
