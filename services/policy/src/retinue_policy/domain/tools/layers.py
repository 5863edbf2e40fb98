"""Layers of lists: the first gives, each further one can only take away, and whatever denies wins.

A layer may hold several sections, such as those of the deployment, of a plan and of a tenant. A section that has a list
of what it allows denies everything else; one without is silent about what it does not deny. An empty list allows
nothing. The profile is where tools come from: what it does not allow, nothing can.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from retinue_policy.domain.tools.catalogue import MCP_GLOB, Entry, is_mcp
from retinue_policy.domain.tools.manners import Manner


class Layer(StrEnum):
    """Layers, in their order."""

    PROFILE = "profile"
    PROVIDER = "provider"
    PROFILE_PROVIDER = "profile_provider"
    GLOBAL = "global"
    AGENT = "agent"
    GROUP = "group"
    SANDBOX = "sandbox"
    SUBAGENT = "subagent"


class Said(StrEnum):
    """What a layer says of a tool."""

    ALLOW = "allow"
    DENY = "deny"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Section:
    """Lists of one layer. `unknown` are the entries that mean nothing, as they were written."""

    layer: Layer
    name: str
    allow: tuple[Entry, ...] | None = None
    deny: tuple[Entry, ...] = ()
    manners: tuple[Manner, ...] = ()
    egress: frozenset[str] | None = None
    isolation: str = ""
    unknown: tuple[str, ...] = ()

    def says(self, tool: str) -> tuple[Said, str]:
        """Say what it makes of a tool, by which rule."""
        for entry in self.deny:
            if entry.covers(tool):
                return Said.DENY, f"{self.name}.deny: {entry.text}"
        if self.allow is None:
            return (Said.DENY, f"{self.name}.allow") if self.layer is Layer.PROFILE else (Said.SILENT, "")
        for entry in self.allow:
            if entry.covers(tool):
                return Said.ALLOW, f"{self.name}.allow: {entry.text}"
        return Said.DENY, f"{self.name}.allow"


@dataclass(frozen=True, slots=True)
class Step:
    """What a layer said of a tool, by which rule."""

    layer: Layer
    said: Said
    rule: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What all layers say of a tool, and the step that denied it, if one did."""

    steps: tuple[Step, ...]

    @property
    def denial(self) -> Step | None:
        return next((step for step in self.steps if step.said is Said.DENY), None)

    @property
    def allowed(self) -> bool:
        return self.denial is None


def judge(sections: Sequence[Section], tool: str) -> Judgement:
    """Say what sections make of a tool (or of all that a glob matches), layer by layer; their order changes nothing."""
    return Judgement(tuple(_step(layer, sections, tool) for layer in Layer))


def allows(sections: Sequence[Section], tool: str) -> bool:
    """Say whether `judge` would allow a tool, without saying why."""
    given = any(section.layer is Layer.PROFILE for section in sections)
    return given and all(section.says(tool)[0] is not Said.DENY for section in sections)


def _step(layer: Layer, sections: Iterable[Section], tool: str) -> Step:
    said = [section.says(tool) for section in sections if section.layer is layer]
    for wanted in (Said.DENY, Said.ALLOW):
        rules = [rule for what, rule in said if what is wanted]
        if rules:
            return Step(layer, wanted, min(rules))
    if layer is Layer.PROFILE:
        return Step(layer, Said.DENY, "")
    return Step(layer, Said.SILENT, "")


def offered(sections: Sequence[Section], names: Iterable[str]) -> list[str]:
    """List what may be offered, sorted: of the given names, and of MCP servers' tools what the layers leave.

    The latter are names where lists name them, else globs that stand for the tools that they match.
    """
    entries = [entry for section in sections for entry in section.allow or ()]
    found = {*names, *(name for entry in entries for name in entry.names if is_mcp(name))}
    found |= {entry.glob for entry in entries if entry.glob.startswith("mcp__")}
    if any(entry.covers(MCP_GLOB) for entry in entries):
        found.add(MCP_GLOB)
    return sorted(tool for tool in found if allows(sections, tool))
