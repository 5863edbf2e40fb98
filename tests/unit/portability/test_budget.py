"""A context within its budget: shares, whole messages, and nothing that is missing in silence."""

from collections import Counter

import pytest
from conversations import composed, content, fact, message
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_kit.tokens import estimate
from retinue_portability.domain import budget
from retinue_portability.domain.content import Attachment, Cursor, Profile, Summary, ToolCall

TEXTS = st.one_of(
    st.text(max_size=60), st.sampled_from(["My cat is called Mochi. " * 40, "我的猫叫麻糬。" * 60, "a" * 3000])
)


def call(at, size=40):
    return ToolCall("c1", "read_file", "{}", True, "r" * size, f"run_{at}", Cursor(at, 2))


@st.composite
def contexts(draw):
    roles = st.sampled_from(["user", "assistant"])
    said = draw(st.lists(st.tuples(roles, TEXTS), max_size=12))
    recorded = draw(st.sampled_from(["", "Ann is planning a party.", "long " * 900]))
    summary = Summary(recorded, Cursor(0, 1), 5, "model") if recorded else Summary()
    return content(
        profile=Profile(draw(TEXTS), "web", draw(TEXTS)),
        summary=summary,
        messages=tuple(message(at, text, role) for at, (role, text) in enumerate(said, 1)),
        facts=tuple(fact(at, text) for at, text in enumerate(draw(st.lists(TEXTS, max_size=5)))),
        calls=tuple(call(at, draw(st.integers(0, 300))) for at in range(draw(st.integers(0, 5)))),
        attachments=tuple(Attachment(f"{at}.md", "") for at in range(draw(st.integers(0, 4)))),
    )


@settings(max_examples=120)
@given(contexts(), st.one_of(st.integers(0, 300), st.integers(300, 8000)))
def test_bounded_a_context_never_has_more_tokens_than_it_may_and_all_that_is_missing_is_counted(whole, room):
    small, taken = budget.fit(whole, room)
    assert small.token_count() <= room
    summed = small.summary.message_count - whole.summary.message_count
    assert len(small.messages) + summed == len(whole.messages)
    kept = whole.messages[len(whole.messages) - len(small.messages) :]
    cut = sum(new.text != old.text for new, old in zip(small.messages, kept, strict=True))
    assert [new.cursor for new in small.messages] == [old.cursor for old in kept]
    assert taken["messages", budget.CUT] == cut
    for part, before, after in (
        ("facts", whole.facts, small.facts),
        ("tool_calls", whole.calls, small.calls),
        ("attachments", whole.attachments, small.attachments),
    ):
        assert taken[part, budget.OVER] == len(before) - len(after)
    assert budget.fit(whole, room) == (small, taken)


def test_what_fits_is_left_as_it_is():
    whole = content(
        messages=tuple(message(at, f"say {at}") for at in range(1, 20)), summary=Summary("x", None, 2, "model")
    )
    assert budget.fit(whole, 5000) == (whole, Counter())


def test_the_newest_turns_stay_as_they_were_said_from_a_users_message_on():
    said = [message(at, f"{at} " + "w" * 396, "user" if at % 2 else "assistant") for at in range(1, 41)]
    small, _ = budget.fit(content(messages=tuple(said)), 2000)
    assert small.messages[0].role == "user"
    assert list(small.messages) == said[-len(small.messages) :]
    assert 10 <= len(small.messages) < 20
    assert small.summary.method == "extract"
    assert small.summary.through == said[-len(small.messages) - 1].cursor


def test_one_pasted_book_is_cut_in_its_middle_and_does_not_cost_the_rest():
    book = "It was the best of times. " * 2000 + "The end."
    said = [
        message(1, "My cat is called Mochi"),
        message(2, book),
        message(3, "thanks", "assistant"),
        message(4, "so?"),
    ]
    small, taken = budget.fit(content(messages=tuple(said)), 4000)
    assert len(small.messages) == 4
    middle = small.messages[1].text
    assert middle.startswith("It was the best")
    assert middle.endswith("The end.")
    assert "characters left out" in middle
    assert taken == {("messages", budget.CUT): 1}
    assert estimate(middle) > 1500


def test_the_last_message_alone_may_fill_the_room():
    small, taken = budget.fit(content(messages=(message(1, "a"), message(2, "b" * 9000))), 1000)
    assert estimate(small.messages[-1].text) > 700
    assert taken["messages", budget.CUT] == 1


@pytest.mark.parametrize(("before", "after"), [("model", "mixed"), ("mixed", "mixed"), ("extract", "extract")])
def test_a_summary_that_is_continued_by_rule_says_so(before, after):
    said = tuple(message(at, f"My number {at} is {at * 7}. " + "w" * 200) for at in range(1, 60))
    whole = content(messages=said, summary=Summary("Ann likes tea.", Cursor(0, 1), 8, before))
    small, _ = budget.fit(whole, 800)
    assert small.summary.text.startswith("Ann likes tea.\nUser: My number")
    assert small.summary.method == after
    assert small.summary.message_count == 8 + 59 - len(small.messages)


def test_important_facts_come_before_others_and_a_long_one_gives_way():
    facts = (fact(1, "x" * 400, 9), fact(2, "Ann likes tea", 8), fact(3, "Ann has a cat", 7))
    small, taken = budget.fit(content(facts=facts), 200)
    assert [one.fact_id for one in small.facts] == ["fct_0002", "fct_0003"]
    assert taken == {("facts", budget.OVER): 1}


def test_facts_that_are_known_twice_are_told_once_by_the_more_important():
    facts = [fact(2, "Ann likes tea", 3), fact(1, "Ann likes tea", 8), fact(3, "y" * 3000)]
    made = composed([], facts=facts)
    assert [(one.fact_id, len(one.text)) for one in made.content.facts] == [("fct_0001", 13), ("fct_0003", 2000)]
    assert made.taken["facts", budget.CUT] == 1


@pytest.mark.parametrize("text", ["plain words " * 50, "我的猫叫麻糬。" * 50, "ß€😀" * 70])
@pytest.mark.parametrize("room", [0, 5, 12, 40, 10_000])
def test_bounded_a_cut_text_has_no_more_tokens_than_it_may(text, room):
    made = budget.cut(text, room)
    assert estimate(made) <= room
    assert (made == text) == (estimate(text) <= room)
