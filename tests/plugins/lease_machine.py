"""Interleavings of everyone who touches a log, as a state machine: callers, workers, zombies, time.

A worker that was overtaken is not told: it goes on with its calls under its old token, whenever it likes. A call whose
answer was lost is made again, word for word. What the model is compared with is an `Impl`; the model alone has none.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import lease_core as core
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lease_core import FUTURE, PAST, Held, Log

RUNS_MAX = 5
"""More runs find no state that fewer do not."""

PICKS = range(8)
YES_NO = (False, True)

Needs = Callable[["Leases"], object]
STEPS: list[tuple[str, Needs, dict[str, Sequence[Any]]]] = []
"""Names of what may happen, when it may, and with what."""


def step(needs: Needs, **of: Sequence[Any]) -> Callable[[Any], Any]:
    """Make a rule of the machine that a walk can take as well."""

    def made(function: Any) -> Any:
        STEPS.append((function.__name__, needs, of))
        strategies = {name: st.sampled_from(values) for name, values in of.items()}
        return precondition(needs)(rule(**strategies)(function))

    return made


def walk(machine: "Leases", seed: int, steps: int) -> None:
    """Take steps at random, without the engine that costs ten times as much as they do."""
    random = Random(seed)
    taken: list[str] = []
    try:
        machine.invariants_hold()
        for _ in range(steps):
            may = [step for step in STEPS if step[1](machine)]
            name, _, of = random.choice(may)
            arguments = {key: random.choice(values) for key, values in of.items()}
            taken.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            getattr(machine, name)(**arguments)
            machine.invariants_hold()
        machine.teardown()
    except AssertionError as error:
        error.add_note(f"walk {seed}: " + ", ".join(taken))
        raise


@dataclass(eq=False)
class Worker:
    """Who believes to hold a lease, until its own end of it was accepted; n is the last number given to an event."""

    holder: str
    held: Held
    n: int
    steps: int = 0


def walk_all(machine: Callable[[], "Leases"], walks: int, steps: int) -> None:
    """Take so many walks, each on a log of its own."""
    for seed in range(walks):
        walk(machine(), seed, steps)


class Leases(RuleBasedStateMachine):
    """One log. `call` answers what the model answers, after comparing it."""

    model: Any = core

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.workers: list[Worker] = []
        self.granted: list[int] = []
        self.numbers = itertools.count(1)
        self.tokens = [0]
        self.again: Callable[[], object] | None = None

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Make a call; once more later, if its answer is lost."""
        self.again = lambda: self.made(name, *arguments, **options)
        return self.made(name, *arguments, **options)

    def made(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Make a call of the model."""
        return getattr(self.model, name)(self.log, *arguments, **options)

    def passed(self, what: str, position: int = 0) -> None:
        """Time has passed: the log's due time is over and whatever rested has, or an approval's is."""

    def hear(self, holder: str, held: Held | None) -> None:
        """A worker learns what it was given."""
        if held is not None and held.run:
            self.granted.append(held.token)
            self.workers.append(Worker(holder, held, held.events[-1].cursor[1] if held.events else 0))

    def any_worker(self, pick: int) -> Worker:
        """Often the latest, sometimes a zombie."""
        return self.workers[-1 - pick % len(self.workers)]

    @step(
        lambda self: len(self.log.runs) < RUNS_MAX,
        busy=("enqueue", "enqueue", "reject", "interrupt", "rollback"),
        keyed=YES_NO,
    )
    def submit(self, busy: str, keyed: bool) -> None:
        self.call("submit", busy, f"key-{len(self.log.runs)}" if keyed else "")
        if not keyed:
            self.again = None  # who repeats it means another run

    @step(lambda self: self.log.runs, pick=PICKS)
    def cancel(self, pick: int) -> None:
        self.call("cancel", 1 + pick % len(self.log.runs))

    @step(lambda self: any(r.approval for r in self.log.runs), pick=PICKS, decision=("allow_once", "deny"))
    def decide(self, pick: int, decision: str) -> None:
        asked = [r.position for r in self.log.runs if r.approval]
        self.call("decide", asked[pick % len(asked)], decision)

    @step(lambda self: self.log.runs)
    def claim(self) -> None:
        holder, before = f"w{next(self.numbers)}:1", self.log.token
        valid = self.log.holder is not None and self.log.due == FUTURE
        self.hear(holder, self.call("claim", holder))
        assert not valid or self.log.token == before, "one_runner: a lease was taken that had not run out"

    @step(lambda self: self.workers, pick=PICKS)
    def claim_again(self, pick: int) -> None:
        self.made("claim", self.any_worker(pick).holder)

    @step(lambda self: self.granted, pick=PICKS)
    def renew(self, pick: int) -> None:
        # A renewal may be on its way while its lease is given back.
        self.call("renew", self.granted[-1 - pick % len(self.granted)])

    @step(lambda self: self.workers, pick=PICKS)
    def checkpoint(self, pick: int) -> None:
        worker = self.any_worker(pick)
        worker.n += 2  # a delta was told in between
        worker.steps += 1
        held = worker.held
        told = [(worker.n, "assistant.message", held.run)]
        self.call("checkpoint", held.token, held.run, told, f"{held.token}.{worker.steps}")

    @step(lambda self: self.workers, pick=PICKS)
    def park(self, pick: int) -> None:
        worker = self.any_worker(pick)
        worker.n += 1
        if self.call("park", worker.held.token, worker.held.run, worker.n, f"{worker.held.token}.parked")[0]:
            self.workers.remove(worker)

    @step(
        lambda self: self.workers,
        pick=PICKS,
        state=("succeeded", "succeeded", "failed", "cancelled"),
        take_next=YES_NO,
        flag=YES_NO,
    )
    def finish(self, pick: int, state: str, take_next: bool, flag: bool) -> None:
        worker = self.any_worker(pick)
        worker.n += 2
        held = worker.held
        told = [(worker.n - 1, "assistant.message", held.run)] if flag else []
        answer = self.call(
            "finish", held.token, held.run, state, told, worker.n, worker.holder, take_next=take_next, dead=flag
        )
        if answer[0]:
            self.workers.remove(worker)
            self.hear(worker.holder, answer[4])

    @step(lambda self: self.workers, pick=PICKS, rest=YES_NO, refund=YES_NO)
    def hand_back(self, pick: int, rest: bool, refund: bool) -> None:
        worker = self.any_worker(pick)
        worker.n += 1
        held = worker.held
        # As workers do: the last attempt ends with its failure instead.
        if refund or held.attempt < core.ATTEMPTS_MAX:
            answer = self.call(
                "finish", held.token, held.run, "queued", [], worker.n, worker.holder, rest=rest, refund=refund
            )
            if answer[0]:
                self.workers.remove(worker)

    @step(lambda self: self.again)
    def lost_answer(self) -> None:
        assert self.again is not None
        self.again()

    @step(lambda self: self.log.due == FUTURE)
    def time_passes(self) -> None:
        self.log.due = PAST
        for run in self.log.runs:
            run.resting = False
        self.passed("due")

    @step(lambda self: any(r.approval == "pending" for r in self.log.runs))
    def approval_expires(self) -> None:
        run = next(r for r in self.log.runs if r.approval == "pending")
        run.approval = "late"
        self.passed("approval", run.position)
        if self.log.holder is None and self.log.due == FUTURE:
            self.log.due = PAST
            self.passed("due")

    @invariant()
    def invariants_hold(self) -> None:
        core.check(self.log)
        self.tokens.append(self.log.token)
        assert self.tokens[-1] >= self.tokens[-2], "one_runner: tokens only grow"
        valid = {w.held.token for w in self.workers if self.log.holds(w.held.token)}
        assert len(valid) <= 1, "one_runner: two workers hold the log"

    def teardown(self) -> None:
        """ack_is_durable: when all is quiet and workers do their work, every run ends."""
        for _ in range(ENOUGH):
            if self.log.due == FUTURE:
                self.time_passes()
            for run in self.log.runs:
                if run.approval == "pending":
                    self.passed("approval", run.position)
                    run.approval = "late"
            holder = f"w{next(self.numbers)}:1"
            held = self.made("claim", holder)
            if held is not None and held.run:
                n = held.events[-1].cursor[1] + 1 if held.events else 1
                self.made("finish", held.token, held.run, "succeeded", [], n, holder)
            core.check(self.log)
        assert all(run.state in core.TERMINAL for run in self.log.runs), "ack_is_durable"
        assert self.log.due == core.NEVER
        assert not self.log.mail


ENOUGH = 3 * RUNS_MAX
"""Claims after which nothing is left: one for each run, and some that find only mail."""
