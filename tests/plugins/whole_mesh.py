"""A whole mesh behind Envoy, started once by the command that users start it with; tests speak to its one address."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from retinue_cli.commands.status import KEYS
from retinue_cli.state import State

RETINUE = [sys.executable, "-m", "retinue_cli"]
UP_TIMEOUT_S = 120
CALL_TIMEOUT_S = 30
HEAL_TIMEOUT_S = 60
LINES_MAX = 50
GUARD = "import subprocess, sys; sys.stdin.read() or subprocess.run(sys.argv[1:])"
"""Waits until whoever started it has said a word or is gone, however it went."""


def free_port() -> int:
    """Find a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mesh:
    """A running mesh: where it answers, and hands to shake it."""

    def __init__(self, state: Path, port: int, model: str, environ: dict[str, str]) -> None:
        self.state = state
        self.port = port
        self.model = model
        self.url = f"http://127.0.0.1:{port}"
        self._environ = environ
        self._tokens: dict[tuple[str, ...], str] = {}
        self._sockets: dict[str, str] = {}

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the `retinue` command on this mesh."""
        done = subprocess.run(
            [*RETINUE, *arguments, "--state-dir", str(self.state)],
            capture_output=True, text=True, timeout=UP_TIMEOUT_S, env=self._environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def up(self, *more: str) -> None:
        """Start it in the background."""
        self.command("up", "--detach", "--port", str(self.port), *more)

    def down(self) -> None:
        """Stop it."""
        self.command("down", check=False)

    def token(self, tenant: str = "e2e", *more: str) -> str:
        """Print a token, once for each kind."""
        key = (tenant, *more)
        if key not in self._tokens:
            self._tokens[key] = self.command("token", "--tenant", tenant, *more).stdout.strip()
        return self._tokens[key]

    def processes(self) -> dict[str, dict[str, Any]]:
        """What runs, by name."""
        found = State(self.state).mesh()  # as `retinue status` reads it, without a process for each look
        return {p.name: {key: getattr(p, key) for key in KEYS} for p in (found.processes if found else [])}

    def socket(self, name: str) -> str:
        """Name the unix socket of a process; it stays where it is when the process does not."""
        if name not in self._sockets:
            self._sockets[name] = str(self.processes()[name]["address"]).removeprefix("unix:")
        return self._sockets[name]

    def dsn(self) -> str:
        """The database, as its superuser, for whom there are no walls."""
        return f"postgresql://postgres@/retinue?host={Path(self.socket('postgres')).parent}"

    def logged(self, word: str) -> list[str]:
        """Read what any process has logged that holds this word, for a test to say why it failed."""
        logs = sorted((self.state / "logs").glob("*.log"))
        lines = (line for log in logs for line in log.read_text("utf-8", "replace").splitlines())
        return [line for line in lines if word in line][-LINES_MAX:]

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to one process of the mesh; answers its pid."""
        pid = int(self.processes()[name]["pid"])
        os.kill(pid, number)
        return pid


@contextlib.contextmanager
def guarded(*command: str) -> Iterator[None]:
    """Have a command run if this process is killed within the block: what it has started would go on without it."""
    guard = subprocess.Popen(
        [sys.executable, "-SE", "-c", GUARD, *command],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        guard.communicate(b"done")


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """The offline model as a process of its own, which remembers what it was asked."""
    process = subprocess.Popen(
        [sys.executable, "-m", "retinue_local.offline_model", "--port", "0", "--record"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    with guarded("kill", str(process.pid)):
        yield f"http://127.0.0.1:{port}/v1"
    process.terminate()
    process.wait(10)
    process.stdout.close()


@contextlib.contextmanager
def running(model: str, *more: str, folder: Path | None = None, **settings: str) -> Iterator[Mesh]:
    """Run a mesh of its own, with more arguments and settings; what it logged is shown if it does not come up."""
    folder = folder or Path(tempfile.mkdtemp(prefix="rt-e2e-"))
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_", "OTEL_"))}
    environ["RETINUE_MEMORY_EXTRACT_EVERY"] = "0"  # tests count runs; those of this ask for it
    environ |= {"RETINUE_MODEL_BASE_URL": model, "RETINUE_MODEL": "offline", "RUNTIMES": "light", **settings}
    environ["RETINUE_WEBHOOK_PRIVATE_TARGETS"] = "true"  # tests receive on this machine
    mesh = Mesh(folder / "state", free_port(), model, environ)
    try:
        with guarded(*RETINUE, "down", "--state-dir", str(mesh.state)):
            mesh.up(*more)
            yield mesh
    finally:
        mesh.down()
        note = mesh.state / "postgres-home"
        if note.exists():  # under root the database lives elsewhere, since its user may not enter a closed folder
            shutil.rmtree(note.read_text().strip(), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mesh(model_url: str) -> Iterator[Mesh]:
    """The mesh that tests share."""
    with running(model_url) as shared:
        yield shared


@pytest.fixture
def own_mesh(model_url: str) -> Iterator[Mesh]:
    """A mesh that a test may take down."""
    with running(model_url) as own:
        yield own


@pytest_asyncio.fixture
async def client(mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the tenant `e2e`."""
    async with connect(mesh, mesh.token()) as connected:
        yield connected


def connect(mesh: Mesh, token: str) -> httpx.AsyncClient:
    """Make a client with a token; without certificates, which would take longer to load than most tests."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(
        base_url=mesh.url, headers=headers, timeout=CALL_TIMEOUT_S, verify=False, trust_env=False
    )  # fmt: skip


@pytest.fixture
def client_of(mesh: Mesh) -> Callable[[str], httpx.AsyncClient]:
    """Make clients of other tenants, to be used as context managers; "" is nobody."""
    return lambda tenant: connect(mesh, mesh.token(tenant) if tenant else "")


@pytest.fixture
def contact() -> str:
    """A contact that no other test speaks with."""
    return f"c-{os.urandom(6).hex()}"


def parse_sse(text: str) -> list[dict[str, Any]]:
    """Read whole frames: id, event, data as an object; comments are passed over."""
    frames = []
    for block in text.split("\n\n"):  # not by splitlines: JSON may hold what Python takes for an end of line
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            frames.append({**fields, "data": json.loads(fields["data"])})
    return frames


@pytest.fixture
def stream(client: httpx.AsyncClient) -> Callable[..., Awaitable[list[dict[str, Any]]]]:
    """Send a message and read the streamed answer to its end."""

    async def send(contact: str, text: str, *, key: str = "", **more: Any) -> list[dict[str, Any]]:
        headers = {"idempotency-key": key} if key else {}
        path = f"/v1/contacts/{contact}/messages:stream"
        response = await client.post(path, json={"text": text, **more}, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return parse_sse(response.text)

    return send


@pytest.fixture
def all_serve(mesh: Mesh, eventually: Callable[..., Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Wait until every process of the mesh serves again."""

    async def served() -> bool:
        states = {p["name"]: p["health"] for p in mesh.processes().values()}
        assert set(states.values()) == {"serving"}, states
        return True

    return lambda: eventually(served, HEAL_TIMEOUT_S)
