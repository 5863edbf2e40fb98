"""What a log's events say, however they come."""

import random

import pytest
from conversations import SESSION, began, chatter, compacted, ended, said, turn
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_portability.domain.content import START, Cursor, cursor_of
from retinue_portability.domain.context import Event, attachments, tell

EVENTS = [
    *turn(1, "one", "first"), began(2), ended(2), *turn(2, "two", "second"), compacted(3, "all so far", Cursor(2, 9)),
    *turn(4, "three", "third"),
]  # fmt: skip


def test_what_was_summed_up_is_told_by_the_summary_alone():
    told = tell(EVENTS, SESSION)
    assert [(message.role, message.text) for message in told.messages] == [("user", "three"), ("assistant", "third")]
    assert (told.summary.text, told.summary.method, told.summary.through) == ("all so far", "model", Cursor(2, 9))
    assert [call.tool for call in told.calls] == ["read_file"]
    assert (told.last, told.open_call) == (Cursor(4, 9), "")


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_the_order_in_which_events_come_and_what_comes_twice_change_nothing(seed):
    shuffled = [*EVENTS, *EVENTS[:4]]
    random.Random(seed).shuffle(shuffled)
    assert tell(shuffled, SESSION) == tell(EVENTS, SESSION)


def test_the_latest_summary_holds_and_one_that_says_no_end_stands_for_nothing_that_follows():
    told = tell([*EVENTS, compacted(5, "newer", Cursor(4, 1), count=3)], SESSION)
    assert [message.text for message in told.messages] == ["third"]
    assert (told.summary.text, told.summary.message_count) == ("newer", 3)
    told = tell([*EVENTS, compacted(5, "newer", None, method="guesswork")], SESSION)
    assert len(told.messages) == 6
    assert (told.summary.through, told.summary.method) == (START, "extract")


def test_events_of_another_session_are_not_told():
    stray = Event(Cursor(9, 1), "user.message", "ses_b", "run_b", text="of another")
    assert tell([*EVENTS, stray], SESSION) == tell(EVENTS, SESSION)


def test_a_run_that_goes_on_has_said_nothing_but_what_it_summed_up_holds():
    own = [said(5, text="now"), began(5), ended(5), compacted(5, "before", Cursor(4, 9), run_id="run_5")]
    told = tell([*EVENTS, *own], SESSION, "run_5")
    assert (told.messages, told.summary.text, len(told.calls)) == ((), "before", 1)
    assert told.last == Cursor(5, 2)
    told = tell([*EVENTS, *own[:3]], SESSION, "run_5")
    assert told.last == Cursor(4, 9)


@pytest.mark.parametrize(
    ("more", "without", "open_call", "never_ended"),
    [
        ([began(5)], "", "read_file", 0),
        ([began(5)], "run_5", "read_file", 0),
        ([began(5), ended(5)], "", "", 0),
        # A session has one run at a time: what a former run has left open is over.
        ([began(5), *turn(6, "again", "yes")], "", "", 1),
        ([began(5)], "run_6", "", 1),
        # The same id in another run is another call.
        ([began(5), began(6), ended(6)], "", "", 1),
    ],
)
def test_one_effect_a_call_is_open_until_its_end_is_known_or_its_run_is_over(more, without, open_call, never_ended):
    told = tell([*EVENTS, *more], SESSION, without)
    assert told.open_call == open_call
    assert told.taken["tool_calls", "never_ended"] == never_ended


def test_files_are_named_by_the_run_that_spoke_of_them_last():
    events = [
        began(2, arguments={"path": "/workspace/notes/a.md"}), ended(2),
        began(3, arguments={"path": "b.txt"}), ended(3),
        said(4, text="look at /workspace/notes/a.md. And at /v1/files/pictures/cat.png, not at /workspace/../etc"),
        began(5, arguments={"path": "../up"}), ended(5), began(6, arguments={"path": 7}), ended(6),
    ]  # fmt: skip
    told = tell(events, SESSION)
    found = [(file.path, file.run_id) for file in attachments(told.calls, told.messages)]
    assert found == [("b.txt", "run_3"), ("notes/a.md", "run_4"), ("pictures/cat.png", "run_4")]


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-x", "01-2", "1-2-3", "１-２", f"1-{2**60}", "1-" + "9" * 40])
def test_what_is_no_cursor_is_none(text):
    assert cursor_of(text) is None
    assert cursor_of("7-12") == Cursor(7, 12)


def test_a_long_conversation_is_told_whole():
    told = tell(chatter(1, 300), SESSION)
    assert len(told.messages) == 600
