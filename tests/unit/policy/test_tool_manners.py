"""Security and asking: each row of the table, and what several sections come to."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_policy.domain.tools.catalogue import read_entry
from retinue_policy.domain.tools.manners import Ask, Effect, Manner, Security, answer, effect_of, manner_of


def manner(security, ask="off", *patterns, entry="exec", expire_s=300):
    return Manner(f"global.security: {entry}", read_entry(entry), Security(security), Ask(ask), expire_s, patterns)


def decided(manners, call="a", allowed=()):
    return answer(manners, lambda pattern: pattern == call, allowed)


@pytest.mark.parametrize(
    ("security", "ask", "listed", "missed"),
    [
        ("deny", "off", "deny", "deny"),
        ("deny", "on_miss", "deny", "deny"),
        ("deny", "always", "deny", "deny"),
        ("allowlist", "off", "allow", "deny"),
        ("allowlist", "on_miss", "allow", "ask"),
        ("allowlist", "always", "ask", "ask"),
        ("full", "off", "allow", "allow"),
        ("full", "on_miss", "allow", "allow"),
        ("full", "always", "ask", "ask"),
    ],
)
def test_the_table(security, ask, listed, missed):
    assert effect_of(Security(security), Ask(ask), listed=True) == listed
    assert effect_of(Security(security), Ask(ask), listed=False) == missed
    assert decided([manner(security, ask, "a")]).effect == listed, "the rules' own list"
    assert decided([manner(security, ask)], allowed=["b", "a"]).effect == listed, "what persons have allowed"
    assert decided([manner(security, ask, "b")], allowed=["c"]).effect == missed


def test_what_put_a_call_on_the_list_is_told():
    assert decided([manner("allowlist", "on_miss", "a")]).pattern == "a"
    assert decided([manner("allowlist", "on_miss", "b")]).pattern == ""


def test_listing_helps_only_where_nobody_asks_every_time():
    assert decided([manner("allowlist", "on_miss")]).may_list
    assert not decided([manner("full", "always")]).may_list
    assert not decided([manner("allowlist", "on_miss"), manner("full", "always")]).may_list
    assert decided([manner("allowlist", "on_miss"), manner("full", "off")]).may_list


def test_the_shortest_time_for_an_answer_holds():
    asking = [manner("allowlist", "on_miss", expire_s=50), manner("full", "always", expire_s=20)]
    assert decided([*asking, manner("full", "off", expire_s=1)]).expire_s == 20


MANNERS = st.builds(
    lambda security, ask, patterns: manner(security, ask, *patterns),
    st.sampled_from(list(Security)),
    st.sampled_from(list(Ask)),
    st.lists(st.sampled_from(["a", "b"]), max_size=2),
)


@given(st.lists(MANNERS, min_size=1, max_size=4), MANNERS, st.lists(st.sampled_from(["a", "b"]), max_size=1))
def test_a_further_section_never_loosens_and_their_order_changes_nothing(manners, further, allowed):
    order = list(Effect)
    before, after = decided(manners, allowed=allowed).effect, decided([*manners, further], allowed=allowed).effect
    assert order.index(after) >= order.index(before)
    assert {decided(list(each), allowed=allowed).effect for each in permutations(manners)} == {before}


def test_within_a_section_the_most_exact_entry_holds():
    entries = ["*", "group:run", "exec", "mcp__*", "mcp__crm__*", "mcp__crm__get", "group:mcp"]
    manners = [manner("full", entry=entry) for entry in entries]
    found = {tool: manner_of(manners, tool).entry.text for tool in ("exec", "python", "read", "mcp__crm__get")}
    assert found == {"exec": "exec", "python": "group:run", "read": "*", "mcp__crm__get": "mcp__crm__get"}
    assert manner_of(manners, "mcp__crm__put").entry.text == "mcp__crm__*"
    assert manner_of(manners[2:3], "read") is None
