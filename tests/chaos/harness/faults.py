"""What befalls the mesh in a seed, one after another: each is done, its end is waited for, its cost measured."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import redis.asyncio

from harness.board import Board
from harness.points import Fired
from harness.stage import Stage

FIRE_TIMEOUT_S = 6.0
"""How long a point may take to be reached: several rounds of each person. Then it counts as missed in this seed."""

RECOVERY_MAX_S = 30.0
STOP_S = 1.5
"""How long a stopped service sleeps."""

STOP_WORKER_S = 4.5
"""How long a stopped worker sleeps: past its lease, and while another executes its run."""

WORKER_POINTS, OTHER_POINTS, WHOLES = 3, 4, 2
"""Faults of a seed: points of workers in one lane; other points, and whole processes and stores, in another beside it.
A worker's death takes the longest to be noticed."""

STOPS_PERCENT = 12
"""How many of the points stop the process that reaches them, instead of killing it."""

STEP_S = 0.01
WHOLE = (
    "worker", "postgres crash", "gateway", "redis", "two", "router", "envoy", "flush", "runtime-adapter",
    "postgres restart", "policy", "two", "directory", "courier", "sandbox", "portability",
)  # fmt: skip
"""What else befalls the mesh, in turn: a process, a store, or two processes at the same moment."""


@dataclass
class Blow:
    """What happened to a process at one moment."""

    kind: str
    """What it counts as in the report."""
    words: str
    kills: int = 0
    time: float = 0.0
    recovery_s: float | None = None
    """From then to the next event that is told to whoever was in the middle of something; None if nobody was."""
    victim: str = ""
    gone: int = 0
    """The process that will not come back under its number."""
    point: str = ""


class Deck:
    """Deals points so that each comes as often as the others, whatever seeds are played, and the same for a seed."""

    def __init__(self, points: Sequence[str]) -> None:
        self._points = sorted(points)

    def deal(self, seed: int, count: int) -> list[str]:
        """The points of a seed."""
        dealt = []
        for place in range(seed * count, seed * count + count):
            turn, index = divmod(place, len(self._points))
            dealt.append(random.Random(turn).sample(self._points, len(self._points))[index])
        return dealt


@dataclass(frozen=True)
class Fault:
    """What is to happen: a point armed, or processes struck by name."""

    point: str = ""
    action: str = "kill"
    victims: tuple[str, ...] = ()
    after_s: float = 0.0
    """How long talk goes on before."""


def plan(seed: int, points: Sequence[str]) -> list[list[Fault]]:
    """Choose the faults of a seed: lanes beside one another, in each one after another."""
    rng = random.Random(seed)
    workers = [point for point in points if point.startswith("worker.")]
    others = [point for point in points if not point.startswith("worker.")]

    def armed(point: str) -> Fault:
        return Fault(point, "stop" if rng.randrange(100) < STOPS_PERCENT else "kill", after_s=rng.uniform(0.1, 0.6))

    lane = [armed(point) for point in Deck(others).deal(seed, OTHER_POINTS)]
    for number in range(WHOLES):
        victim = WHOLE[(seed * WHOLES + number) % len(WHOLE)]
        victims = (victim,)
        if victim == "two":
            one, other = rng.sample([name for name in WHOLE if name not in ("two", "postgres restart")], 2)
            victims = (one, other)
        lane.insert(rng.randrange(len(lane) + 1), Fault(victims=victims, after_s=rng.uniform(0.1, 0.6)))
    return [[armed(point) for point in Deck(workers).deal(seed, WORKER_POINTS)], lane]


class Hand:
    """Does it."""

    def __init__(self, stage: Stage, board: Board, rng: random.Random) -> None:
        self._stage = stage
        self._board = board
        self._rng = rng
        self.blows: list[Blow] = []

    async def strike(self, lanes: list[list[Fault]]) -> None:
        """Do all of it; who was struck alone is told by when the others were."""
        await asyncio.gather(*(self._lane(faults) for faults in lanes))
        self.blows.sort(key=lambda blow: blow.time)
        for blow in self.blows:
            if any(_overlap(blow, other) for other in self.blows if other is not blow):
                blow.kind = "several at once"

    async def _lane(self, faults: list[Fault]) -> None:
        for fault in faults:
            await asyncio.sleep(fault.after_s)
            blows = [await self._fell(victim) for victim in fault.victims]
            if fault.point:
                blows += await self._await_shot(fault)
            affected = self._board.in_progress()
            self.blows += blows
            if blows:
                blows[-1].recovery_s = await self._board.recovery_s(affected, blows[-1].time, RECOVERY_MAX_S)
                await self._stage.until_back([(blow.victim, blow.gone) for blow in blows if blow.gone])

    async def _await_shot(self, fault: Fault) -> list[Blow]:
        stage = self._stage
        stage.refresh()
        stage.points.arm(fault.point, fault.action)
        end = time.monotonic() + FIRE_TIMEOUT_S
        while not (found := stage.points.fired(fault.point)):
            if time.monotonic() > end and stage.points.disarm(fault.point):
                return []
            await asyncio.sleep(STEP_S)
        return [self._fallen(fired) for fired in found]

    def _fallen(self, fired: Fired) -> Blow:
        name = self._stage.name_of(fired.pid)
        service = name.rstrip("0123456789").removesuffix("-")
        at = time.monotonic()
        if fired.action == "kill":
            return Blow(service, f"{name} killed at {fired.point}", 1, at, None, name, fired.pid, fired.point)
        sleep_s = STOP_WORKER_S if service == "worker" else STOP_S
        asyncio.get_running_loop().call_later(sleep_s, _wake, fired.pid)
        return Blow(f"{service} stopped", f"{name} stopped at {fired.point}", 0, at, None, name, 0, fired.point)

    async def _fell(self, victim: str) -> Blow:
        """Strike a process by its name."""
        stage = self._stage
        if victim == "flush":
            client = redis.asyncio.Redis(unix_socket_path=str(stage.socket("redis")))
            at = time.monotonic()
            with contextlib.suppress(redis.RedisError):  # killed at the same moment, which empties it as well
                await client.flushall()
            await client.aclose()
            return Blow("redis emptied", "redis emptied", 0, at)
        name, _, how = victim.partition(" ")
        pids = stage.pids()
        chosen = self._rng.choice([one for one in sorted(pids) if one == name or one.startswith(f"{name}-")] or [name])
        number = {"": signal.SIGKILL, "crash": signal.SIGQUIT, "restart": signal.SIGINT}[how]
        at = time.monotonic()
        pid = pids.get(chosen, 0)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        done, kills = ("restarted", 0) if how == "restart" else ("killed", int(pid > 0))
        return Blow(victim, f"{chosen} {done}", kills, at, None, chosen, pid)


def _overlap(one: Blow, other: Blow) -> bool:
    ends = [blow.time + (blow.recovery_s or 0.0) for blow in (one, other)]
    return one.time <= ends[1] and other.time <= ends[0]


def _wake(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
