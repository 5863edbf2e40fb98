"""Measures boxes against bare processes, in the same run: `python tests/bench/sandbox.py [--rounds 100]`.

Rounds take turns at everything that is measured, so that what the machine does meanwhile falls on all. Read the ratios.
Needs a machine on which boxes hold; ends with 1 where a ratio is above its limit and `--judge` was said.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from retinue_sandbox.bwrap.agent_box import AgentBox
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.files.roots import Roots
from retinue_sandbox.ports import Box, Command, Exit, Limits, Outcome, Profile, Source, Work

TENANT = "ten_bench"
SAY = ["/bin/sh", "-c", "echo hi"]
SNIPPET = "print('hi')"
IDLE_BOXES = 10

LIMITS = {"session exec": 3.0, "one-shot": 9.0, "snippet": 0.4, "open p95 ms": 40.0, "idle MiB": 6.0}
"""What is promised: ratios to a bare command, and for a snippet to a bare interpreter."""


class Bench:
    """Boxes on this machine, for one tenant."""

    def __init__(self, folder: Path) -> None:
        uids = Uids(folder / ".users", 700_000, 1000)
        self.roots = Roots(folder, uids.of)
        self.backend = BwrapBackend(folder, uids)

    async def open(self) -> Box:
        """Open a box."""
        workspace = self.roots.open(TENANT)
        try:
            return await self.backend.open(workspace, Profile())
        finally:
            os.close(workspace.fd)

    async def one_shot(self) -> None:
        """Run a command in a box of its own."""
        box = await self.open()
        await run(box, Command(SAY))
        await box.close()

    async def open_and_close(self) -> None:
        """Open a box for nothing."""
        await (await self.open()).close()


async def run(box: Box, work: Work) -> None:
    """Run something to its end, which is to be a good one."""
    async for item in box.run(work, Limits()):
        if isinstance(item, Exit) and (item.outcome, item.exit_code) != (Outcome.EXITED, 0):
            raise RuntimeError(f"it ended otherwise than it should: {item}")


async def bare(*argv: str) -> None:
    """Run a command right here."""
    subprocess.run(argv, check=True, capture_output=True)


async def time_ms(what: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds that it takes."""
    began = time.perf_counter()
    await what()
    return (time.perf_counter() - began) * 1000


async def measure(rounds: int) -> dict[str, list[float]]:
    """Measure everything, in turns."""
    with tempfile.TemporaryDirectory(prefix="rt-bench-") as folder:
        bench = Bench(Path(folder))
        failed = [check for check in await bench.backend.check() if check.required and not check.ok]
        if failed:
            sys.exit(f"Boxes do not hold on this machine: {failed[0].name}: {failed[0].detail}; {failed[0].remedy}")
        try:
            box = await bench.open()
            things: dict[str, Callable[[], Awaitable[None]]] = {
                "bare command": lambda: bare(*SAY),
                "session exec": lambda: run(box, Command(SAY)),
                "one-shot": bench.one_shot,
                "bare python": lambda: bare("/usr/bin/python3", "-c", SNIPPET),
                "snippet": lambda: run(box, Source(SNIPPET)),
                "open": bench.open_and_close,
            }
            found: dict[str, list[float]] = {name: [] for name in things}
            for number in range(rounds + 1):
                for name, what in things.items():
                    took = await time_ms(what)
                    if number:  # the first round warms up
                        found[name].append(took)
            found["idle MiB"] = [size_mib(await bench.open()) for _ in range(IDLE_BOXES)]
        finally:
            await bench.backend.close()
            bench.roots.close()
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


def main() -> None:
    """Print a table; say whether what is promised holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--judge", action="store_true", help="end with 1 where a promise does not hold")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds))
    p50 = {name: statistics.median(values) for name, values in found.items()}
    judged = {
        "session exec": p50["session exec"] / p50["bare command"],
        "one-shot": p50["one-shot"] / p50["bare command"],
        "snippet": p50["snippet"] / p50["bare python"],
        "open p95 ms": percentile(found["open"], 0.95),
        "idle MiB": p50["idle MiB"],
    }
    print(f"{'':<14} {'p50':>8} {'p95':>8}")
    for name, values in found.items():
        print(f"{name:<14} {p50[name]:>8.2f} {percentile(values, 0.95):>8.2f}")
    print()
    for name, value in judged.items():
        print(f"{name:<14} {value:>8.2f}  of at most {LIMITS[name]:g}{'' if value <= LIMITS[name] else '  MISSED'}")
    if options.judge and any(value > LIMITS[name] for name, value in judged.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
