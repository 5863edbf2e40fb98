"""What counts against what a run may say, and what against what its tools may."""

import pytest
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason, RetinueError
from retinue_router.worker import measure
from retinue_router.worker.measure import Measure, state_of

LIMIT = 1000


def states(state):
    return [
        {"checkpoint": {"state": state}},
        {"approval_requested": {"checkpoint": state}},
        {"paused": {"state": state}},
    ]


def take_all(*events):
    counted = Measure(LIMIT)
    for event in events:
        counted.take(RuntimeEvent(**event))


def refused(*events):
    with pytest.raises(RetinueError) as error:
        take_all(*events)
    return error.value.reason is Reason.OUTPUT_TOO_LARGE


def test_bounded_text_of_all_kinds_counts_together():
    text = "x" * LIMIT
    take_all({"text_delta": {"text": text}}, {"message_completed": {"text": text}}, {"card": {"title": text}})
    assert refused(*[{"text_delta": {"text": text}}] * 2, *[{"reasoning_delta": {"text": text}}] * 2)


def test_bounded_without_a_limit_a_run_may_say_anything_and_its_tools_may_not(monkeypatch):
    monkeypatch.setattr(measure, "TOOLS_SIZE_MAX_BYTES", 100)
    anything = Measure(0)
    anything.take(RuntimeEvent(text_delta={"text": "x" * 10_000}))
    with pytest.raises(RetinueError):
        anything.take(RuntimeEvent(tool_output={"text": "x" * 101}))


def test_bounded_what_tools_say_counts_by_itself(monkeypatch):
    said = [{"tool_output": {"text": "x" * LIMIT}}, {"tool_finished": {"result": "x" * LIMIT}}]
    take_all(*said * 10)
    monkeypatch.setattr(measure, "TOOLS_SIZE_MAX_BYTES", 10 * LIMIT)
    assert refused(*said * 10)


def test_bounded_a_state_counts_only_against_what_can_be_kept(monkeypatch):
    take_all(*states(b"x" * 100 * LIMIT))
    monkeypatch.setattr(measure, "STATE_SIZE_MAX_BYTES", LIMIT)
    for event in states(b"x" * LIMIT):
        take_all(event)
        assert state_of(RuntimeEvent(**event)) == b"x" * LIMIT
    for event in states(b"x" * (LIMIT + 1)):
        assert refused(event)
    assert state_of(RuntimeEvent(text_delta={"text": "x"})) == b""
