"""Saying what may become of tool calls: layers, then Cedar's rules, then the manner in which a tool may be called, then
the operator's own check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from retinue_kit.metrics import counter

from retinue_policy.domain.rules import Decision
from retinue_policy.domain.snapshot import Tenant
from retinue_policy.domain.tools import layers, manners
from retinue_policy.domain.tools.arguments import host_of, named_path
from retinue_policy.domain.tools.catalogue import BUILT_IN, is_known, is_mcp
from retinue_policy.domain.tools.layers import Judgement, Section, Step
from retinue_policy.domain.tools.manners import Effect
from retinue_policy.domain.tools.patterns import Matcher, pattern_of
from retinue_policy.domain.tools.ruleset import Offer, Ruleset, Who, manners_of
from retinue_policy.domain.tools.summaries import summary_of
from retinue_policy.operations.decisions import Run, Tenants

UNKNOWN = "unknown"

CEDAR = "cedar"
SECURITY = "security"
ALLOWLIST = "allowlist"
APPROVAL = "approval"
HOOK = "hook"

BEFORE_TOOL_CALL = "before_tool_call"
"""The rule by which the operator's own check denies."""

_decided = counter("tool_decisions", "Tool calls that were decided about.", ["effect"])


@dataclass(frozen=True, slots=True)
class Permission:
    """Whether somebody may call a tool at all, by which rule, and why not."""

    permitted: bool
    rule: str
    reason: str


class Permitting(Protocol):
    """Who may call a tool of whom."""

    def permit(self, who: Who, tool: str, facts: Mapping[str, str], *, own_agent: bool) -> Permission:
        """Ask whether somebody may call a tool, where `facts` are known of the arguments. Never raises."""
        ...


class Vetoing(Protocol):
    """Looks at each call that the rules let through or ask about."""

    async def veto(self, who: Who, call: "Call", effect: Effect) -> str:
        """Say why a call may not be made; empty if nothing speaks against it. No answer is a veto."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules for tools that hold at one time, named by what they say."""

    ruleset: Ruleset
    permitting: Permitting
    name: str


class Ruling(Protocol):
    """Where the rules are."""

    @property
    def rules(self) -> Rules:
        """The rules in force."""
        ...

    @property
    def told(self) -> str:
        """Name them, and say why newer ones were refused, if they were."""
        ...


@dataclass(frozen=True, slots=True)
class Scope:
    """Who calls, and in what; see retinue.policy.v1.ToolScope."""

    agent_id: str = ""
    principal: str = ""
    kind: str = ""
    runtime: str = ""
    model: str = ""
    subagent: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `allowed` are tools and patterns that persons have allowed for good; `approved` says that one has
    allowed this very call."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    allowed: Sequence[tuple[str, str]] = ()
    approved: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """What may become of a call, and why; see retinue.policy.v1.ToolDecision."""

    effect: Effect
    layer: str
    rule: str
    reason: str
    pattern: str = ""
    summary: str = ""
    expire_s: int = 0


@dataclass(frozen=True, slots=True)
class Explained:
    """What holds for a tool, and what each layer said."""

    tool: str
    decided: Decided
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What holds for tools; entries that mean nothing, as "layer: entry"; which rules are in force."""

    tools: list[Explained]
    unknown: list[str]
    rules: str


class Tools:
    """Decides about tools, by the rules in force."""

    def __init__(self, tenants: Tenants, ruling: Ruling, vetoing: Vetoing | None = None) -> None:
        """`vetoing` may make what the rules say stricter, and never looser."""
        self._tenants = tenants
        self._ruling = ruling
        self._vetoing = vetoing

    async def authorize(self, tenant_id: str, scope: Scope, call: Call) -> Decided:
        """Decide about a call. Raises what the tenants raise; a refusal is an answer."""
        tenant = await self._tenants.tenant(tenant_id)
        who = who_of(tenant_id, tenant, scope)
        decided = _decide(self._ruling.rules, tenant, who, call)
        if self._vetoing is not None and decided.effect is not Effect.DENY:
            reason = await self._vetoing.veto(who, call, decided.effect)
            decided = Decided(Effect.DENY, HOOK, BEFORE_TOOL_CALL, reason) if reason else decided
        _decided.labels(decided.effect).inc()
        return replace(decided, summary=summary_of(call.tool, call.arguments))

    async def explain(self, tenant_id: str, scope: Scope, tool: str) -> Explanation:
        """Explain what holds for a tool, or for all. Raises what the tenants raise."""
        tenant = await self._tenants.tenant(tenant_id)
        rules, told = self._ruling.rules, self._ruling.told
        who = who_of(tenant_id, tenant, scope)
        sections = rules.ruleset.sections(who)
        found = []
        for name in [tool] if tool else _named(sections):
            steps = layers.judge(sections, name).steps if is_known(name) else ()
            found.append(Explained(name, _decide(rules, tenant, who, Call(name), explaining=True), steps))
        unknown = [f"{section.layer}: {entry}" for section in sections for entry in section.unknown]
        return Explanation(found, sorted(set(unknown)), told)

    def offer(self, tenant_id: str, tenant: Tenant, run: Run, decision: Decision) -> Offer:
        """Say what a run may be offered; implements operations.decisions.Offering."""
        scope = Scope(run.agent_id, run.principal, run.kind, decision.runtime, decision.model)
        return self._ruling.rules.ruleset.offer(who_of(tenant_id, tenant, scope))


def who_of(tenant_id: str, tenant: Tenant, scope: Scope) -> Who:
    """Say for whom, and in what, a tool would be called."""
    provider, slash, _ = scope.model.partition("/")
    return Who(
        tenant_id=tenant_id,
        plan=tenant.plan,
        agent_id=scope.agent_id or tenant.agent_id,
        principal=scope.principal,
        kind=scope.kind,
        runtime=scope.runtime,
        provider=provider if slash else "",
        subagent=scope.subagent,
    )


def _named(sections: Sequence[Section]) -> list[str]:
    """List the tools that there are, and those of MCP servers that lists name."""
    lists = [(*(section.allow or ()), *section.deny) for section in sections]
    return sorted(
        {*BUILT_IN, *(name for entries in lists for entry in entries for name in entry.names if is_mcp(name))}
    )


def _decide(rules: Rules, tenant: Tenant, who: Who, call: Call, *, explaining: bool = False) -> Decided:
    if not is_known(call.tool):
        return Decided(Effect.DENY, layers.Layer.GLOBAL, UNKNOWN, "There is no tool of this name.")
    sections = rules.ruleset.sections(who)
    refused = _by_layers(layers.judge(sections, call.tool), call.tool) or _by_cedar(rules.permitting, tenant, who, call)
    if refused is not None:
        return refused
    holding = manners_of(sections, call.tool)
    if not holding:
        return Decided(Effect.DENY, SECURITY, "unset", f"No rule says how {call.tool} may be called.")
    return _by_manners(holding, call, explaining=explaining)


def _by_layers(judgement: Judgement, tool: str) -> Decided | None:
    denial = judgement.denial
    if denial is None:
        return None
    section, denies, _ = denial.rule.partition(".deny: ")
    if denies:
        reason = f"{tool} is denied by {section}."
    else:
        reason = f"{tool} is not among the tools that {section.removesuffix('.allow')} allows."
    return Decided(Effect.DENY, denial.layer, denial.rule, reason)


def _by_cedar(permitting: Permitting, tenant: Tenant, who: Who, call: Call) -> Decided | None:
    known = {"path": named_path(call.tool, call.arguments), "host": host_of(call.arguments)}
    facts = {name: value for name, value in known.items() if value}
    own_agent = who.agent_id in ("", tenant.agent_id) or not tenant.agent_id
    permission = permitting.permit(who, call.tool, facts, own_agent=own_agent)
    return None if permission.permitted else Decided(Effect.DENY, CEDAR, permission.rule, permission.reason)


def _by_manners(holding: Sequence[manners.Manner], call: Call, *, explaining: bool) -> Decided:
    allowed = [pattern for tool, pattern in call.allowed if tool == call.tool]
    matches: Callable[[str], bool] = _never if explaining else Matcher(call.tool, call.arguments)
    answer = manners.answer(holding, matches, allowed)
    rule, effect = answer.manner.rule, answer.effect
    listing = answer.manner.security is manners.Security.ALLOWLIST
    layer = ALLOWLIST if listing else SECURITY
    if effect is Effect.ASK and call.approved:
        return Decided(Effect.ALLOW, APPROVAL, rule, "A person has allowed this call.")
    if effect is Effect.ASK:
        pattern = pattern_of(call.tool, call.arguments) if answer.may_list and not explaining else ""
        reason = f"This call of {call.tool} needs a person's word."
        return Decided(effect, layer, rule, reason, pattern, expire_s=answer.expire_s)
    if effect is Effect.DENY:
        reason = f"This call of {call.tool} is not on the list of what is allowed."
        return Decided(effect, layer, rule, reason if listing else f"{call.tool} may not be called.")
    if listing:
        return Decided(effect, layer, f"{rule}: {answer.pattern}", "This call is on the list of what is allowed.")
    return Decided(effect, layer, rule, f"{call.tool} may be called.")


def _never(_: str) -> bool:
    """Of a call about whose arguments nothing is known, no pattern can be said to mean it."""
    return False
