"""What a watcher must have seen of what is told before it is recorded."""

import copy

import pytest
from harness import checks
from harness.history import EARLY, Contact, Event, History, Watch


def history(type_):
    """The first attempt told something early and was lost; the second took its place."""
    log = [
        Event((1, 1), "user.message", "r1", {"text": "hi"}),
        Event((1, 2), type_, "r1", {}),
        Event((2, 1), "run.resumed", "r1", {"rewind_to": "1-1"}),
        Event((2, 2), type_, "r1", {}),
        Event((2, 3), "run.succeeded", "r1", {}),
    ]
    return History(1, watches=[Watch("w", "anna", "friend", copy.copy(log))], contacts=[Contact("anna", "friend", log)])


@pytest.mark.parametrize("type_", EARLY)
def test_cursor_monotone_lets_a_watcher_miss_only_what_was_never_recorded_and_whose_attempt_was_lost(type_):
    told = history(type_)
    assert list(checks.cursor_monotone(told)) == []
    (missed,) = (event for event in told.watches[0].events if event.cursor == (1, 2))
    told.watches[0].events.remove(missed)
    assert list(checks.cursor_monotone(told)) == [f"w: has not seen {type_} at (1, 2)"], "recorded before it was lost"
    told.contacts[0].unrecorded = [(1, 2), (2, 2)]
    assert list(checks.cursor_monotone(told)) == []
    (missed,) = (event for event in told.watches[0].events if event.cursor == (2, 2))
    told.watches[0].events.remove(missed)
    assert list(checks.cursor_monotone(told)) == [f"w: has not seen {type_} at (2, 2)"], "its attempt was not lost"


def test_cursor_monotone_lets_no_watcher_miss_another_event_that_only_the_bus_has():
    told = history("tool.finished")
    told.contacts[0].unrecorded = [(1, 2)]
    told.watches[0].events.pop(1)
    assert list(checks.cursor_monotone(told)) == ["w: has not seen tool.finished at (1, 2)"]
