"""What may become of a call, with the bundled rules and with others: who decides, why, and what could be allowed."""

import asyncio

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_policy.cedar import CedarRules
from retinue_policy.domain.rules import Decision
from retinue_policy.domain.snapshot import Tenant
from retinue_policy.domain.tools.catalogue import BUILT_IN
from retinue_policy.domain.tools.ruleset import Who
from retinue_policy.operations.decisions import Run
from retinue_policy.operations.rulebook import BadRulesError, Rulebook
from retinue_policy.operations.tools import Call, Scope, Tools
from retinue_policy.rule_files import SCHEMA, RuleFiles, bundled

SOURCE = RuleFiles(None)
TOML, CEDAR = SOURCE.read().values()
CONNECTED = TOML.replace('"group:schedule"]', '"group:schedule", "mcp__crm__*"]')
CHAT = Scope(agent_id="agt_a", kind="chat", runtime="light", model="openai/x")


class Source(RuleFiles):
    """Files that a test writes."""

    def __init__(self, toml=TOML, cedar=CEDAR):
        super().__init__(None)
        self.texts = {"tools.toml": toml, "tools.cedar": cedar}

    def read(self):
        if self.texts is None:
            raise BadRulesError("the folder is gone")
        return dict(self.texts)


class Tenants:
    """Two tenants."""

    def __init__(self, **fields):
        self.fields = fields

    async def tenant(self, tenant_id):
        if tenant_id not in ("ten_a", "ten_b"):
            raise RetinueError(Reason.TENANT_NOT_FOUND, "There is no such tenant.")
        return Tenant(agent_id=tenant_id.replace("ten_", "agt_"), **self.fields)


def tools(toml=TOML, cedar=CEDAR, **tenant):
    return Tools(Tenants(**tenant), Rulebook(Source(toml, cedar)))


def decide(call, *, scope=CHAT, tenant="ten_a", given=None):
    return asyncio.run((given or tools()).authorize(tenant, scope, call))


def told(decided):
    return decided.effect, decided.layer, decided.rule


def with_rules(text):
    return TOML + text


def test_what_is_built_in_is_allowed_and_deleting_is_asked_about():
    given = tools()
    for tool in set(BUILT_IN) - {"delete"}:
        assert told(decide(Call(tool), given=given)) == ("allow", "security", "global.security: *")
    decided = decide(Call("delete", {"path": "notes/a.md"}), given=given)
    assert told(decided) == ("ask", "allowlist", "global.security: delete")
    assert (decided.pattern, decided.expire_s) == ("notes/a.md", 300)
    assert decided.summary == "Delete notes/a.md"
    assert decided.reason.endswith(".")


def test_what_a_person_allowed_once_or_for_good_is_allowed_and_nothing_else():
    call = Call("delete", {"path": "a"})
    assert told(decide(Call("delete", {"path": "a"}, approved=True)))[:2] == ("allow", "approval")
    for allowed, effect in (
        ([("delete", "a")], "allow"),
        ([("delete", "b"), ("delete", "*")], "allow"),
        ([("delete", "b")], "ask"),
        ([("write", "a")], "ask"),
        ([("delete", "-r a")], "ask"),
    ):
        assert decide(Call(call.tool, call.arguments, allowed)).effect == effect, allowed
    assert told(decide(Call("delete", {"path": "a"}, [("delete", "a")]))) == (
        *("allow", "allowlist"),
        "global.security: delete: a",
    )


def test_a_persons_word_opens_nothing_that_is_denied():
    given = tools(with_rules('[agent.agt_a]\ndeny = ["delete"]\n'))
    everything = Call("delete", {"path": "a"}, [("delete", "**")], approved=True)
    assert told(decide(everything, given=given)) == ("deny", "agent", "agent.agt_a.deny: delete")
    given = tools(with_rules('[tenant.ten_a.security.delete]\nsecurity = "deny"\n'))
    assert told(decide(everything, given=given)) == ("deny", "security", "tenant.ten_a.security: delete")
    given = tools(cedar=CEDAR + '@id("none") forbid (principal, action, resource);')
    assert told(decide(everything, given=given)) == ("deny", "cedar", "none")


@pytest.mark.parametrize("tool", ["sandbox_exec", "rm", "mcp__crm", "mcp__*", "EXEC", "group:files", "*"])
def test_a_tool_that_there_is_not_is_denied(tool):
    decided = decide(Call(tool, approved=True))
    assert told(decided) == ("deny", "global", "unknown")
    assert decided.reason == "There is no tool of this name."


def test_tools_of_servers_are_nobodys_until_a_profile_allows_them_and_asked_about_then():
    call = Call("mcp__crm__get", {"id": 5.0})
    assert told(decide(call)) == ("deny", "profile", "profile.standard.allow")
    assert decide(call).reason == "mcp__crm__get is not among the tools that profile.standard allows."
    given = tools(CONNECTED + '[agent.agt_a]\ndeny = ["mcp__crm__a.b"]\n')
    assert decide(Call("mcp__crm__a.b"), given=given).reason == "mcp__crm__a.b is denied by agent.agt_a."
    decided = decide(call, given=tools(CONNECTED))
    assert told(decided) == ("ask", "allowlist", "global.security: group:mcp")
    assert (decided.pattern, decided.summary) == ('{"id":5}', 'Call get of crm with {"id":5}')
    assert decide(Call("mcp__mail__get"), given=tools(CONNECTED)).layer == "profile"


def test_a_plan_without_servers_is_one_by_cedar():
    call = Call("mcp__crm__get")
    assert told(decide(call, given=tools(CONNECTED, plan="free"))) == ("deny", "cedar", "free_has_no_servers")
    assert decide(call, given=tools(CONNECTED, plan="pro")).effect == "ask"
    assert decide(Call("read"), given=tools(CONNECTED, plan="free")).effect == "allow"


def test_no_cross_tenant_an_agent_calls_no_tool_of_another_tenant():
    for tool in BUILT_IN:
        decided = decide(Call(tool, approved=True), scope=Scope(agent_id="agt_b", kind="chat"))
        assert told(decided) == ("deny", "cedar", "cross_tenant")
    assert decide(Call("read"), scope=Scope(agent_id="agt_b"), tenant="ten_b").effect == "allow"
    assert decide(Call("read"), scope=Scope(kind="chat")).effect == "allow", "no agent said: the tenant's own"


def test_a_tenant_that_is_not_there_has_no_tools():
    for asking in (tools().authorize("ten_x", CHAT, Call("read")), tools().explain("ten_x", CHAT, "")):
        with pytest.raises(RetinueError) as caught:
            asyncio.run(asking)
        assert caught.value.reason is Reason.TENANT_NOT_FOUND


def test_asked_every_time_nothing_can_be_allowed_for_good():
    given = tools(with_rules('[tenant.ten_a.security.exec]\nsecurity = "full"\nask = "always"\nexpire_s = 60\n'))
    decided = decide(Call("exec", {"command": "ls"}, [("exec", "ls *")]), given=given)
    assert told(decided) == ("ask", "security", "tenant.ten_a.security: exec")
    assert (decided.pattern, decided.expire_s) == ("", 60)


def test_a_list_without_asking_lets_through_what_is_on_it_alone():
    manner = 'security = "allowlist"\nallow = ["git status *", "ls"]\n'
    given = tools(with_rules(f"[plan.team.security.exec]\n{manner}"), plan="team")
    assert decide(Call("exec", {"command": "git status -s"}), given=given).effect == "allow"
    assert decide(Call("exec", {"command": "ls"}), given=given).effect == "allow"
    for command in ("git status; rm -rf .", "git log", "ls -l"):
        assert told(decide(Call("exec", {"command": command}), given=given))[:2] == ("deny", "allowlist")


RULES = """
permit (principal, action, resource);
@id("no_secrets")
forbid (principal, action, resource) when { context has path && context.path like "secret*" };
@id("this_host_only")
forbid (principal, action, resource) when { context has host && context.host != "example.com" };
@id("guests_read")
forbid (principal is User, action, resource) unless { resource.name == "read" };
@id("no_jobs")
forbid (principal, action, resource) when { context.kind == "job" || context.provider == "bad" || context.subagent };
"""


@pytest.mark.parametrize(
    ("call", "scope", "rule"),
    [
        (Call("read", {"path": "a"}), CHAT, ""),
        (Call("read", {"path": "a/../secret/x"}), CHAT, "no_secrets"),
        (Call("read", {"path": "/workspace/secret"}), CHAT, "no_secrets"),
        (Call("read", {}), CHAT, ""),
        (Call("exec", {"url": "https://example.com/"}), CHAT, ""),
        (Call("exec", {"url": "https://evil.example/"}), CHAT, "this_host_only"),
        (Call("read"), Scope(principal="usr_1"), ""),
        (Call("write"), Scope(principal="usr_1"), "guests_read"),
        (Call("write"), Scope(kind="job"), "no_jobs"),
        (Call("write"), Scope(model="bad/x"), "no_jobs"),
        (Call("write"), Scope(model="bad"), ""),
        (Call("write"), Scope(subagent=True), "no_jobs"),
    ],
)
def test_cedar_knows_who_calls_what_and_with_which_path_or_host(call, scope, rule):
    decided = decide(call, scope=scope, given=tools(cedar=RULES))
    assert (decided.effect, decided.rule if rule else "") == ("deny" if rule else "allow", rule)


def test_what_no_rule_permits_and_what_cannot_be_evaluated_is_refused():
    nothing = CedarRules({"a.cedar": "forbid (principal, action, resource) when { false };"}, bundled(SCHEMA))
    found = nothing.permit(Who("ten_a"), "read", {}, own_agent=True)
    assert (found.permitted, found.rule) == (False, "none")
    # Cedar itself passes over a rule that fails, and over what it forbids.
    source = "permit (principal, action, resource); forbid (principal, action, resource) when { %s };"
    failing = CedarRules({"a.cedar": source % "9223372036854775807 + 1 == 0"}, bundled(SCHEMA))
    found = failing.permit(Who("ten_a"), "read", {}, own_agent=True)
    assert (found.permitted, found.rule) == (False, "error")


@pytest.mark.parametrize(
    "text",
    [
        "permit (principal, action",
        'permit (principal, action, resource) when { context.path == "x" };',
        "permit (principal, action, resource) when { resource.owner == principal };",
        'permit (principal, action == Action::"call_tol", resource);',
        "permit (principal == ?principal, action, resource);",
    ],
)
def test_rules_that_cedar_finds_wrong_are_refused_by_the_name_of_their_file(text):
    with pytest.raises(BadRulesError) as caught:
        CedarRules({"own.cedar": text}, bundled(SCHEMA))
    assert str(caught.value).startswith("own.cedar: ")
    assert "\n" not in str(caught.value)


def test_all_tools_are_explained_layer_by_layer():
    given = tools(
        with_rules('[agent.agt_a]\ndeny = ["edit", "mcp__crm__put", "nope"]\n[agent.agt_b]\ndeny = ["no2"]\n')
    )
    found = asyncio.run(given.explain("ten_a", CHAT, ""))
    assert [each.tool for each in found.tools] == sorted([*BUILT_IN, "mcp__crm__put"])
    by_name = {each.tool: each for each in found.tools}
    assert told(by_name["edit"].decided) == ("deny", "agent", "agent.agt_a.deny: edit")
    assert told(by_name["delete"].decided)[:2] == ("ask", "allowlist")
    assert by_name["delete"].decided.pattern == "", "about its arguments nothing is known"
    assert [step.layer for step in by_name["edit"].steps][:1] == ["profile"]
    assert found.unknown == ["agent: nope"], "not what was written for others"
    (one,) = asyncio.run(given.explain("ten_a", CHAT, "mcp__x__y")).tools
    assert told(one.decided)[0] == "deny"
    (strange,) = asyncio.run(given.explain("ten_a", CHAT, "nonsense")).tools
    assert (told(strange.decided), strange.steps) == (("deny", "global", "unknown"), ())


async def test_newer_rules_hold_at_once_and_bad_ones_leave_the_old_in_force():
    source = Source()
    book = Rulebook(source)
    first = book.rules
    await book.look()
    assert (book.rules, book.told) == (first, first.name)
    source.texts["tools.toml"] = "["
    await book.look()
    assert book.rules is first
    assert book.told.startswith(f"{first.name}; newer files are refused: tools.toml: ")
    source.texts = {"tools.toml": TOML, "tools.cedar": CEDAR, "own.cedar": "permit"}
    await book.look()
    assert book.rules is first
    assert "own.cedar" in book.told
    source.texts = None
    await book.look()
    assert "the folder is gone" in book.told
    source.texts = {"tools.toml": TOML + "# newer\n", "tools.cedar": CEDAR}
    await book.look()
    assert book.told == book.rules.name != first.name
    source.texts = {"tools.toml": TOML, "tools.cedar": CEDAR}
    await book.look()
    assert book.told == first.name, "rules are named by what they say"


OF_AGENT = CEDAR + '@id("of_agent") forbid (principal in Agent::"agt_a", action, resource);'
OF_USER = CEDAR + '@id("of_user") forbid (principal == User::"usr_1", action, resource);'


@pytest.mark.parametrize(
    ("scope", "of_agent", "of_user"),
    [
        (CHAT, "deny", "allow"),
        (Scope("agt_a", "usr_1", "chat", "light"), "deny", "deny"),
        (Scope("agt_a", "usr_2", "digest", "openclaw"), "deny", "allow"),
        (Scope("", "usr_1", "mcp", "mcp"), "allow", "deny"),
    ],
)
def test_cedar_knows_who_asked_for_a_run_and_whose_agent_makes_it(scope, of_agent, of_user):
    assert decide(Call("read"), scope=scope, given=tools(cedar=OF_AGENT)).effect == of_agent
    assert decide(Call("read"), scope=scope, given=tools(cedar=OF_USER)).effect == of_user


def test_a_group_of_principals_means_runs_and_what_they_are_offered():
    given = tools(with_rules('[group.guests]\nprincipals = ["guest_*"]\ndeny = ["exec"]\n'))
    for principal, effect in (("guest_1", "deny"), ("usr_1", "allow"), ("", "allow")):
        scope = Scope("agt_a", principal, "chat", "light")
        assert decide(Call("exec", {"command": "ls"}), scope=scope, given=given).effect == effect
        run = Run("run_a", "chat", "", "", None, tool_transaction_open=False, agent_id="agt_a", principal=principal)
        decision = Decision("light", "m", "shared", switches_runtime=False, limits=None, rules=())
        offered = given.offer("ten_a", Tenant(agent_id="agt_a"), run, decision).tools
        assert ("exec" in offered) is (effect == "allow")


class Veto:
    """An operator's check that answers what a test says, and keeps what it is asked."""

    def __init__(self, reason):
        self.reason = reason
        self.asked = []

    async def veto(self, who, call, effect):
        self.asked.append((who.tenant_id, who.principal, call.tool, effect))
        return self.reason


def test_the_operators_check_makes_rules_stricter_and_never_looser():
    closed, idle = Veto("Not on Sundays."), Veto("")
    for veto, effects in ((closed, ["deny", "deny", "deny"]), (idle, ["allow", "ask", "deny"])):
        given = Tools(Tenants(), Rulebook(Source()), veto)
        calls = [Call("read"), Call("delete", {"path": "a"}), Call("nonsense")]
        assert [decide(call, given=given).effect for call in calls] == effects
        assert veto.asked == [("ten_a", "", "read", "allow"), ("ten_a", "", "delete", "ask")], "what is denied is"
    decided = decide(Call("delete", {"path": "a"}, approved=True), given=Tools(Tenants(), Rulebook(Source()), closed))
    assert told(decided) == ("deny", "hook", "before_tool_call")
    assert (decided.reason, decided.pattern, decided.summary) == ("Not on Sundays.", "", "Delete a")
