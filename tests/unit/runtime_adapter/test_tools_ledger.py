"""The tool ledger: which steps a call may take, and what no order of deaths can make of it."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_runtime_adapter.tools import ledger
from retinue_runtime_adapter.tools.ledger import Begun, Entry, LedgerError

PLANNED = Entry(call_id="c", tool="exec", arguments="{}")


def test_a_call_goes_from_planned_over_started_to_finished() -> None:
    started = ledger.started(PLANNED, 3)
    assert (started.state, started.token, started.over) == ("started", 3, False)
    done = ledger.finished(started, 3, ok=True, result="yes")
    assert (done.state, done.ok, done.result, done.over) == ("finished", True, "yes", True)


def test_one_effect_a_finished_call_is_never_started_or_finished_again() -> None:
    done = ledger.finished(ledger.started(PLANNED, 3), 3, ok=True, result="yes")
    with pytest.raises(LedgerError):
        ledger.started(done, 4)
    with pytest.raises(LedgerError):
        ledger.finished(done, 3, ok=False, result="no")
    with pytest.raises(LedgerError):
        ledger.taken_over(done, 4, idempotent=True)


def test_no_stale_write_an_end_under_another_token_is_refused() -> None:
    with pytest.raises(LedgerError):
        ledger.finished(ledger.started(PLANNED, 3), 4, ok=True, result="late")


def test_one_effect_a_started_call_of_another_token_is_made_again_only_if_it_is_idempotent() -> None:
    started = ledger.started(PLANNED, 3)
    assert ledger.taken_over(started, 4, idempotent=True).state == "planned"
    unknown = ledger.taken_over(started, 4, idempotent=False)
    assert (unknown.state, unknown.ok, unknown.result) == ("unknown", False, ledger.UNKNOWN)
    with pytest.raises(LedgerError):
        ledger.taken_over(started, 3, idempotent=True)


def test_one_effect_a_call_is_begun_once_under_a_token() -> None:
    begun, entry = Begun(2), ledger.started(PLANNED, 3)
    assert [begun.first("t", "r", entry) for _ in range(2)] == [True, False]
    assert begun.first("t", "r", msgspec.structs.replace(entry, token=4))
    assert begun.first("other", "r", entry), "another tenant's is another call"
    assert len(begun._calls) == 2
    assert ledger.doubted(entry).result == ledger.UNKNOWN
    with pytest.raises(LedgerError):
        ledger.doubted(PLANNED)


def test_what_was_refused_is_finished_by_whoever_takes_it_over() -> None:
    refused = ledger.started(PLANNED, 3, "No.")
    taken = ledger.taken_over(refused, 4, idempotent=False)
    assert (taken.state, taken.ok, taken.result) == ("finished", False, "No.")


@pytest.mark.parametrize(
    ("said", "noted"),
    [("allow_once", "allow"), ("allow_always", "allow"), ("deny", "deny"), ("expired", "expired"), ("else", "deny")],
)
def test_the_first_answer_of_a_person_counts(said: str, noted: str) -> None:
    decided = ledger.decided(PLANNED, said)
    assert decided.decision == noted
    assert ledger.decided(decided, "allow_once").decision == noted


@given(
    idempotent=st.lists(st.booleans(), min_size=1, max_size=4),
    deaths=st.lists(st.integers(0, 12), max_size=6),
)
def test_one_effect_whatever_attempts_die_and_wherever(idempotent: list[bool], deaths: list[int]) -> None:
    """Attempts record, make calls and record again, each step of its own; a death falls between any two of them."""
    saved = [msgspec.structs.replace(PLANNED, call_id=str(n)) for n in range(len(idempotent))]
    effects: Counter[int] = Counter()
    ended: Counter[int] = Counter()
    for token, death in enumerate([*deaths, 10_000], start=1):
        left = death
        for n in range(len(saved)):
            if saved[n].lost(token):
                saved[n] = ledger.taken_over(saved[n], token, idempotent=idempotent[n])
                ended[n] += saved[n].over
            steps = 0 if saved[n].over else 3
            for step in range(steps):
                if not left:
                    break
                left -= 1
                if step == 0:
                    saved[n] = ledger.started(saved[n], token)
                elif step == 1:
                    assert saved[n].state == "started"
                    effects[n] += 1
                else:
                    saved[n] = ledger.finished(saved[n], token, ok=True, result="")
                    ended[n] += 1
            if not left:
                break
    assert all(entry.over for entry in saved)
    assert all(ended[n] == 1 for n in range(len(saved)))
    assert all(effects[n] <= 1 for n in range(len(saved)) if not idempotent[n])
    assert all(effects[n] for n in range(len(saved)) if saved[n].state == "finished")
