"""`make bench`, its part about decisions: `Decide` inside policy, from the request's bytes to the answer's.

With the rules that come with the program, and with a file of preferences and rollouts that is far larger than most.
Everything is measured that policy does itself: the snapshot, the tables, what tools are offered, the message with the
snapshot in it. Time of this thread alone (`time.thread_time`), so that what else the machine does counts little; `wall`
is beside it. `--profile` shows where it goes. Ends with 1 where a limit is missed and `--judge` was said.
"""

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import time
from typing import Any

from retinue.policy.v1 import policy_service_pb2 as pb
from retinue_kit.clock import SystemClock
from retinue_policy.domain.breaker import Breaker
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.domain.snapshot import Defaults, Load, Tenant
from retinue_policy.operations.breakers import Breakers, Key
from retinue_policy.operations.decisions import Deployment, Policy
from retinue_policy.operations.presence import Described, Presence
from retinue_policy.operations.replay import Replaying, Stored
from retinue_policy.operations.rulebook import Rulebook
from retinue_policy.operations.tools import Tools
from retinue_policy.rule_files import RuleFiles, bundled
from retinue_policy.runtimes_toml import parse
from retinue_policy.service import PolicyServicer
from retinue_policy.structs import plain

BOTH = ("openclaw", "light")
PREFERENCES = 200
ROLLOUTS = 40
REPLAYED = 500
"""A page of the contract's."""

LIMIT_MS = {"usual rules": 1.0}
"""What is promised, p50."""

WARM = 50


class Memory:
    """Tenants that are remembered, runtimes that are described, breakers that are closed: no call is made."""

    async def tenant(self, tenant_id: str) -> Tenant:
        """Read a tenant."""
        return Tenant(plan="pro", model="openai/large", agent_id="agt_bench", preferred_runtime="openclaw")

    async def describe(self) -> dict[str, Described]:
        """Say what runtimes there are."""
        return dict.fromkeys(BOTH, Described(load=Load(64, 12, 3), tools=True, windows={"openai/large": 200_000}))

    async def read(self, runtimes: object, now: float) -> dict[Key, Breaker]:
        """Read what is known of breakers."""
        return {}

    async def change(self, *_: Any) -> Any:
        """Change a breaker, which no decision does while all are closed."""
        raise AssertionError


class Fixed:
    """Rules for runtimes that do not change."""

    def __init__(self, rules: RuntimeRules) -> None:
        self.rules = rules


def many() -> str:
    """Preferences and rollouts of a large deployment, almost all of them for other tenants."""
    entries = []
    for number in range(PREFERENCES):
        tenants = f'"ten_{number:04}*", "ten_x{number}", "*_{number}", "ten_*_{number}"'
        entries.append(f'[[prefer]]\nruntime = "light"\nkinds = ["chat"]\ntenants = [{tenants}]\n')
    for number in range(ROLLOUTS):
        entries.append(f'[[rollout]]\nname = "r{number}"\nruntime = "light"\npercent = {number}\nplans = ["pro"]\n')
    return "".join(entries)


async def serving(rules: RuntimeRules) -> PolicyServicer:
    """Put policy together around what is remembered."""
    memory: Any = Memory()
    clock = SystemClock()
    breakers, presence = Breakers(memory, clock, BOTH), Presence(memory, clock, BOTH)
    await breakers.look()
    await presence.look()
    tools = Tools(memory, Rulebook(RuleFiles(None)))
    deployment = Deployment(BOTH, frozenset({"pro", "team", "enterprise"}), 900.0, Defaults())
    policy = Policy(memory, breakers, presence, Fixed(rules), deployment, tools.offer)
    return PolicyServicer(policy, breakers, Replaying(parse))


async def decide(policy: PolicyServicer, number: int) -> bytes:
    """Decide once, as the wire would have it."""
    asked = pb.DecideRequest(
        tenant_id=f"ten_{number:026}", run_id=f"run_{number:026}", kind="chat", session_runtime="openclaw", attempt=1
    )
    asked.session_runtime_age.FromSeconds(30)
    context: Any = None
    answer = await policy.Decide(pb.DecideRequest.FromString(asked.SerializeToString()), context)
    return answer.SerializeToString()


async def measure(rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of each, by the thread's clock and by the wall's; all take turns."""
    rules = {"usual rules": bundled("runtimes.toml"), f"{PREFERENCES} preferences, {ROLLOUTS} rollouts": many()}
    things = {name: await serving(parse(text, "000000000000")) for name, text in rules.items()}
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in things}
    for number in range(rounds + WARM):
        for name, policy in things.items():
            began, began_wall = time.thread_time(), time.perf_counter()
            await decide(policy, number)
            took, took_wall = time.thread_time() - began, time.perf_counter() - began_wall
            if number >= WARM:
                found[name][0].append(took * 1000)
                found[name][1].append(took_wall * 1000)
    return found


async def replay_ms() -> tuple[float, int]:
    """Milliseconds that a page of stored decisions takes to be replayed, read from its Structs; bytes of a snapshot."""
    policy = await serving(parse(bundled("runtimes.toml")))
    decision = pb.DecideResponse.FromString(await decide(policy, 1)).decision
    stored = pb.ReplayedDecision(tenant_id="ten_bench", run_id="run_bench").decision
    stored.update({"runtime": decision.runtime, "isolation": decision.isolation})
    stored.update({"rules": [{"rule": each.rule} for each in decision.rules]})
    stored.fields["snapshot"].struct_value.CopyFrom(decision.snapshot)
    page = (Stored("ten_bench", f"run_{number}", plain(stored)) for number in range(REPLAYED))
    began = time.thread_time()
    replayed = await Replaying(parse).replay(bundled("runtimes.toml"), page)
    assert replayed.same_count == REPLAYED, replayed
    return (time.thread_time() - began) * 1000, decision.snapshot.ByteSize()


async def profiled(rounds: int) -> None:
    """Show where the time of decisions goes."""
    policy = await serving(parse(bundled("runtimes.toml")))
    profile = cProfile.Profile()
    profile.enable()
    for number in range(rounds):
        await decide(policy, number)
    profile.disable()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


def main() -> None:
    """Print a table; say whether what is promised holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--profile", action="store_true", help="show where the time of decisions goes")
    parser.add_argument("--judge", action="store_true", help="end with 1 where a limit is missed")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds))
    page_ms, size_bytes = asyncio.run(replay_ms())
    print(f"{'Decide inside policy, ms':<34} {'p50':>8} {'p95':>8} {'wall p50':>9}")
    missed = False
    for name, (own, wall) in found.items():
        p50, p95 = statistics.median(own), sorted(own)[int(len(own) * 0.95)]
        bad = p50 > LIMIT_MS.get(name, p50)
        missed = missed or bad
        promise = f"  of at most {LIMIT_MS[name]:g}{'  MISSED' if bad else ''}" if name in LIMIT_MS else ""
        print(f"{name:<34} {p50:>8.3f} {p95:>8.3f} {statistics.median(wall):>9.3f}{promise}")
    print(f"{REPLAYED} stored decisions replayed in {page_ms:.0f} ms; {size_bytes} bytes of snapshot with each")
    if options.profile:
        asyncio.run(profiled(options.rounds))
    if missed and options.judge:
        sys.exit(1)


if __name__ == "__main__":
    main()
