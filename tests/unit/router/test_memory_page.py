"""What is remembered, as Markdown: the same bytes for the same facts, bounded, each fact a line of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_router.domain import facts

ONES = st.tuples(
    st.sampled_from(["home", "work"]), st.sampled_from(["note", "profile"]), st.integers(1, 10), st.uuids().map(str),
    st.text(min_size=1).map(lambda text: " ".join(text.split()) or "x"),
)  # fmt: skip


def test_facts_stand_by_domain_and_then_the_most_important_first():
    page = facts.page(
        "ada",
        [
            ("work", "note", 3, "fct_1", "Has a new boss."),
            ("home", "profile", 7, "fct_2", "Has a cat."),
            ("home", "event", 9, "fct_3", "Moves in May."),
        ],
    )
    assert page == (
        "# What is remembered of ada\n\n## home\n\n- Moves in May. (event, 9)\n- Has a cat. (profile, 7)\n"
        "\n## work\n\n- Has a new boss. (note, 3)\n"
    )
    assert facts.page("", [("a", "note", 5, "fct_1", "x")]).startswith("# What is remembered\n")


@given(st.lists(ONES, max_size=20), st.randoms())
def test_the_order_in_which_facts_are_read_changes_no_byte(ones, random):
    page = facts.page("ada", ones)
    random.shuffle(ones)
    assert facts.page("ada", ones) == page
    assert sum(line.startswith("- ") for line in page.split("\n")) == len(ones)


def test_bounded_what_has_no_room_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(facts, "PAGE_SIZE_MAX_BYTES", 100)
    page = facts.page("ada", [("home", "note", n, f"fct_{n}", "猫" * 10) for n in range(1, 11)])
    assert "(note, 10)" in page
    assert "(note, 1)" not in page
    assert page.endswith("\n8 less important facts have no room here.\n")
