"""The self-test: a box like a tenant's, out of which a program tries to get, and a look at it from outside."""

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from retinue_kit.errors import RetinueError

from retinue_sandbox.bwrap.options import Interpreter
from retinue_sandbox.ports import CHECK_TIMEOUT_S, Box, Check, Command, Exit, Launched, Limits, Workspace
from retinue_sandbox.refuse import NoBoxError

PROBE = Path(__file__).parent / "probe.py"

LOOKS = ("files", "links", "processes", "network", "namespaces", "kernel")
"""The probe's, in their order."""

DETAIL_MAX_LENGTH = 500

REMEDY = "let no tenant's work be done on this machine until that is understood"

CAPABILITIES = ("CapEff", "CapPrm", "CapBnd", "CapAmb")
FILTERS = 2
"""A call of the system has to pass so many; see seccomp.py."""

_PRIVATE = 0o700

Open = Callable[[Workspace], Awaitable[tuple[Launched, Box]]]


async def self_test(workspaces: Path, uid: int, interpreter: Interpreter, open_box: Open) -> list[Check]:
    """Try a box out, with a workspace of its own among the tenants'. Never raises; within CHECK_TIMEOUT_S."""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            with _workspace(workspaces, uid) as workspace, _bait() as bait:
                return await _tried(workspace, bait, interpreter, open_box)
    except TimeoutError:
        return [Check("box", False, f"the self-test was not over within {CHECK_TIMEOUT_S:.0f} s", REMEDY)]
    except NoBoxError as error:
        return [error.problem]
    except RetinueError as error:
        return [Check(error.metadata.get("check", "box"), False, error.message, "read the sandbox's log")]
    except OSError as error:
        remedy = "let the service write to the folder that RETINUE_WORKSPACES_DIR names"
        return [Check("workspace", False, f"{workspaces}: {error}", remedy)]


async def _tried(
    workspace: Workspace, bait: Mapping[str, str], interpreter: Interpreter, open_box: Open
) -> list[Check]:
    target = Path(bait["PROBE_FILE"]).with_name("made")
    # As a tenant would, before its box is set up; see options.options.
    os.symlink(f"/oldroot{target}", "link", dir_fd=workspace.fd)
    launched, box = await open_box(workspace)
    try:
        checks = [Check("box", True, "a box comes to be"), outside(_status(launched.pid), workspace.uid)]
        output = await _output(box, Command([interpreter.program, "-I", "-"], PROBE.read_bytes(), env=bait))
    finally:
        await box.close()
    if target.exists():
        checks.append(Check("links", False, "a link in the workspace led out while the box was set up", REMEDY))
    return [*checks, *read(output)]


async def _output(box: Box, command: Command) -> str:
    said = b""
    async for piece in box.run(command, Limits(wall_s=CHECK_TIMEOUT_S)):
        said += str(piece).encode() if isinstance(piece, Exit) else piece.data
    return said.decode("utf-8", "replace")


def read(output: str) -> list[Check]:
    """Understand what the probe prints; a look of which nothing is said has failed."""
    found = {}
    for line in output.splitlines():
        with suppress(ValueError, TypeError):  # a traceback, or what it was killed in the middle of
            name, held, seen = json.loads(line)
            held = held is True
            found[name] = Check(name, held, str(seen)[:DETAIL_MAX_LENGTH], "" if held else REMEDY)
    silent = f"it was not looked at: {output[-DETAIL_MAX_LENGTH:]}"
    return [found.get(name) or Check(name, False, silent, REMEDY) for name in LOOKS]


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text("utf-8")


def outside(status: str, uid: int) -> Check:
    """Judge a box's first process by what the machine says of it: within, it always looks the same."""
    facts = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
    wrong = []
    if set(facts.get("Uid", "0").split()) != {str(uid)} or uid == 0:
        wrong.append(f"it runs as {facts.get('Uid')}")
    if set(facts.get("Groups", "").split()) - {str(uid), "65534"} and os.geteuid() == 0:
        wrong.append(f"it has the groups {facts['Groups']}")
    wrong += [
        f"{name} is {facts.get(name)}"
        for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")
        if int(facts.get(name, "1"), 16)
    ]
    if facts.get("NoNewPrivs") != "1":
        wrong.append("it may gain privileges")
    if facts.get("Seccomp") != "2" or int(facts.get("Seccomp_filters", FILTERS)) < FILTERS:
        wrong.append("its calls are not filtered")
    return Check("privileges", not wrong, ", ".join(wrong) or f"user {uid}, none", REMEDY if wrong else "")


@contextmanager
def _workspace(workspaces: Path, uid: int) -> Iterator[Workspace]:
    workspaces.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    folder = workspaces / f".self-test-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
    folder.mkdir(mode=_PRIVATE)
    try:
        if uid != os.geteuid():
            os.chown(folder, uid, uid)
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield Workspace("self-test", fd, uid)
        finally:
            os.close(fd)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _bait() -> Iterator[dict[str, str]]:
    """Things of the machine that a box must not reach: a file, a TCP port, and a Unix socket without a path."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="retinue-bait-"))
        Path(folder).chmod(0o777)
        file = Path(folder, "file")
        file.touch()
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        name = f"retinue-bait-{secrets.token_hex(8)}"
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(f"\0{name}")
        listening.listen()
        yield {
            "PROBE_FILE": str(file),
            "PROBE_PORT": str(port.getsockname()[1]),
            "PROBE_NAME": name,
            "PROBE_LINK": "/workspace/link",
        }
