"""`make chaos`: sweep seeds, tell what happens, judge.

Exits with 1 if a promise was broken, or if there is a point that was never reached or never killed at.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence

from harness.points import declared
from harness.report import Report, line
from harness.stage import raised
from harness.sweep import sweep

SEEDS = 80
"""More than 500 kills, and each point about three times."""


def say(text: str) -> None:
    """Tell whoever waits."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run(seeds: Sequence[int], overrides: Sequence[str], *, partial: bool) -> int:
    """Sweep; answers the exit code."""
    report = Report(declared())
    with raised(overrides) as stage:
        say(f"sweeping {len(seeds)} seeds over {len(declared())} points at {stage.mesh.url}")
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C: what was found so far is told
            async for outcome in sweep(stage, seeds):
                report.add(outcome)
                say(line(outcome))
        hits = stage.points.hits()
    say(f"\n{report.points(hits)}\n\n{report.recoveries()}\n\n{report.summary()}")
    unproven = [] if partial else report.unproven(hits)
    if unproven:
        say(f"never reached, or never killed at: {', '.join(unproven)}")
    return 1 if report.failed or unproven else 0


def main() -> None:
    """Read the command line and sweep."""
    parser = argparse.ArgumentParser(prog="make chaos", description="Kill everything, everywhere; lose nothing.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many seeds; {SEEDS} if not given")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--set", action="append", default=[], metavar="SERVICE.FIELD=VALUE", help="as for retinue up")
    parser.add_argument("--partial", action="store_true", help="do not ask for every point to have been killed at")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds) if asked.seed is None else [asked.seed]
    sys.exit(asyncio.run(run(seeds, asked.set, partial=asked.partial or asked.seed is not None)))


if __name__ == "__main__":
    main()
