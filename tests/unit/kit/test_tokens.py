"""The one estimate of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.tokens import Tally, estimate


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("我的猫叫麻糬", 6), ("привет", 4), ("a我", 2)]
)
def test_english_counts_four_letters_and_chinese_each_character(text, tokens):
    assert estimate(text) == tokens


@given(st.text(), st.text())
def test_a_whole_has_no_more_tokens_than_its_parts_together(one, other):
    assert estimate(one + other) <= estimate(one) + estimate(other)


@given(st.lists(st.text()))
def test_a_text_in_pieces_has_the_tokens_of_the_whole(pieces):
    tally = Tally()
    for piece in pieces:
        tally.add(piece)
    assert tally.tokens == estimate("".join(pieces))


def test_what_nobody_kept_counts_as_plain_text():
    tally = Tally()
    tally.add("我")
    tally.add_plain(4)
    assert tally.tokens == 2
