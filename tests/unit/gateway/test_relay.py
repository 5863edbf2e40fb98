"""What an OpenAI client is sent of a run whose attempts die and begin again."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_gateway.relay import SEPARATOR, DivergedError, Relay
from retinue_kit.streams import Cursor, Entry, Kind


class Run:
    """Makes the events of a run's attempts."""

    def __init__(self) -> None:
        self.token = 1
        self.n = 0
        self.fact = Cursor(0, 0)

    def event(self, type_: str, **data: Any) -> Entry:
        self.n += 1
        cursor = Cursor(self.token, self.n)
        if not type_.endswith("delta"):
            self.fact = cursor
        return Entry(cursor, Kind.TENTATIVE, None, "run_a", type_, json.dumps({"data": data}).encode())

    def resume(self) -> Entry:
        """Another attempt takes over after the last fact."""
        before = self.fact
        self.token, self.n = self.token + 1, 0
        return self.event("run.resumed", attempt=self.token, rewind_to=str(before))


def test_deltas_are_passed_on_and_the_message_adds_nothing() -> None:
    run, relay = Run(), Relay()
    entries = [run.event("user.message", text="q"), run.event("run.started"), run.event("assistant.delta", text="Hel")]
    entries += [run.event("reasoning.delta", text="hm"), run.event("assistant.delta", text="lo")]
    entries += [run.event("assistant.message", text="Hello"), run.event("run.succeeded", usage={"input_tokens": 1})]
    assert [relay.feed(entry) for entry in entries] == ["", "", "Hel", "", "lo", "", ""]
    assert (relay.text(), relay.ended, relay.usage) == ("Hello", "run.succeeded", {"input_tokens": 1})


def test_what_no_delta_told_comes_with_the_message() -> None:
    run, relay = Run(), Relay()
    assert relay.feed(run.event("assistant.delta", text="Hel")) == "Hel"
    assert relay.feed(run.event("assistant.message", text="Hello")) == "lo"


def test_white_space_that_only_deltas_told_is_no_difference() -> None:
    run, relay = Run(), Relay()
    relay.feed(run.event("assistant.delta", text="Hello \n"))
    assert relay.feed(run.event("assistant.message", text="Hello")) == ""
    relay.feed(run.event("run.succeeded", usage=None))
    assert relay.ended


def test_the_end_of_a_text_whose_beginning_was_missed_is_not_taken_for_its_beginning() -> None:
    run, relay = Run(), Relay()
    relay.feed(run.event("run.started"))
    run.n += 3  # told on a bus that was emptied before anybody heard it
    assert relay.feed(run.event("assistant.delta", text=" the end")) == ""
    assert (
        relay.feed(run.event("assistant.message", text="From the beginning to the end"))
        == "From the beginning to the end"
    )
    assert relay.feed(run.event("assistant.delta", text="And more")) == SEPARATOR + "And more"
    relay.feed(run.event("assistant.message", text="And more"))
    relay.feed(run.event("run.succeeded", usage=None))
    assert relay.ended


def test_what_was_missed_in_the_middle_comes_with_the_message() -> None:
    run, relay = Run(), Relay()
    assert relay.feed(run.event("assistant.delta", text="Once ")) == "Once "
    run.n += 1
    assert relay.feed(run.event("assistant.delta", text="a time")) == ""
    assert relay.feed(run.event("assistant.message", text="Once upon a time")) == "upon a time"


def test_events_of_other_runs_in_between_are_no_gap() -> None:
    run, relay = Run(), Relay()
    relay.feed(run.event("run.started"))
    other = run.event("task.finished")
    relay.pass_over(other.cursor)
    assert relay.feed(run.event("assistant.delta", text="Hello")) == "Hello"


def test_a_gap_among_another_runs_events_ends_with_its_token() -> None:
    run, relay = Run(), Relay()
    relay.pass_over(Cursor(1, 30))
    run.token = 2
    assert relay.feed(run.event("run.started")) == ""
    assert relay.feed(run.event("assistant.delta", text="Hello")) == "Hello"


def test_messages_of_one_run_are_set_apart() -> None:
    run, relay = Run(), Relay()
    for text in ("one", "two"):
        relay.feed(run.event("assistant.delta", text=text))
        relay.feed(run.event("assistant.message", text=text))
    assert relay.text() == "one" + SEPARATOR + "two"


def test_a_text_that_replaces_goes_on_where_it_agrees() -> None:
    run, relay = Run(), Relay()
    assert relay.feed(run.event("assistant.delta", text="Hel")) == "Hel"
    assert relay.feed(run.event("assistant.delta", text="Hello", replace=True)) == "lo"
    with pytest.raises(DivergedError):
        relay.feed(run.event("assistant.delta", text="Bye", replace=True))


def test_an_attempt_that_tells_less_than_was_sent_is_a_difference() -> None:
    run, relay = Run(), Relay()
    relay.feed(run.event("run.started"))
    relay.feed(run.event("assistant.delta", text="Hello"))
    relay.feed(run.resume())
    relay.feed(run.event("assistant.message", text="Hel"))
    with pytest.raises(DivergedError):
        relay.feed(run.event("run.succeeded"))


def test_a_failed_run_tells_why() -> None:
    run, relay = Run(), Relay()
    relay.feed(run.event("run.failed", error={"code": 14}))
    assert (relay.ended, relay.error) == ("run.failed", {"code": 14})


words = st.text(alphabet="ab ", min_size=1, max_size=4)
messages = st.lists(st.lists(words, min_size=1, max_size=5), min_size=1, max_size=3)


@given(messages, st.data())
def test_whatever_dies_on_the_way_the_text_is_sent_once(wanted: list[list[str]], data: st.DataObject) -> None:
    """Attempts tell the same messages in other pieces, die anywhere, and go on after their last fact."""
    run, relay = Run(), Relay()
    whole = ["".join(pieces) for pieces in wanted]
    sent = ""
    done = 0
    deaths = data.draw(st.integers(0, 3))
    sent += relay.feed(run.event("run.started"))
    while done < len(whole):
        text = whole[done]
        cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=4))})
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        told = data.draw(st.integers(0, len(pieces))) if deaths else len(pieces)
        for piece in pieces[:told]:
            sent += relay.feed(run.event("assistant.delta", text=piece))
        if told < len(pieces):
            deaths -= 1
            sent += relay.feed(run.resume())
            continue
        sent += relay.feed(run.event("assistant.message", text=text))
        done += 1
    sent += relay.feed(run.event("run.succeeded", usage={}))
    assert sent == relay.text() == SEPARATOR.join(whole)


@given(messages, messages, st.integers(0, 20))
def test_what_was_sent_is_never_contradicted(first: list[list[str]], second: list[list[str]], dies_after: int) -> None:
    """A second attempt may say anything: what is sent continues what was sent, or the stream ends as different."""
    run, relay = Run(), Relay()
    sent = relay.feed(run.event("run.started"))
    start = run.fact
    for piece in [piece for pieces in first for piece in pieces][:dies_after]:
        sent += relay.feed(run.event("assistant.delta", text=piece))
    run.fact = start
    sent += relay.feed(run.resume())
    try:
        for pieces in second:
            for piece in pieces:
                sent += relay.feed(run.event("assistant.delta", text=piece))
            sent += relay.feed(run.event("assistant.message", text="".join(pieces)))
        sent += relay.feed(run.event("run.succeeded"))
    except DivergedError:
        assert not SEPARATOR.join("".join(p) for p in second).startswith(sent)
    else:
        assert sent == SEPARATOR.join("".join(p) for p in second)
