"""How a summary is asked for, and bounded."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_kit.tokens import estimate
from retinue_local.offline_summary import ASKED, summary_of
from retinue_runtime_adapter.plain import prompt
from retinue_runtime_adapter.plain.summarizing import within

texts = st.text(st.characters(exclude_categories=("Cs",)))


@settings(max_examples=30)
@given(texts, st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts)), st.integers(1, 16_000))
def test_material_is_one_object_a_line_so_that_no_text_can_pass_for_another(former, lines, tokens):
    system, user = prompt.summary(former, lines, tokens)
    found = [json.loads(line) for line in user["content"].split("\n") if line]
    expected = [{"notes": former}] if former else []
    assert found == [*expected, *({"role": role, "text": text} for role, text in lines)]
    assert (system["role"], user["role"]) == ("system", "user")


def test_the_bound_is_told_in_words_and_the_offline_model_knows_the_question():
    system, user = prompt.summary("", [("user", "My cat is Tom. It is grey.")], 100)
    assert "at most 60 words" in system["content"]
    assert system["content"].startswith(ASKED)
    assert summary_of(system["content"], user["content"]).split("\n")[1:] == ["My cat is Tom."]


@settings(max_examples=50)
@given(st.text("ab c.我。\n"), st.integers(1, 30))
def test_bounded_a_summary_is_cut_to_its_tokens(text, tokens):
    kept = within(text, tokens)
    assert estimate(kept) <= tokens
    assert text.startswith(kept)
    if estimate(text) <= tokens:
        assert kept == text


def test_a_summary_that_is_too_long_is_cut_at_the_end_of_a_sentence():
    assert within("One cat. Two dogs. Three birds sing.", 6) == "One cat. Two dogs."
    assert within("A single endless sentence without an end", 3) == "A single end"


def test_the_offline_summary_keeps_the_newest_lines_that_fit_and_says_nothing_twice():
    instruction = f"{ASKED}. Write at most 6 words."
    lines = [{"notes": "Has a cat.\nLives in Rome."}, {"role": "user", "text": "#tokens=3 Likes tea. And more."}]
    lines += [{"role": "assistant", "text": "Noted."}, {"role": "user", "text": "Likes tea."}]
    said = "\n".join(json.dumps(line) for line in [*lines, ["odd"]]) + "\nodd"
    assert summary_of(instruction, said).split("\n")[1:] == ["Lives in Rome.", "Likes tea."]
    assert summary_of("Be kind.", said) is None
