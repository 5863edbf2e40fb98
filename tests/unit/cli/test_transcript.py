"""What a run has said, from its events."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from retinue_cli.transcript import Transcript


def event(cursor: str, type_: str, run_id: str = "run_1", /, **data: Any) -> dict[str, Any]:
    return {"cursor": cursor, "type": type_, "run_id": run_id, "data": data}


def said(*events: dict[str, Any]) -> Transcript:
    transcript = Transcript()
    transcript.apply_all(events)
    return transcript


def test_deltas_add_up_and_the_message_is_the_whole() -> None:
    begun = [
        event("1-1", "run.started"),
        event("1-2", "assistant.delta", text="Hel"),
        event("1-3", "assistant.delta", text="lo"),
    ]
    assert said(*begun).text == "Hello"
    whole = said(*begun, event("1-4", "assistant.message", text="Hello!"), event("1-5", "run.succeeded"))
    assert (whole.text, whole.end, whole.run_id, whole.cursor) == ("Hello!", "run.succeeded", "run_1", "1-5")


def test_a_delta_that_replaces_is_the_whole_so_far() -> None:
    replaced = event("1-2", "assistant.delta", text="Bye", replace=True)
    assert said(event("1-1", "assistant.delta", text="Hello"), replaced).text == "Bye"


def test_what_came_after_the_cursor_of_a_resumption_is_taken_back() -> None:
    resumed = said(
        event("1-2", "assistant.message", text="First."),
        event("1-3", "assistant.delta", text="Sec"),
        event("2-1", "run.resumed", attempt=2, rewind_to="1-2"),
    )
    assert resumed.text == "First."
    resumed.apply(event("2-3", "assistant.delta", text="Second."))
    assert resumed.text == "First.\nSecond."


def test_a_rollback_takes_back_what_was_said_and_a_plain_cancel_keeps_it() -> None:
    begun = event("1-2", "assistant.delta", text="Hel")
    assert said(begun, event("1-3", "run.cancelled", by="x", rewind_to="1-1")).text == ""
    assert said(begun, event("1-3", "run.cancelled", by="x")).text == "Hel"


def test_an_event_told_again_changes_nothing() -> None:
    one = event("1-2", "assistant.delta", text="Hel")
    assert said(one, one, event("1-1", "assistant.delta", text="no")).text == "Hel"


def test_cursors_are_compared_as_numbers() -> None:
    told = [event(f"1-{n}", "assistant.delta", text=str(n % 10)) for n in range(1, 13)]
    assert said(*told).text == "123456789012"


def test_events_of_another_run_are_left_alone() -> None:
    assert (
        said(event("1-1", "assistant.delta", text="a"), event("2-1", "assistant.delta", "run_2", text="b")).text == "a"
    )


def test_a_failure_keeps_its_error() -> None:
    failed = said(event("1-1", "run.failed", error={"message": "The model is away."}))
    assert failed.error["message"] == "The model is away."


def test_tools_and_cards_stand_between_what_is_said() -> None:
    told = said(
        event("1-1", "assistant.delta", text="Let me look."),
        event("1-2", "tool.started", tool="search"),
        event("1-3", "assistant.delta", text="Found."),
        event("1-4", "card", kind="trip", title="Rome"),
    )
    assert told.text == "Let me look.\n[search …]\nFound.\n[trip: Rome]"


@given(parts=st.lists(st.text(min_size=1), min_size=1), cut=st.integers(0, 100))
def test_a_run_told_in_two_attempts_reads_like_one(parts: list[str], cut: int) -> None:
    kept = min(cut, len(parts))
    first = [event(f"1-{n}", "assistant.delta", text=part) for n, part in enumerate(parts, 1)]
    resumed = event("2-1", "run.resumed", attempt=2, rewind_to=f"1-{kept}")
    second = [event(f"2-{n}", "assistant.delta", text=part) for n, part in enumerate(parts[kept:], 3)]
    assert said(*first, resumed, *second).text == said(*first).text == "".join(parts)
