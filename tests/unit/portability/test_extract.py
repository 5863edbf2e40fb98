"""Summaries without a model: what somebody would be sorry to have told in vain is kept."""

import pytest
from conversations import CHATTER, message
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_kit.tokens import estimate
from retinue_portability.domain.extract import SENTENCE_LENGTH_MAX, summarise, worth_of

TOLD = [
    "My cat is called Mochi", "I was born in Bergen", "Remember that Bob is allergic to nuts", "my locker code is 4821",
    "I prefer trains to planes", "The deadline of the Aurora project is March 14", "my wife's name is Ingrid",
    "I never drink coffee after noon", "our flight is SK4472 on Friday", "I work at Nordlys as a nurse",
]  # fmt: skip
TOLD_IN_CHINESE = ["我的猫叫麻糬", "我住在上海", "请记住我对花生过敏", "我的生日是3月14日", "我喜欢绿茶"]


def conversation(facts, noise=10):
    """Facts, with talk about nothing between them."""
    lines = []
    for number, told in enumerate(facts):
        lines += [(told, "user"), ("Noted, thank you for telling that", "assistant")]
        for at in range(noise):
            lines.append((CHATTER[(number + at) % len(CHATTER)], "user"))
            lines.append((f"{CHATTER[at % len(CHATTER)]}. Well, {CHATTER[number % len(CHATTER)]}!", "assistant"))
    return [message(at, text, role) for at, (text, role) in enumerate(lines, 1)]


@pytest.mark.parametrize("facts", [TOLD, TOLD_IN_CHINESE])
def test_short_facts_told_among_much_else_survive(facts):
    made = summarise(conversation(facts), 300)
    assert [told for told in facts if told not in made] == []
    assert estimate(made) <= 300


def test_of_fifty_facts_at_least_forty_nine_survive():
    facts = [
        f"My friend number {n} is called {name}{n}" for n, name in enumerate(["Ada", "Bo", "Cem", "Dag", "Eva"] * 10)
    ]
    made = summarise(conversation(facts, noise=8), 1000)
    assert sum(told in made for told in facts) >= 49


def test_what_is_kept_stands_in_the_order_in_which_it_was_said():
    made = summarise(conversation(TOLD), 300)
    places = [made.index(told) for told in TOLD]
    assert places == sorted(places)
    assert made.splitlines()[0] == "User: My cat is called Mochi"


def test_what_was_said_twice_is_kept_once():
    made = summarise([message(1, "my CAT is called Mochi!"), message(2, "My cat is called Mochi.")], 100)
    assert made == "User: My cat is called Mochi."


def test_greetings_and_questions_tell_less_than_facts():
    assert worth_of("ok thanks") <= 0
    assert worth_of("What is the capital of France?") < worth_of("The capital of France is Paris")
    assert worth_of("我的猫叫麻糬") > worth_of("好的")


def test_bounded_one_pasted_text_does_not_push_out_what_others_told():
    pasted = " ".join(f"My entry number {n} is {n * 13}." for n in range(5000))
    made = summarise([message(1, "My cat is called Mochi"), message(2, pasted)], 1200)
    assert "Mochi" in made
    assert all(len(line) <= SENTENCE_LENGTH_MAX + len("Assistant: ") for line in made.splitlines())


@settings(max_examples=60)
@given(st.lists(st.text(max_size=200), max_size=6), st.integers(0, 120))
def test_bounded_whatever_was_said_fits_and_is_summed_up_the_same_way_twice(texts, room):
    said = [message(at, text) for at, text in enumerate(texts, 1)]
    made = summarise(said, room)
    assert estimate(made) <= room
    assert summarise(said, room) == made
