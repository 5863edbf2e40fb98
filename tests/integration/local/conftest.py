"""A supervisor as a process of its own, over the stores and one small service."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from retinue_local import status

PROGRAM = """
import asyncio, sys
from pathlib import Path
from retinue_kit.config import SettingError
from retinue_local import options, plan, supervisor

def some(ground):
    return [item for item in plan.make(ground) if item.name in sys.argv[3].split(",")]

async def ready(told):
    print("ready", told.address, flush=True)

try:
    built = options.build(state_dir=Path(sys.argv[1]), port=int(sys.argv[2]))
    asyncio.run(supervisor.run(built, lambda _: None, ready, some))
except SettingError as error:
    print(error, flush=True)
    sys.exit(2)
"""
END_TIMEOUT_S = 20.0


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """List the processes below one."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


class Supervisor:
    """A supervisor that a test starts, looks at and ends."""

    def __init__(
        self, folder: Path, state: Path, names: str = "postgres,redis,sandbox", port: int = 0, under=(), **environ: str
    ):
        self.state = state
        self._log = folder / f"supervisor-{state.name}.out"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_"))}
        model = {"RETINUE_MODEL_BASE_URL": "http://127.0.0.1:1/v1", "RETINUE_MODEL": "none"}
        environ = {**clean, **model, "RUNTIMES": "light", **environ}
        command = [*under, sys.executable, "-c", PROGRAM, state, str(port), names]
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)

    def output(self) -> str:
        """Read what it said."""
        return self._log.read_text()

    def is_ready(self) -> bool:
        """Tell whether everything serves; fails if it has ended."""
        assert self.process.poll() is None, self.output()
        return "ready" in self.output()

    def entry(self, name: str) -> status.ProcessStatus:
        """Read the state file's entry of a process."""
        found = status.read(self.state / "status.json")
        assert found is not None
        assert found.supervisor_pid == self.process.pid
        return next(entry for entry in found.processes if entry.name == name)

    def below(self) -> list[int]:
        """List its processes."""
        return descendants(self.process.pid)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to stop and wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(END_TIMEOUT_S)


@pytest.fixture
def supervise(run_dir) -> Iterator:
    """Answer a starter of supervisors; they are stopped after the test."""
    started: list[Supervisor] = []

    def start(state: Path, *arguments, **more) -> Supervisor:
        started.append(Supervisor(run_dir, state, *arguments, **more))
        return started[-1]

    yield start
    for supervisor in started:
        supervisor.end()
        note = supervisor.state / "postgres-home"
        if note.exists():
            shutil.rmtree(note.read_text().strip(), ignore_errors=True)


@pytest.fixture
def alive():
    """Answer which of some processes run."""
    return lambda pids: [pid for pid in pids if is_alive(pid)]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Hold a port."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture
def closed_dir() -> Iterator[Path]:
    """Make a folder that nobody but its owner can enter, as mkdtemp does, outside of which a database must live."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)
