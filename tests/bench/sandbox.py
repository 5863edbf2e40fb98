"""Measures boxes against bare processes, in the same run: `python tests/bench/sandbox.py [--rounds 60]`.

Rounds take turns at everything that is measured, so that what the machine does meanwhile falls on all. Read the ratios.
Everything is measured twice: inside a process, and over gRPC at a service of its own, as the mesh calls it. Before each
there is a pause, as there is between a model's calls, in which boxes are made ahead; what comes without one is shown as
well.
Needs a machine on which boxes hold; with `--judge` it ends with 1 where a ratio is above its limit.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue.sandbox.v1 import sandbox_service_pb2_grpc
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.errors import RetinueError
from retinue_sandbox.bwrap.agent_box import AgentBox
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.files.roots import Roots
from retinue_sandbox.ports import Box, Command, Exit, Limits, Outcome, Profile, Source, Work
from retinue_sandbox.sessions import Bounds, Caller, Sessions

TENANT = "ten_bench"
SAY = ["/bin/sh", "-c", "echo hi"]
SNIPPET = "print('hi')"
IDLE_BOXES = 10
PAUSE_S = 0.1
BURST = 5
"""One-shots without a pause between them, after which the next thing is measured."""

TIMEOUT_S = 30.0
START_TIMEOUT_S = 30.0
CALM = 0.1
"""Ratios are judged at the tenth percentile of both sides, and shown at the median as well. On an idle machine they are
the same; on a busy one a command that goes through three processes waits for a processor three times, and the medians
tell how busy it is."""

JUDGED_TRIES = 3
"""Measurements of which one has to hold, for the same reason."""

LIMITS = {
    "session exec": 3.0,
    "one-shot": 9.0,
    "snippet": 0.4,
    "open p95 ms": 40.0,
    "idle MiB": 6.0,
    "one-shot, gRPC": 9.0,
    "open p95 ms, gRPC": 40.0,
}
"""What is promised: ratios to a bare command, and for a snippet to a bare interpreter. Of what lasts two milliseconds
over gRPC, the call is half; that is shown and not judged."""

Thing = Callable[[], Awaitable[None]]


class Inside:
    """Boxes of this process, for one tenant."""

    def __init__(self, folder: Path) -> None:
        uids = Uids(folder / ".users", 700_000, 1000)
        self.roots = Roots(folder, uids.of)
        self.backend = BwrapBackend(folder, uids)
        self.sessions = Sessions(self.backend, self.roots, Bounds(), SystemClock())
        self._numbers = count()

    async def start(self) -> None:
        """Make sure that boxes hold."""
        failed = [check for check in await self.backend.check() if check.required and not check.ok]
        if failed:
            sys.exit(f"Boxes do not hold on this machine: {failed[0].name}: {failed[0].detail}; {failed[0].remedy}")

    async def run(self, work: Work, *, one_shot: bool = False) -> None:
        """Run something to its end, which is to be a good one."""
        caller = Caller(TENANT, "ses_bench", 1)
        async with aclosing(self.sessions.run(caller, Profile(), work, Limits(), one_shot=one_shot)) as items:
            async for item in items:
                if isinstance(item, Exit) and (item.outcome, item.exit_code) != (Outcome.EXITED, 0):
                    raise RuntimeError(f"it ended otherwise than it should: {item}")

    async def open(self) -> None:
        """Open a session that is closed behind the measurement."""
        caller = Caller(TENANT, f"ses_{next(self._numbers)}", 1)
        await self.sessions.open(caller, Profile())
        self.opened = caller

    async def tidy(self) -> None:
        """Close it."""
        await self.sessions.close_session(self.opened)

    async def make(self) -> Box:
        """Make a box for nobody."""
        workspace = self.roots.open(TENANT)
        try:
            return await self.backend.open(workspace, Profile())
        finally:
            os.close(workspace.fd)

    async def make_and_close(self) -> None:
        """Make a box for nothing."""
        await (await self.make()).close()

    async def close(self) -> None:
        """End all boxes."""
        await self.sessions.close()
        await self.backend.close()
        self.roots.close()


class Outside:
    """A service of its own, over gRPC."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(peer.channel)
        self._numbers = count()

    async def run(self, work: Work, *, one_shot: bool = False) -> None:
        """Run something to its end, which is to be a good one."""
        who = {"tenant_id": TENANT, "session_id": "ses_bench", "fencing_token": 1}
        if isinstance(work, Command):
            answers = self._peer.stream(
                self._stub.Exec, pb.ExecRequest(**who, argv=work.argv, one_shot=one_shot), timeout_s=TIMEOUT_S
            )
        else:
            request = pb.RunPythonRequest(**who, source=work.text)
            answers = self._peer.stream(self._stub.RunPython, request, timeout_s=TIMEOUT_S)
        async with aclosing(answers):
            async for answer in answers:
                if answer.HasField("exit") and (answer.exit.outcome, answer.exit.exit_code) != ("exited", 0):
                    raise RuntimeError(f"it ended otherwise than it should: {answer.exit}")

    async def open(self) -> None:
        """Open a session that is closed behind the measurement."""
        self.opened = {"tenant_id": TENANT, "session_id": f"ses_{next(self._numbers)}", "fencing_token": 1}
        await self._peer.call(self._stub.OpenSession, pb.OpenSessionRequest(**self.opened), timeout_s=TIMEOUT_S)

    async def tidy(self) -> None:
        """Close it."""
        await self._peer.call(self._stub.CloseSession, pb.CloseSessionRequest(**self.opened), timeout_s=TIMEOUT_S)


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Outside]:
    """Serve for the block, in a process of its own."""
    folder.mkdir()
    address = f"unix:{folder}/socket"
    environ = {
        **os.environ,
        "RETINUE_ADDRESS": address,
        "RETINUE_WORKSPACES_DIR": str(folder / "workspaces"),
        "RETINUE_AUDIT_DIR": str(folder / "audit"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "retinue_sandbox"], env=environ, stdout=log, stderr=log)
    peer = Peer("sandbox", address)
    try:
        await _serves(peer)
        yield Outside(peer)
    finally:
        await peer.close()
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_S)


async def _serves(peer: Peer) -> None:
    stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(peer.channel)
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                await peer.call(stub.Describe, pb.DescribeRequest(), timeout_s=TIMEOUT_S)
                return
            except RetinueError:
                await asyncio.sleep(PAUSE_S)


async def bare(*argv: str) -> None:
    """Run a command right here."""
    subprocess.run(argv, check=True, capture_output=True)


async def time_ms(what: Thing) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    await what()
    return (time.perf_counter() - began) * 1000


def things(inside: Inside, outside: Outside) -> dict[str, Thing]:
    """List what is measured, in its order."""
    made: dict[str, Thing] = {
        "bare command": lambda: bare(*SAY),
        "bare python": lambda: bare("/usr/bin/python3", "-c", SNIPPET),
    }
    for where, boxes in (("", inside), (", gRPC", outside)):
        made |= {
            f"session exec{where}": lambda boxes=boxes: boxes.run(Command(SAY)),
            f"snippet{where}": lambda boxes=boxes: boxes.run(Source(SNIPPET)),
            f"one-shot{where}": lambda boxes=boxes: boxes.run(Command(SAY), one_shot=True),
            f"open{where}": boxes.open,
        }
    return made


async def measure(rounds: int) -> dict[str, list[float]]:
    """Measure everything, in turns."""
    with tempfile.TemporaryDirectory(prefix="rt-bench-") as name:
        folder = Path(name)
        inside = Inside(folder / "inside")
        await inside.start()
        try:
            async with service(folder / "service") as outside:
                found = await _rounds(rounds, inside, outside)
            found["made, no spare"] = [await time_ms(inside.make_and_close) for _ in range(rounds)]
            found["idle MiB"] = [size_mib(await inside.make()) for _ in range(IDLE_BOXES)]
        finally:
            await inside.close()
    return found


async def _rounds(rounds: int, inside: Inside, outside: Outside) -> dict[str, list[float]]:
    listed = things(inside, outside)
    found: dict[str, list[float]] = {name: [] for name in (*listed, "one-shot, no pause", "one-shot, gRPC, no pause")}
    for number in range(rounds + 2):
        for name, what in listed.items():
            await asyncio.sleep(PAUSE_S)
            took = await time_ms(what)
            if name.startswith("open"):
                await (outside if "gRPC" in name else inside).tidy()
            if number > 1:  # the first rounds warm up
                found[name].append(took)
        if number > 1 and number % BURST == 0:
            for name in ("one-shot", "one-shot, gRPC"):
                found[f"{name}, no pause"] += [await time_ms(listed[name]) for _ in range(BURST)]
    return found


def size_mib(box: Box) -> float:
    """Memory of an idle box: its agent's and bubblewrap's, shared pages divided among those who share them."""
    if not isinstance(box, AgentBox):
        raise TypeError("not a box of this machine")
    launched = box._launched
    total = 0
    for pid in (launched.pid, launched.process.pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def percentile(values: list[float], share: float) -> float:
    """Answer the value below which this share lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def judged(found: dict[str, list[float]], share: float) -> dict[str, float]:
    """Work out what is promised, and the ratios that are of interest beside it, at this share of all values."""
    at = {name: percentile(values, share) for name, values in found.items()}
    ratios = {}
    for name in found:
        if name.startswith(("session exec", "one-shot", "made")):
            ratios[name] = at[name] / at["bare command"]
        elif name.startswith("snippet"):
            ratios[name] = at[name] / at["bare python"]
        elif name.startswith("open"):
            ratios[name.replace("open", "open p95 ms")] = percentile(found[name], 0.95)
    return ratios | {"idle MiB": percentile(found["idle MiB"], 0.5)}


def tell(found: dict[str, list[float]]) -> bool:
    """Print tables; answers whether all that is promised holds."""
    print(f"{'milliseconds':<26} {'p10':>8} {'p50':>8} {'p95':>8}    (load of the machine: {os.getloadavg()[0]:.1f})")
    for name, values in found.items():
        print(f"{name:<26} " + " ".join(f"{percentile(values, share):>8.2f}" for share in (CALM, 0.5, 0.95)))
    print()
    ratios, medians = judged(found, CALM), judged(found, 0.5)
    for name, value in ratios.items():
        most = LIMITS.get(name)
        promise = "" if most is None else f"  of at most {most:g}{'' if value <= most else '  MISSED'}"
        print(f"{name:<26} {value:>8.2f} {medians[name]:>8.2f}{promise}")
    return all(ratios[name] <= most for name, most in LIMITS.items())


def main() -> None:
    """Print tables; say whether what is promised holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--judge", action="store_true", help="end with 1 where a promise does not hold")
    options = parser.parse_args()
    for _ in range(JUDGED_TRIES if options.judge else 1):
        if tell(asyncio.run(measure(options.rounds))) or not options.judge:
            return
    sys.exit(1)


if __name__ == "__main__":
    main()
