"""Compares this checkout with another one, such as the release before: the same turns through both meshes, in one run.

    python tests/bench/paired.py /path/to/other/checkout

Both meshes are up all the time and take turns at being driven, in the order A B B A, so that what the machine does
meanwhile falls on both. The other checkout must be prepared (`make prepare` there). Read the ratios.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from load import Sample, drive, percentile
from turns import mesh, show, status

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Side(NamedTuple):
    """A mesh under test."""

    name: str
    python: Path
    state: Path
    port: int

    def command(self, *words: str) -> str:
        """Run its own `retinue` command; answers what it prints."""
        done = subprocess.run(
            [str(self.python), "-m", "retinue_cli", *words, "--state-dir", str(self.state)],
            check=True, capture_output=True, text=True, cwd=self.state.parent,
        )  # fmt: skip
        return done.stdout.strip()


def processor_ms(pids: list[int]) -> float:
    """Processor time that processes have used so far, in milliseconds."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])
    return ticks * 1000 / TICKS_PER_S


def family(pid: int) -> list[int]:
    """A process and its children: those of Postgres do its work."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


async def slice_of(side: Side, clients: int, seconds: float, token: str) -> dict[str, float]:
    """Drive one mesh for a while."""
    targets = [mesh(f"http://127.0.0.1:{side.port}", token, f"pair-{clients}-{n}") for n in range(clients)]
    await drive(targets, 0.0, warm=1)
    pids = [pid for process in status(side.state) for pid in family(int(str(process["pid"])))]
    before = processor_ms(pids)
    sample: Sample = await drive(targets, seconds, warm=0)
    used = processor_ms(pids) - before
    turns = len(sample.whole_ms)
    return {
        "turns_per_s": sample.turns_per_s,
        "first_p50_ms": percentile(sample.first_ms, 0.5),
        "whole_p50_ms": percentile(sample.whole_ms, 0.5),
        "processor_ms_per_turn": used / turns,
    }


async def compare(sides: list[Side], args: argparse.Namespace) -> list[dict[str, object]]:
    """All slices; a row for each number of clients and figure."""
    tokens = {side.name: side.command("token", "--tenant", "bench") for side in sides}
    rows: list[dict[str, object]] = []
    for clients in args.clients:
        found: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
        for round_ in range(args.rounds):
            for side in sides if round_ % 2 == 0 else sides[::-1]:
                found[side.name].append(await slice_of(side, clients, args.seconds, tokens[side.name]))
        for figure in found["this"][0]:
            this, other = (statistics.median(one[figure] for one in found[name]) for name in ("this", "other"))
            ratios = [a[figure] / b[figure] for a, b in zip(found["this"], found["other"], strict=True)]
            rows.append(
                {
                    "clients": clients, "figure": figure, "other": round(other, 2), "this": round(this, 2),
                    "this/other": round(statistics.median(ratios), 3), "lowest": round(min(ratios), 3),
                    "highest": round(max(ratios), 3),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    """Start the model and both meshes, measure, stop them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--port", type=int, default=18090)
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retinue-pair-") as folder:
        pythons = {"this": Path(sys.executable), "other": args.other.absolute() / ".venv" / "bin" / "python"}
        sides = [
            Side(name, python, Path(folder) / name, args.port + n) for n, (name, python) in enumerate(pythons.items())
        ]
        model = subprocess.Popen(
            [sys.executable, "-m", "retinue_local.offline_model", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert model.stdout is not None
            port = model.stdout.readline().strip()
            os.environ.setdefault("RUNTIMES", "light")
            os.environ |= {"RETINUE_MODEL_BASE_URL": f"http://127.0.0.1:{port}/v1", "RETINUE_MODEL": "offline"}
            for side in sides:
                side.command("up", "--detach", "--port", str(side.port))
            rows = asyncio.run(compare(sides, args))
        finally:
            for side in sides:
                subprocess.run(
                    [str(side.python), "-m", "retinue_cli", "down", "--state-dir", str(side.state)], cwd=folder
                )
            model.terminate()
            model.wait(10)
    show(rows)
    args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
