"""What is summed up, and in which pieces."""

import pytest
from conversations import message
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_kit.tokens import estimate
from retinue_portability.operations.summing_up import older_than_newest, steps


def said(*lengths):
    return tuple(message(at, "w" * length, "user" if at % 2 else "assistant") for at, length in enumerate(lengths, 1))


@pytest.mark.parametrize(
    ("messages", "room", "older"),
    [
        (said(), 100, 0),
        (said(40), 100, 1),
        (said(40, 40), 100, 2),
        (said(40, 40, 40, 40), 1000, 2),
        (said(40, 40, 40, 40, 40, 40), 15, 6),
        (said(40, 40, 40, 40, 40, 40), 25, 4),
        # A user's last words stay, however long.
        (said(40, 40, 4000), 100, 2),
    ],
)
def test_the_newest_turns_stay_and_at_least_half_is_summed_up(messages, room, older):
    assert older_than_newest(messages, room) == messages[:older]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 900), max_size=30), st.integers(20, 300))
def test_bounded_no_piece_is_larger_than_what_is_read_at_once_and_no_message_is_left_out(lengths, tokens):
    messages = said(*lengths)
    made = steps(messages, tokens)
    assert [one.cursor for piece in made for one in piece] == [one.cursor for one in messages]
    assert all(sum(estimate(one.text) for one in piece) <= tokens for piece in made)
