"""The rules of a deployment: which sections speak of whom, and what all of them come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retinue_policy.domain.tools import layers
from retinue_policy.domain.tools.catalogue import BUILT_IN, read_entries
from retinue_policy.domain.tools.layers import Layer, Section
from retinue_policy.domain.tools.manners import Manner, Security, manner_of
from retinue_policy.domain.tools.wildcards import name_matches

ISOLATIONS = ("namespace", "gvisor", "microvm")
"""What stands between a box and the machine, from the weakest to the strongest."""

MEMORY_KINDS = "memory."
"""How the kinds of the mesh's own tasks begin that read a conversation to remember what was said."""

MEMORY_TASKS = Section(Layer.GROUP, "memory tasks", allow=read_entries(["group:memory"])[0])
"""They read what anybody may have said, so that they can do nothing but remember, whatever other rules allow."""


@dataclass(frozen=True, slots=True)
class Who:
    """For whom, and in what, a tool would be called. Empty text means that it is not known."""

    tenant_id: str
    plan: str = ""
    agent_id: str = ""
    principal: str = ""
    kind: str = ""
    runtime: str = ""
    provider: str = ""
    subagent: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that have something in common; globs with `*`. A list that is empty leaves the choice open."""

    section: Section
    kinds: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    principals: tuple[str, ...] = ()

    def holds(self, who: Who) -> bool:
        """Whether somebody's calls are among them."""
        wanted = ((self.kinds, who.kind), (self.runtimes, who.runtime), (self.principals, who.principal))
        return all(not globs or any(name_matches(glob, value) for glob in globs) for globs, value in wanted)


@dataclass(frozen=True, slots=True)
class Profile:
    """Where tools come from: a section, and one for each provider of models that it narrows further."""

    section: Section
    providers: Mapping[str, Section] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a run may be offered: tools by name, the weakest wall that will do, and hosts as "host:port"."""

    tools: tuple[str, ...]
    isolation: str
    egress: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All rules; sections by what they are for."""

    default_profile: str
    profiles: Mapping[str, Profile]
    everybody: Section
    providers: Mapping[str, Section] = field(default_factory=dict)
    plans: Mapping[str, Section] = field(default_factory=dict)
    tenants: Mapping[str, Section] = field(default_factory=dict)
    agents: Mapping[str, Section] = field(default_factory=dict)
    groups: Sequence[Group] = ()
    sandboxes: Mapping[str, Section] = field(default_factory=dict)
    subagent: Section | None = None
    plan_profiles: Mapping[str, str] = field(default_factory=dict)
    tenant_profiles: Mapping[str, str] = field(default_factory=dict)

    def sections(self, who: Who) -> tuple[Section, ...]:
        """List the sections that speak of somebody, in the order of their layers."""
        found = self._outside_box(who)
        sandbox = self.sandboxes.get(_isolation(found))
        found += [section for section in (sandbox, self.subagent if who.subagent else None) if section is not None]
        return tuple(found)

    def _outside_box(self, who: Who) -> list[Section]:
        default = self.plan_profiles.get(who.plan, self.default_profile)
        profile = self.profiles[self.tenant_profiles.get(who.tenant_id, default)]
        found = (
            profile.section,
            self.providers.get(who.provider),
            profile.providers.get(who.provider),
            self.everybody,
            self.plans.get(who.plan),
            self.tenants.get(who.tenant_id),
            self.agents.get(who.agent_id),
            *(group.section for group in self.groups if group.holds(who)),
            MEMORY_TASKS if who.kind.startswith(MEMORY_KINDS) else None,
        )
        return [section for section in found if section is not None]

    def offer(self, who: Who) -> Offer:
        """Say what somebody's run may be offered; without a tool there is no box either."""
        sections = self.sections(who)
        tools = tuple(tool for tool in layers.offered(sections, BUILT_IN) if not _never(sections, tool))
        if not tools:
            return Offer((), "", ())
        return Offer(tools, _isolation(sections), _egress(sections))


def manners_of(sections: Sequence[Section], tool: str) -> list[Manner]:
    """List how a tool may be called, as each section says that says anything; none means that nobody trusts it."""
    found = (manner_of(section.manners, tool) for section in sections)
    return [manner for manner in found if manner is not None]


def _never(sections: Sequence[Section], tool: str) -> bool:
    manners = manners_of(sections, tool)
    return not manners or any(manner.security is Security.DENY for manner in manners)


def _isolation(sections: Sequence[Section]) -> str:
    """Take the strongest wall that any section asks for."""
    return ISOLATIONS[max((ISOLATIONS.index(each.isolation) for each in sections if each.isolation), default=0)]


def _egress(sections: Sequence[Section]) -> tuple[str, ...]:
    """Take what the profile opens, and every further list leaves open."""
    first, *others = sections
    opened = set(first.egress or ())
    for section in others:
        if section.egress is not None:
            opened &= section.egress
    return tuple(sorted(opened))
