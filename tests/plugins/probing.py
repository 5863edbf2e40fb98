"""A sandbox to be attacked: the service as its own process, over gRPC, with things about it that no box may reach.

`besieged` (session, in tests/integration/sandbox/conftest.py) is one whose service is root, so that each tenant has a
user of its own, and one whose service is an ordinary user. Attacks share one box of each.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import retinue_sandbox
from google.protobuf.duration_pb2 import Duration
from retinue.sandbox.v1 import execution_pb2, file_service_pb2_grpc, sandbox_service_pb2_grpc
from retinue.sandbox.v1 import file_service_pb2 as files
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue_kit.client import Peer
from retinue_kit.errors import RetinueError

CALL_TIMEOUT_S = 30.0
START_TIMEOUT_S = 30.0
POLL_S = 0.02
ORDINARY_UID = 65_534
TENANT, SESSION = "ten_a", "ses_a"
VICTIM = "ten_b"
VICTIM_LIFE_S = 600.0
"""Longer than all attacks take."""
SHELL = "$ "

START = """
import concurrent.futures.thread, encodings.ascii, encodings.idna, encodings.latin_1, os, shutil, sys
from retinue_kit import process
from retinue_sandbox.__main__ import assemble
from retinue_sandbox.config import Settings
# Python may lie in root's home: what it would look for later is here by then.
uid = int(sys.argv[1])
os.chdir("/")
if uid != os.geteuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
process.main("sandbox", Settings, assemble)
"""

PRELUDE = """
import ctypes, errno, os, signal, socket, sys, time
_C = ctypes.CDLL(None, use_errno=True)
def tell(act, *arguments):
    try:
        print("done", act(*arguments), flush=True)
    except OSError as error:
        print(errno.errorcode.get(error.errno, "refused"), flush=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    words = [a if isinstance(a, bytes) else ctypes.c_ulong(a % 2**64) for a in arguments]
    answer = _C.syscall(ctypes.c_long(number), *words)
    print(errno.errorcode.get(ctypes.get_errno(), "?") if answer == -1 else f"done {answer}", flush=True)
def read(path):
    with open(path, "rb") as file:
        return file.read(4096)
def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
def reach(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as tried:
        tried.settimeout(2)
        tried.connect(address)
        if kind == socket.SOCK_DGRAM:
            tried.send(b"x")
"""
"""What attacks in Python begin with: `tell` prints the name of a call's error, or what it answered."""


MARK = "--- next ---\n"
ONE_BY_ONE = f"""
for attack in ATTACKS:
    print({MARK.strip()!r}, flush=True)
    pid = os.fork()
    if not pid:
        try:
            exec(attack)
        except BaseException as error:
            print(repr(error))
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
"""


@dataclass(frozen=True)
class Probe:
    """One attack and what must be seen of it.

    `attack` is a shell's if it begins with "$ ", else Python's; `@NAME@` in it stands for what is in `Besieged.bait`.
    `seen` is a pattern of all that it says, and `ends` the outcome. `limits` are the execution's, which has a box of
    its own with `one_shot`.
    """

    name: str
    attack: str
    seen: str
    ends: str = "exited"
    limits: dict[str, Any] = field(default_factory=dict)
    one_shot: bool = False
    alone: bool = False
    """Whether it would end others beside it."""

    def __str__(self) -> str:
        return self.name

    @property
    def plain(self) -> bool:
        """Whether it can be made in one execution with others."""
        return (
            not (self.attack.startswith(SHELL) or self.limits or self.one_shot or self.alone) and self.ends == "exited"
        )


class Besieged:
    """A service, and things of its machine and of another tenant; `canaries` are what no attack may ever say."""

    def __init__(self, folder: Path, peer: Peer, uid: int) -> None:
        self.folder, self.peer, self.uid = folder, peer, uid
        self.boxes: Any = sandbox_service_pb2_grpc.SandboxServiceStub(peer.channel)
        self.files: Any = file_service_pb2_grpc.FileServiceStub(peer.channel)
        self.bait: dict[str, str] = {}
        self.canaries: list[str] = []

    def disk(self, path: str = "", tenant: str = TENANT) -> Path:
        """Where a tenant's file is on this machine."""
        return self.folder / "workspaces" / tenant / "files" / path

    def begin(
        self,
        *argv: str,
        tenant: str = TENANT,
        session: str = SESSION,
        timeout_s: float = CALL_TIMEOUT_S,
        **more: Any,
    ) -> AsyncIterator[Any]:
        """Begin a command."""
        request = pb.ExecRequest(tenant_id=tenant, session_id=session, fencing_token=1, argv=argv, **more)
        return self.peer.stream(self.boxes.Exec, request, timeout_s=timeout_s)

    async def exec(self, *argv: str, **more: Any) -> tuple[str, execution_pb2.Exit]:
        """Run a command to its end."""
        return await said(self.begin(*argv, **more))

    async def python(
        self, source: str, tenant: str = TENANT, session: str = SESSION, **more: Any
    ) -> tuple[str, execution_pb2.Exit]:
        """Run source to its end."""
        request = pb.RunPythonRequest(tenant_id=tenant, session_id=session, fencing_token=1, source=source, **more)
        return await said(self.peer.stream(self.boxes.RunPython, request, timeout_s=CALL_TIMEOUT_S))

    async def file(self, name: str, path: str = "", tenant: str = TENANT, **fields: Any) -> Any:
        """Make a file call."""
        request = getattr(files, f"{name}Request")(tenant_id=tenant, path=path, **fields)
        return await self.peer.call(getattr(self.files, name), request, timeout_s=CALL_TIMEOUT_S)

    def filled(self, text: str) -> str:
        """Write names of bait in the place of `@NAME@`."""
        return re.sub("@([A-Z]+)@", lambda found: self.bait[found[1]], text)

    def untouched(self) -> bool:
        """Whether what must not change is as it was."""
        theirs = self.disk("", VICTIM)
        found = {path.name: path.read_text() for path in theirs.iterdir()}
        return found == {"secret": f"{self.bait['NAME']}\n"} and not Path(self.bait["MADE"]).exists()

    async def try_out(self, probe: Probe) -> None:
        """Make an attack; fails unless it ends as it must and the session's box is still the same afterwards."""
        attack = self.filled(probe.attack)
        asked = execution_pb2.Limits(**probe.limits)
        if probe.one_shot:
            words = ["sh", "-c", attack[2:]] if attack.startswith(SHELL) else ["python3", "-c", PRELUDE + attack]
            text, end = await self.exec(*words, limits=asked, one_shot=True)
        elif attack.startswith(SHELL):
            text, end = await self.exec("sh", "-c", attack[2:], limits=asked)
        else:
            text, end = await self.python(PRELUDE + attack, limits=asked)
        assert end.outcome == probe.ends, (text[-2000:], end)
        assert re.fullmatch(probe.seen, text, re.DOTALL), (text[-2000:], end)
        assert not [canary for canary in self.canaries if canary in text], text[-2000:]
        await self.require_same_box()

    async def try_out_together(self, probes: Sequence[Probe], *, one_shot: bool = False) -> None:
        """Make attacks in Python one after the other, each in a process of its own, in one execution. Fails as
        `try_out` does, and tells of all that have gone wrong. In a box for this execution alone with `one_shot`.
        """
        source = self.filled(f"{PRELUDE}ATTACKS = {[probe.attack for probe in probes]!r}\n{ONE_BY_ONE}")
        if one_shot:
            text, end = await self.exec("python3", "-c", source, one_shot=True)
        else:
            text, end = await self.python(source)
        assert (end.outcome, end.exit_code) == ("exited", 0), (text[-2000:], end)
        answers = text.split(MARK)[1:]
        found = zip(probes, answers, strict=True)
        wrong = {one.name: said for one, said in found if not re.fullmatch(one.seen, said, re.DOTALL)}
        assert wrong == {}
        assert not [canary for canary in self.canaries if canary in text]
        await self.require_same_box()

    async def require_same_box(self) -> None:
        """Fail if the session's box has ended since."""
        opening = pb.OpenSessionRequest(tenant_id=TENANT, session_id=SESSION, fencing_token=1)
        opened = await self.peer.call(self.boxes.OpenSession, opening, timeout_s=CALL_TIMEOUT_S)
        assert opened.reused, "the attack has ended the session's box"


async def said(answers: Any) -> tuple[str, execution_pb2.Exit]:
    """Collect what an execution says, and its end."""
    text = b""
    async with aclosing(answers):
        async for answer in answers:
            if answer.WhichOneof("event") == "exit":
                return text.decode("utf-8", "replace"), answer.exit
            text += answer.output.data
    raise AssertionError("no end was told")


def seconds(value: float) -> Duration:
    """Write a span."""
    span = Duration()
    span.FromMilliseconds(round(value * 1000))
    return span


@asynccontextmanager
async def besieging(uid: int) -> AsyncIterator[Besieged]:
    """Serve for the block as this user, with bait laid out."""
    if uid != os.geteuid():
        require_reachable()
    folder = Path(tempfile.mkdtemp(prefix="rt-probes-", dir="/tmp"))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir(mode=0o700)
        os.chown(home, uid, uid)
        secret = f"canary-{secrets.token_hex(8)}"
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_", "OTEL_"))} | {
            "RETINUE_ADDRESS": f"unix:{home}/sandbox.sock",
            "RETINUE_WORKSPACES_DIR": f"{home}/workspaces",
            "RETINUE_AUDIT_DIR": f"{home}/audit",
            "RETINUE_BOX_IDLE_S": str(VICTIM_LIFE_S),
            "RETINUE_MODEL_API_KEY": f"environ-{secret}",
        }
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-c", START, str(uid)]
            process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        stack.callback(_end, process)
        peer = Peer("sandbox", f"unix:{home}/sandbox.sock")
        stack.push_async_callback(peer.close)
        made = Besieged(home, peer, uid)
        await _healthy(process, peer, folder / "log")
        await _lay_bait(made, folder, secret, stack)
        made.bait["SERVICE"] = str(process.pid)
        await made.exec("true")  # so that there is a box for attacks to end
        yield made


def require_reachable() -> None:
    """Skip where what boxes are made of is closed to other users, as in somebody's home."""
    if not all(above.stat().st_mode & 0o001 for above in Path(retinue_sandbox.__file__).parents):
        pytest.skip("another user of this machine cannot reach these sources")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _healthy(process: subprocess.Popen[bytes], peer: Peer, log: Path) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            with contextlib.suppress(RetinueError):
                await peer.check()
                return
            await asyncio.sleep(POLL_S)


async def _lay_bait(made: Besieged, folder: Path, secret: str, stack: AsyncExitStack) -> None:
    """Put things about that whoever is on this machine finds: attacks that see none of them have seen a wall."""
    file = folder / "file"
    file.write_text(f"file-{secret}")
    file.chmod(0o644)
    tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind(("127.0.0.1", 0))
    path = folder / "sock"
    for name in (f"\0{secret}", str(path)):
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(name)
        listening.listen()
    path.chmod(0o777)
    script = f"echo {secret} > secret; chmod 777 . secret; echo begun; exec sleep 1000"
    limits = execution_pb2.Limits(wall_time=seconds(VICTIM_LIFE_S))
    theirs = made.begin("sh", "-c", script, tenant=VICTIM, limits=limits, timeout_s=VICTIM_LIFE_S)
    begun = await anext(theirs)
    stack.push_async_callback(theirs.aclose)  # type: ignore[attr-defined]
    assert begun.output.data == b"begun\n"
    made.bait |= {
        "FILE": str(file),
        "PORT": str(tcp.getsockname()[1]),
        "UDP": str(udp.getsockname()[1]),
        "NAME": secret,
        "SOCKET": str(path),
        "PID": str(os.getpid()),
        "MADE": str(folder / "made"),
        "HOME": str(made.disk("", VICTIM)),
        "THEIRS": str(made.disk("secret", VICTIM)),
    }
    made.canaries = [f"file-{secret}", f"environ-{secret}", f"{secret}\n"]
