"""The model of the lease core keeps the invariants over every interleaving tried, and would not if a rule were missing.

`HYPOTHESIS_PROFILE=long` has hypothesis' own engine try ten thousand as well. A failure prints the steps, and which
walk to take again: `walk(Leases(), seed, STEPS_MAX)`.
"""

import os

import hypothesis
import lease_core as core
import pytest
from hypothesis.stateful import run_state_machine_as_test
from lease_core import NEVER, Log
from lease_machine import Leases, walk_all

WALKS = 10_000
STEPS_MAX = 30
"""Enough for three runs to begin, park, be lost and end."""

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
EXAMPLES = 10_000 if LONG else 100
TIMEOUT_S = 7200 if LONG else 300


@pytest.mark.timeout(TIMEOUT_S)
def test_the_invariants_hold_over_ten_thousand_interleavings():
    reached: set[str] = set()

    class Noting(Leases):
        def made(self, name, *arguments, **options):
            answer = super().made(name, *arguments, **options)
            refused = isinstance(answer, tuple) and answer == core.REFUSED
            reached.add(f"{name} refused" if refused else name)
            return answer

        def teardown(self):
            super().teardown()
            reached.update(event.type for event in self.log.events)
            reached.update(("dead",) if any(run.dead for run in self.log.runs) else ())
            reached.update(run.approval for run in self.log.runs if run.approval)

    walk_all(Noting, WALKS, STEPS_MAX)
    calls = ("renew", "checkpoint", "park", "finish")
    assert {*calls, *(f"{call} refused" for call in calls), "submit", "cancel", "decide", "claim"} <= reached
    assert {"run.resumed", "run.cancelled", "run.failed", "run.succeeded", "dead"} <= reached
    assert {"approval.requested", "approval.decided", "expired", "allow_once", "deny"} <= reached


@pytest.mark.timeout(TIMEOUT_S)
def test_hypothesis_finds_no_interleaving_that_breaks_an_invariant():
    settings = hypothesis.settings(max_examples=EXAMPLES, stateful_step_count=STEPS_MAX, derandomize=True)
    run_state_machine_as_test(Leases, settings=settings)


def unfenced(log, token):
    return log.holder is not None


def taken_in_spite_of_a_holder(log, holder):
    return core._take(log, holder) if log.due != NEVER else None


def cancelled_without_waking(log, position):
    due = log.due
    answer = CANCEL(log, position)
    log.due = due
    return answer


def decided_without_waking(log, position, decision):
    due = log.due
    answer = DECIDE(log, position, decision)
    log.due = due
    return answer


CANCEL, DECIDE = core.cancel, core.decide


@pytest.mark.parametrize(
    ("where", "name", "wrong", "broken"),
    [
        (Log, "holds", unfenced, "no_stale_write|one_runner|ack_is_durable|session_order"),
        (core, "claim", taken_in_spite_of_a_holder, "one_runner"),
        (core, "cancel", cancelled_without_waking, "ack_is_durable"),
        (core, "decide", decided_without_waking, "ack_is_durable"),
    ],
)
def test_a_model_with_a_rule_less_is_caught(monkeypatch, where, name, wrong, broken):
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError, match=broken) as caught:
        walk_all(Leases, WALKS, STEPS_MAX)
    assert any(note.startswith("walk ") for note in caught.value.__notes__), "it can be walked again"
