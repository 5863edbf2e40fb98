"""Layers of lists: the profile gives, each further layer can only take away, and whatever denies wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_policy.domain.tools.catalogue import BUILT_IN, GROUPS, group_of, is_known, read_entries, read_entry
from retinue_policy.domain.tools.layers import Layer, Said, Section, allows, judge, offered

TEXTS = (*BUILT_IN, *GROUPS, "group:mcp", "*", "mcp__*", "mcp__crm__*", "mcp__crm__get", "memory_*")
STRANGE = ("exce", "group:nope", "sandbox_*", "mcp", "mcp__a", "Read", "")
NAMES = (*BUILT_IN, "mcp__crm__get", "mcp__crm__put", "mcp__mail__send")


def section(layer=Layer.GLOBAL, allow=None, deny=(), name=""):
    known, unknown = read_entries(allow or ())
    denied, strange = read_entries(deny)
    listed = None if allow is None else known
    return Section(Layer(layer), name or layer, listed, denied, unknown=(*unknown, *strange))


GIVING = section("profile", ["*"])
LISTS = st.lists(st.sampled_from(TEXTS), max_size=4)
LOWER = st.builds(section, st.sampled_from([layer for layer in Layer if layer != "profile"]), st.none() | LISTS, LISTS)
SECTIONS = st.tuples(st.builds(section, st.just("profile"), LISTS, LISTS), st.lists(LOWER, max_size=5)).map(
    lambda both: [both[0], *both[1]]
)


def allowed(sections):
    return {tool for tool in NAMES if judge(sections, tool).allowed}


@given(SECTIONS, LOWER)
def test_a_further_layer_never_widens(sections, lower):
    assert allowed([*sections, lower]) <= allowed(sections)


@given(SECTIONS, st.sampled_from(NAMES), st.randoms())
def test_deny_wins_whatever_the_order(sections, tool, random):
    shuffled = [*sections, section("agent", deny=[tool])]
    random.shuffle(shuffled)
    assert tool not in allowed(shuffled)
    assert [judge(shuffled, name) for name in NAMES] == [
        judge([*sections, section("agent", deny=[tool])], name) for name in NAMES
    ]


@given(SECTIONS, st.lists(st.sampled_from(STRANGE), min_size=1), st.sampled_from(list(Layer)), st.data())
def test_unknown_entries_change_nothing_and_are_told(sections, strange, layer, data):
    allow, deny = data.draw(LISTS), data.draw(LISTS)
    plain, odd = section(layer, allow, deny), section(layer, [*strange, *allow], [*deny, *strange])
    assert allowed([*sections, plain]) == allowed([*sections, odd])
    assert set(odd.unknown) == set(strange)
    assert not plain.unknown


@given(SECTIONS, st.sampled_from([*NAMES, "mcp__*", "mcp__crm__*"]))
def test_what_is_allowed_is_what_is_explained_as_allowed(sections, tool):
    for some in (sections, sections[1:]):
        assert allows(some, tool) is judge(some, tool).allowed


@given(SECTIONS)
def test_what_is_offered_is_what_is_allowed(sections):
    found = offered(sections, BUILT_IN)
    assert found == sorted(set(found))
    assert set(found) & set(NAMES) <= allowed(sections)
    assert set(found) & set(BUILT_IN) == allowed(sections) & set(BUILT_IN)


def test_a_tool_comes_from_the_profile_or_not_at_all():
    assert allowed([]) == set()
    assert allowed([section("global", ["*"])]) == set()
    assert allowed([section("profile")]) == set()
    assert allowed([section("profile", []), section("global", ["*"])]) == set()
    assert allowed([GIVING]) == set(NAMES)


def test_an_empty_list_allows_nothing_and_no_list_is_silent():
    assert allowed([GIVING, section("agent", [])]) == set()
    assert allowed([GIVING, section("agent", ["nope"])]) == set(), "a list of nothing known is an empty one"
    assert allowed([GIVING, section("agent")]) == set(NAMES)


def test_groups_and_globs_mean_their_tools():
    assert allowed([section("profile", ["group:files"])]) == {"read", "write", "edit", "list", "delete"}
    assert allowed([section("profile", ["group:run", "memory_*"])]) == {"exec", "python", *GROUPS["group:memory"]}
    assert allowed([section("profile", ["mcp__crm__*"])]) == {"mcp__crm__get", "mcp__crm__put"}
    assert allowed([section("profile", ["group:mcp"], ["mcp__mail__send"])]) == {"mcp__crm__get", "mcp__crm__put"}


def test_every_layer_says_what_it_makes_of_a_tool():
    sections = [
        section("profile", ["group:files"], name="profile.standard"),
        section("global", name="global"),
        section("global", ["read"], name="plan.free"),
        section("agent", deny=["group:files"], name="agent.agt_a"),
    ]
    steps = {step.layer: (step.said, step.rule) for step in judge(sections, "delete").steps}
    assert list(steps) == list(Layer)
    assert steps["profile"] == ("allow", "profile.standard.allow: group:files")
    assert steps["global"] == (Said.DENY, "plan.free.allow")
    assert steps["agent"] == ("deny", "agent.agt_a.deny: group:files")
    assert steps["subagent"] == ("silent", "")
    assert judge(sections, "delete").denial.layer is Layer.GLOBAL, "the first that denies is who decided"
    assert judge(sections, "read").denial.layer is Layer.AGENT


@pytest.mark.parametrize(
    ("lists", "globs"),
    [
        ([["mcp__*"]], ["mcp__*"]),
        ([["*"]], ["mcp__*"]),
        ([["group:mcp"], ["mcp__crm__*"]], ["mcp__crm__*"]),
        ([["group:mcp"], ["mcp__crm__get", "mcp__mail__*"]], ["mcp__crm__get", "mcp__mail__*"]),
        ([["mcp__crm__*"], ["mcp__mail__*"]], []),
        ([["mcp__crm__*"], ["group:files"]], []),
        ([["group:files"]], []),
    ],
)
def test_tools_of_servers_are_offered_as_narrow_as_the_layers_make_them(lists, globs):
    first, *further = lists
    sections = [section("profile", first), *(section("agent", each) for each in further)]
    assert offered(sections, ()) == globs


def test_a_glob_that_is_denied_whole_is_not_offered_and_one_that_is_denied_in_part_is():
    assert offered([GIVING, section("agent", deny=["mcp__*"])], ()) == []
    assert offered([GIVING, section("agent", deny=["mcp__crm__put"])], ()) == ["mcp__*"]


@pytest.mark.parametrize("name", ["mcp__crm__get", "mcp__a-b__c.d/e:f", "exec"])
def test_names_that_there_may_be(name):
    assert is_known(name)
    assert read_entry(name) is not None


@pytest.mark.parametrize("name", ["mcp__", "mcp__crm", "mcp____x", "mcp__a__b c", "mcp__a__b*", "EXEC", "group:files"])
def test_names_that_there_are_not(name):
    assert not is_known(name)


def test_every_tool_is_of_one_group():
    assert {name: group_of(name) for name in ("read", "python", "memory_search", "schedule_task", "mcp__a__b")} == {
        "read": "files",
        "python": "run",
        "memory_search": "memory",
        "schedule_task": "schedule",
        "mcp__a__b": "mcp",
    }
    assert sum(map(len, GROUPS.values())) == len(BUILT_IN)
