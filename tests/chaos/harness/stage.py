"""The mesh that is made to suffer, with the model and the scripted runtime beside it; and how it is."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import asyncpg
import msgspec
from retinue_cli.mesh import Mesh as Operator
from retinue_cli.state import State
from retinue_local import paths, status
from retinue_local.status import ProcessStatus
from whole_mesh import Mesh, running

from harness.history import Contact, Cursor, Ledger, Run, parse_cursor
from harness.points import ROOT, Folder

WORKERS = 3
"""Each dies seldom enough to be started again without a growing pause."""

HEAL_TIMEOUT_S = 60.0
BRING_TRIES_MAX = 100
"""Tries, a fifth of a second apart, while Postgres is away."""

SETTINGS = (
    "courier.webhook_private_targets=true",
    "courier.delivery_lease_s=3",
    "courier.delivery_keep_s=5",
    "worker.memory_extract_every=4",
)
"""Webhooks lead to this machine, and what takes half a minute, a dozen messages or days is seen within a seed. All else
is default."""

QUERY_TIMEOUT_S = 10.0
"""For reads of the harness's own, made when all is well again."""


class Stage:
    """A running mesh and its surroundings."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh = mesh
        self.points = Folder(folder / "points")
        self._ledger = folder / "ledger.jsonl"
        self._paths = paths.of_state(mesh.state)
        self._names: dict[int, str] = {}

    def _processes(self) -> list[ProcessStatus]:
        found = status.read(self._paths.status)
        return found.processes if found else []

    def refresh(self) -> None:
        """Learn which process has which number; called before numbers are asked for that may be gone by then."""
        self._names.update({process.pid: process.name for process in self._processes()})

    def name_of(self, pid: int) -> str:
        """Name a process that is, or was, there."""
        self.refresh()
        return self._names.get(pid, "a process that just came back")

    def pids(self) -> dict[str, int]:
        """Processes that are there, by name."""
        return {process.name: process.pid for process in self._processes() if process.pid}

    async def until_well(self) -> None:
        """Wait until everything serves. Raises TimeoutError."""
        await self._until(lambda: [p.name for p in self._processes() if p.health != "serving"] or not self.pids())

    async def until_back(self, gone: Sequence[tuple[str, int]]) -> None:
        """Wait until processes that died under these numbers serve under others. Raises TimeoutError."""

        def missing() -> list[str]:
            found = {p.name: p for p in self._processes()}
            return [n for n, pid in gone if n in found and (found[n].pid == pid or found[n].health != "serving")]

        await self._until(missing)

    async def _until(self, lacking: Callable[[], object]) -> None:
        end = time.monotonic() + HEAL_TIMEOUT_S
        while lack := lacking():
            if time.monotonic() > end:
                raise TimeoutError(f"{lack} did not come back in {HEAL_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.02)

    def tenant(self, name: str) -> tuple[str, str]:
        """Make a tenant; answers its id and a token."""
        with Operator(State(self.mesh.state)) as operator:
            made = operator.make_tenant(name).tenant_id
            return made, operator.issue(made, "", ["chat", "admin"], None)

    def socket(self, name: str) -> Path:
        """The unix socket of a process."""
        return self._paths.socket(name)

    @contextlib.asynccontextmanager
    async def database(self):  # type: ignore[no-untyped-def]
        """Connect as the superuser."""
        connection = await asyncpg.connect(self.mesh.dsn(), timeout=QUERY_TIMEOUT_S, command_timeout=QUERY_TIMEOUT_S)
        try:
            yield connection
        finally:
            await connection.close()

    async def bring_about(self, schedule_id: str) -> None:
        """Have a schedule's hour come now."""
        for _ in range(BRING_TRIES_MAX):
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                async with self.database() as database:
                    await database.execute(
                        "update router.schedules set next_time = clock_timestamp() where schedule_id = $1", schedule_id
                    )
                return
            await asyncio.sleep(0.2)

    def ledger(self, runs: set[str]) -> list[Ledger]:
        """What scripted runs did."""
        if not self._ledger.exists():
            return []
        lines = [msgspec.json.decode(line, type=Ledger) for line in self._ledger.read_bytes().splitlines()]
        return [line for line in lines if line.run_id in runs]

    def forget_ledger(self) -> None:
        """Begin an empty ledger; nothing of it may be going on."""
        if self._ledger.exists():
            os.truncate(self._ledger, 0)

    def lines_of(self, tenant_id: str, name: str) -> int:
        """Count the lines of a file that a tool has written, 0 if there is none."""
        try:
            return len((self._paths.workspaces / tenant_id / "files" / name).read_bytes().splitlines())
        except FileNotFoundError:
            return 0

    def read_thread(self, tenant_id: str, contact: Contact) -> None:
        """Read a contact's thread.jsonl, if there is one."""
        file = self._paths.workspaces / tenant_id / "contacts" / contact.name / "thread.jsonl"
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_bytes().splitlines():
                told = msgspec.json.decode(line)
                contact.thread.append((parse_cursor(told["cursor"]), told["text"]))


async def runs_of(connection: asyncpg.Connection, tenant_id: str, contact: str) -> list[Run]:
    """Every run of a contact, tasks as well, as the store has them."""
    rows = await connection.fetch(
        "select run_id, log_id, kind, state, position, attempt, idem_key, output,"
        " extract(epoch from start_time)::float8 as start_time, extract(epoch from end_time)::float8 as end_time,"
        " retry_of"
        " from router.runs where tenant_id = $1 and contact = $2 order by log_id, position",
        tenant_id,
        contact,
    )
    return [Run(*row.values()) for row in rows]


async def recorded_of(connection: asyncpg.Connection, tenant_id: str, contact: str) -> set[Cursor]:
    """Where the store has an event of a contact's log."""
    rows = await connection.fetch(
        "select e.token, e.n from router.events e join router.logs l using (tenant_id, log_id)"
        " where e.tenant_id = $1 and l.contact = $2",
        tenant_id,
        contact,
    )
    return {(row["token"], row["n"]) for row in rows}


@contextlib.contextmanager
def raised(overrides: Sequence[str]) -> Iterator[Stage]:
    """Start everything; `overrides` are settings as `retinue up --set` takes them."""
    folder = Path(tempfile.mkdtemp(prefix="rt-chaos-"))
    state = folder / "state"
    address = f"unix:{folder / 'scripted.sock'}"
    adapter_environ = {
        "RETINUE_ADDRESS": address,
        "RETINUE_UPSTREAM_ADDRESS": paths.of_state(state).address("runtime-adapter"),
        "RETINUE_LEDGER_FILE": str(folder / "ledger.jsonl"),
    }
    fake = [sys.executable, str(ROOT / "tests/fakes/scripted_adapter.py")]
    more = ["--workers", str(WORKERS), "--set", f"worker.runtime_adapter_address={address}"]
    for override in (*SETTINGS, *overrides):
        more += ["--set", override]
    log = (folder / "scripted.log").open("wb")
    with (
        log,
        _model() as model,
        _process(fake, {**os.environ, **adapter_environ}, log),
        running(model, *more, folder=folder, RETINUE_CRASH_DIR=str(folder / "points")) as mesh,
    ):
        yield Stage(mesh, folder)


@contextlib.contextmanager
def _model() -> Iterator[str]:
    command = [sys.executable, "-m", "retinue_local.offline_model", "--port", "0"]
    with _process(command, dict(os.environ), subprocess.PIPE) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().decode().strip()}/v1"


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str], output: object) -> Iterator["subprocess.Popen[bytes]"]:
    environ = {**environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.DEVNULL) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)
