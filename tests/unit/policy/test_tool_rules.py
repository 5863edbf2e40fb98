"""Rules as operators write them: whom each section speaks of, what they come to, and what is refused."""

import re
from importlib import resources
from pathlib import Path

import pytest
from retinue_policy.domain.tools.catalogue import BUILT_IN
from retinue_policy.domain.tools.layers import judge
from retinue_policy.domain.tools.manners import Ask, Security
from retinue_policy.domain.tools.ruleset import Who, manners_of
from retinue_policy.operations.rulebook import BadRulesError
from retinue_policy.toml_rules import LIST_LENGTH_MAX, parse

BUNDLED = resources.files("retinue_policy").joinpath("bundled", "tools.toml").read_text("utf-8")

LEAST = """
[defaults]
profile = "p"
[profile.p]
allow = ["*"]
egress = ["api.example.com:443", "example.com:80"]
[global.security."*"]
security = "full"
"""

MORE = (
    LEAST
    + """
[profile.small]
allow = ["read", "list", "nope"]
[profile.p.provider.openai]
deny = ["python"]
[provider.openai]
deny = ["exec"]
[plan.free]
profile = "small"
isolation = "gvisor"
[plan.team]
egress = ["api.example.com:443"]
[tenant.ten_a]
profile = "p"
deny = ["delete"]
isolation = "microvm"
[tenant.ten_b]
isolation = "namespace"
[tenant.ten_b.security.exec]
security = "deny"
[agent.agt_a]
deny = ["edit"]
[group.jobs]
kinds = ["extraction", "nightly_*"]
allow = ["read"]
[group.guests]
runtimes = ["mcp"]
principals = ["usr_guest*"]
deny = ["write"]
[sandbox.gvisor]
deny = ["list"]
[subagent]
deny = ["group:schedule"]
"""
)


def allowed(text, **who):
    sections = parse(text).sections(Who(**{"tenant_id": "ten_x"} | who))
    return {tool for tool in BUILT_IN if judge(sections, tool).allowed}


def taken(text, **who):
    return set(BUILT_IN) - allowed(text, **who)


def test_the_documents_example_can_be_followed():
    text = (Path(__file__).parents[3] / "docs/policy.md").read_text("utf-8")
    (example,) = re.findall(r"^```toml\n(?!# runtimes)(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ruleset = parse(example)
    offer = ruleset.offer(Who("ten_x", plan="team"))
    assert "mcp__crm__*" in offer.tools
    assert (offer.isolation, offer.egress) == ("gvisor", ("api.example.com:443", "files.example.com:443"))
    assert not any(section.unknown for section in ruleset.sections(Who("ten_x", plan="team", kind="digest")))


def test_the_bundled_rules_allow_what_is_built_in_and_ask_before_deleting():
    ruleset = parse(BUNDLED)
    offer = ruleset.offer(Who("ten_x", kind="chat"))
    assert offer.tools == BUILT_IN
    assert (offer.isolation, offer.egress) == ("namespace", ())
    sections = ruleset.sections(Who("ten_x"))
    assert not any(section.unknown for section in sections)
    for tool in BUILT_IN:
        (manner,) = manners_of(sections, tool)
        wanted = (Security.ALLOWLIST, Ask.ON_MISS) if tool == "delete" else (Security.FULL, Ask.OFF)
        assert (manner.security, manner.ask, manner.expire_s) == (*wanted, 300)
    assert not judge(sections, "mcp__crm__get").allowed
    (manner,) = manners_of(sections, "mcp__crm__get")
    assert (manner.security, manner.ask) == (Security.ALLOWLIST, Ask.ON_MISS), "where a profile allows one"


@pytest.mark.parametrize(
    ("who", "gone"),
    [
        ({}, set()),
        ({"provider": "openai"}, {"exec", "python"}),
        ({"provider": "other"}, set()),
        ({"plan": "pro"}, set()),
        ({"tenant_id": "ten_a"}, {"delete"}),
        ({"agent_id": "agt_a"}, {"edit"}),
        ({"kind": "extraction"}, set(BUILT_IN) - {"read"}),
        ({"kind": "nightly_sums"}, set(BUILT_IN) - {"read"}),
        ({"kind": "chat"}, set()),
        ({"runtime": "mcp", "principal": "usr_guest7"}, {"write"}),
        ({"runtime": "mcp", "principal": "usr_1"}, set()),
        ({"runtime": "light", "principal": "usr_guest7"}, set()),
        ({"subagent": True}, {"schedule_task"}),
        ({"tenant_id": "ten_a", "agent_id": "agt_a", "subagent": True}, {"delete", "edit", "schedule_task"}),
    ],
)
def test_each_section_speaks_of_those_it_is_for(who, gone):
    assert taken(MORE, **who) == gone


def test_a_plan_and_a_tenant_choose_the_profile_and_the_tenants_holds():
    assert allowed(MORE, plan="free") == {"read"}, "list is taken by the section of its box"
    assert allowed(MORE, plan="free", tenant_id="ten_a") == set(BUILT_IN) - {"delete"}


@pytest.mark.parametrize(
    ("who", "isolation"),
    [({}, "namespace"), ({"plan": "free"}, "gvisor"), ({"plan": "free", "tenant_id": "ten_b"}, "gvisor")],
)
def test_the_strongest_wall_that_anybody_asks_for_holds(who, isolation):
    assert parse(MORE).offer(Who(**{"tenant_id": "ten_x"} | who)).isolation == isolation
    assert parse(MORE).offer(Who("ten_a", plan="free")).isolation == "microvm"
    stronger = LEAST.replace("[profile.p]", 'isolation = "gvisor"\n[profile.p]')
    assert parse(stronger).offer(Who("ten_x")).isolation == "gvisor"


def test_hosts_are_the_profiles_as_far_as_nobody_narrows_them():
    assert parse(MORE).offer(Who("ten_x")).egress == ("api.example.com:443", "example.com:80")
    assert parse(MORE).offer(Who("ten_x", plan="team")).egress == ("api.example.com:443",)
    assert parse(MORE).offer(Who("ten_x", plan="free")).egress == (), "the small profile opens none"
    wider = LEAST + '[plan.team]\negress = ["evil.example:443"]\n'
    assert parse(wider).offer(Who("ten_x", plan="team")).egress == ()


def test_a_run_without_tools_has_no_box_and_no_hosts():
    offer = parse(LEAST + '[group.none]\nkinds = ["title"]\ndeny = ["*"]\n').offer(Who("ten_x", kind="title"))
    assert (offer.tools, offer.isolation, offer.egress) == ((), "", ())


def test_what_is_denied_by_its_security_or_has_none_is_not_offered():
    assert "exec" not in parse(MORE).offer(Who("ten_b")).tools
    assert "python" in parse(MORE).offer(Who("ten_b")).tools
    unset = LEAST.replace('[global.security."*"]', "[global.security.read]")
    assert parse(unset).offer(Who("ten_x")).tools == ("read",)


def test_unknown_entries_are_told_only_to_those_whom_their_section_speaks_of():
    def unknown(who):
        return [entry for section in parse(MORE).sections(who) for entry in section.unknown]

    assert unknown(Who("ten_x", plan="free")) == ["nope"]
    assert unknown(Who("ten_x")) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "tools.toml: "),
        ("", "defaults"),
        (LEAST.replace('profile = "p"', 'profile = "q"'), "no profile 'q'"),
        (LEAST + '[plan.x]\nprofile = "q"\n', "no profile 'q'"),
        (LEAST + "[profil.x]\n", "profil"),
        (LEAST + "[plan.x]\nallows = []\n", "allows"),
        (LEAST + '[plan.x]\nallow = "read"\n', "array"),
        (LEAST + '[plan.x]\nisolation = "chroot"\n', "chroot"),
        (LEAST + "[sandbox.chroot]\n", "chroot"),
        (LEAST + '[sandbox.gvisor]\nisolation = "microvm"\n', "isolation"),
        (LEAST + '[plan.x.security.exec]\nsecurity = "half"\n', "half"),
        (LEAST + '[plan.x.security.exec]\nask = "off"\n', "security"),
        (LEAST + '[plan.x.security.exec]\nsecurity = "full"\nexpire_s = 0\n', "expire_s"),
        (LEAST + '[plan.x.security.exec]\nsecurity = "full"\nexpire_s = 90000\n', "expire_s"),
        (LEAST + '[plan.x.security.exec]\nsecurity = "allowlist"\nallow = [""]\n', "plan.x.security.exec.allow"),
        (LEAST + '[plan.x]\negress = ["example.com"]\n', "host:port"),
        (LEAST + '[plan.x]\negress = ["*.example.com:443"]\n', "host:port"),
        (LEAST + '[plan.x]\negress = ["example.com:70000"]\n', "host:port"),
        (LEAST + '[plan.x]\negress = ["Example.com:443"]\n', "host:port"),
        (LEAST + f"[plan.x]\ndeny = {['read'] * (LIST_LENGTH_MAX + 1)}\n", "length"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_in_one_line(text, told):
    with pytest.raises(BadRulesError) as caught:
        parse(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [BUNDLED, LEAST, MORE])
def test_a_task_of_memory_can_do_nothing_but_remember_whatever_the_rules_allow(text):
    rules = parse(text)
    for kind in ("memory.extract", "memory.other"):
        assert rules.offer(Who("ten_x", kind=kind)).tools == ("memory_note", "memory_search")
        sections = rules.sections(Who("ten_x", kind=kind))
        denied = {name: judge(sections, name).denial for name in (*BUILT_IN, "mcp__crm__get")}
        assert {name for name, denial in denied.items() if denial is None} == {"memory_note", "memory_search"}
        assert denied["exec"].rule == "memory tasks.allow"
    assert "read" in rules.offer(Who("ten_x", kind="memory")).tools
    forbidden = parse(LEAST + '[group.mine]\nkinds = ["memory.*"]\ndeny = ["memory_note"]\n')
    assert forbidden.offer(Who("ten_x", kind="memory.extract")).tools == ("memory_search",)
