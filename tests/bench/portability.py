"""`make bench`, its part about bundles: a session of 500 turns carried, the deterministic part of it.

From the events as the router sends them to the signed bytes; then the same bytes verified, and told to a runtime. Time
of one thread of this process alone (`time.thread_time`), so that what else the machine does counts little; `wall` is
beside it. `--profile` shows where it goes. Ends with 1 where a limit is missed and `--judge` was said.
"""

import argparse
import cProfile
import json
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from retinue.router.v1 import run_pb2
from retinue_portability.clients import event_of
from retinue_portability.domain import rendering
from retinue_portability.domain.composing import Sources, compose
from retinue_portability.domain.content import Fact, Identity, Settings
from retinue_portability.domain.context import tell
from retinue_portability.domain.rendering import Target
from retinue_portability.format import sealed
from retinue_portability.format.sealed import Sealed
from retinue_portability.format.signing import Signer

TURNS = 500
FACTS = 100
TOKENS = 24_000
"""The service's default: of the conversation's 75,000 the rest is summed up by rule, which is the most work."""

LIMIT_MS = {"build": 50.0}
"""What is promised, p50."""

SESSION = "ses_bench"
TALK = """
    the plan for our trip to Lisbon is ready and I have booked a room near the river with a view of the old bridge so
    please remember that my sister called Ingrid arrives on March 14 at 9 in the morning with her dog
"""
WORDS = TALK.split()


def words(chance: random.Random, least: int, most: int) -> str:
    """Sentences of about a line each."""
    said = chance.choices(WORDS, k=chance.randint(least, most))
    return ". ".join(" ".join(said[at : at + 12]) for at in range(0, len(said), 12)) + "."


def log() -> list[run_pb2.Event]:
    """A session's events: each turn a question and an answer, each fourth with a tool call."""
    chance, events = random.Random(7), []

    def add(at: int, n: int, type_: str, data: dict[str, object]) -> None:
        line = {"cursor": f"{at}-{n}", "type": type_, "session_id": SESSION, "run_id": f"run_{at:026}"}
        body = json.dumps({**line, "time": "2026-01-01T00:00:00.000Z", "data": data}).encode()
        events.append(run_pb2.Event(**line, json=body))

    for at in range(1, TURNS + 1):
        add(at, 1, "user.message", {"message_id": f"msg_{at:026}", "text": words(chance, 10, 40)})
        if at % 4 == 0:
            arguments = {"path": f"notes/{at}.md", "limit": 100}
            add(at, 2, "tool.started", {"call_id": "call_1", "tool": "read_file", "arguments": arguments})
            add(at, 3, "tool.finished", {"call_id": "call_1", "ok": True, "result": words(chance, 60, 120)})
        add(at, 4, "assistant.message", {"message_id": f"msb_{at:026}", "text": words(chance, 40, 120)})
    return events


def measure(things: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of each, by the thread's clock and by the wall's; all take turns."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in things}
    for number in range(rounds + 3):
        for name, what in things.items():
            began, began_wall = time.thread_time(), time.perf_counter()
            what()
            took, took_wall = time.thread_time() - began, time.perf_counter() - began_wall
            if number >= 3:  # the first rounds warm up
                found[name][0].append(took * 1000)
                found[name][1].append(took_wall * 1000)
    return found


def main() -> None:
    """Print a table; say whether what is promised holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="show where the time of a build goes")
    parser.add_argument("--judge", action="store_true", help="end with 1 where a limit is missed")
    options = parser.parse_args()
    events, signer = log(), Signer(Ed25519PrivateKey.generate())
    facts = [Fact(f"fct_{n:026}", "work", "note", n % 10 + 1, f"Fact {n} of what Ann has told.") for n in range(FACTS)]

    def build() -> Sealed:
        told = tell([event for event in map(event_of, events) if event is not None], SESSION)
        identity, settings = Identity("ten_b", "agt_b", "ann", SESSION), Settings("You are kind.", "fast")
        sources = Sources(identity, "Ann", "web", {"city": "Oslo"}, told, facts, settings, told.last)
        return sealed.seal(compose(sources, TOKENS), signer)

    made = build()
    target = Target("openclaw", tools=True)
    found = measure(
        {
            "build": build,
            "verify": lambda: sealed.open_sealed(made.data, signer),
            "render": lambda: rendering.for_runtime(made.bundle, target),
        },
        options.rounds,
    )
    summary = made.bundle.content.summary
    print(
        f"{TURNS} turns, {len(events)} events; {len(made.data) >> 10} KiB, {made.facts().token_count} tokens,", end=" "
    )
    print(f"{len(made.bundle.content.messages)} messages as they were said, {summary.message_count} summed up")
    print(f"{'ms':<8} {'p50':>8} {'p95':>8} {'wall p50':>9}")
    missed = False
    for name, (own, wall) in found.items():
        p50, p95 = statistics.median(own), sorted(own)[int(len(own) * 0.95)]
        bad = p50 > LIMIT_MS.get(name, p50)
        missed = missed or bad
        note = f"  of at most {LIMIT_MS[name]:g}{'  MISSED' if bad else ''}" if name in LIMIT_MS else ""
        print(f"{name:<8} {p50:>8.2f} {p95:>8.2f} {statistics.median(wall):>9.2f}{note}")
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(build)
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)
    if options.judge and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
