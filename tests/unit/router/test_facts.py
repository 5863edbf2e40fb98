"""How facts are found again: the parts of their words, and vectors without a model."""

import math

from hypothesis import given
from hypothesis import strategies as st
from retinue_router.domain import facts

TEXT = st.text(max_size=200)


def test_words_with_an_alphabet_are_three_letters_each_and_chinese_is_one_and_two_characters():
    assert facts.parts("Ab cat") == ["_ab", "ab_", "_ca", "cat", "at_"]
    assert facts.parts("我的猫") == ["我", "我的", "的", "的猫", "猫"]
    assert facts.parts("猫cat") == ["猫", "_ca", "cat", "at_"]
    assert facts.parts("a") == ["_a_"]
    assert facts.parts(" .,! ") == []


def test_what_looks_the_same_is_the_same():
    assert facts.digest("Her  CAT is Mochi") == facts.digest("her cat is mochi ")
    assert facts.digest("ＡＢＣ") == facts.digest("abc")
    assert facts.digest("her cat is Mochi") != facts.digest("her cat is Mocha")


@given(TEXT)
def test_bounded_parts_are_each_once_and_fit_four_bytes(text):
    numbers = facts.grams(text, 20)
    assert len(numbers) == len(set(numbers)) <= 20
    assert all(-(2**31) <= number < 2**31 for number in numbers)


@given(TEXT)
def test_a_vector_has_length_one_or_nought(text):
    vector = facts.lexical(text)
    length = math.sqrt(sum(value * value for value in vector.values))
    assert len(vector.values) == facts.DIMENSIONS
    assert math.isclose(length, 1.0) or (length == 0 and not any(vector.values))


def near(one, other):
    return sum(a * b for a, b in zip(facts.lexical(one).values, facts.lexical(other).values, strict=True))


def test_texts_that_share_words_are_nearer_than_those_that_do_not():
    assert near("her cat is called Mochi", "what is the cat called") > near("her cat is called Mochi", "buy some bread")
    assert near("她的猫叫麻糬", "猫叫什么") > near("她的猫叫麻糬", "明天开会")
