"""The names that tools have, and what an entry of a list means by them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from retinue_policy.domain.tools.wildcards import STAR, name_matches

GROUPS: dict[str, tuple[str, ...]] = {
    "group:files": ("read", "write", "edit", "list", "delete"),
    "group:run": ("exec", "python"),
    "group:memory": ("memory_note", "memory_search"),
    "group:schedule": ("schedule_task",),
}

BUILT_IN = tuple(sorted(name for names in GROUPS.values() for name in names))
"""Tools that every deployment has."""

MCP_GROUP = "group:mcp"
MCP_GLOB = "mcp__*"
"""Tools of MCP servers, `mcp__SERVER__TOOL`: which there are is known where the servers are."""

_MCP_NAME = re.compile(r"mcp__[A-Za-z0-9._-]+?__[A-Za-z0-9._:/-]+")
_MCP_ENTRY = re.compile(r"mcp__[A-Za-z0-9._:/*-]*")


def is_mcp(name: str) -> bool:
    """Whether a name is one that a tool of an MCP server may have."""
    return _MCP_NAME.fullmatch(name) is not None


def is_known(name: str) -> bool:
    """Whether there is, or may be, a tool of this name."""
    return name in BUILT_IN or is_mcp(name)


def group_of(name: str) -> str:
    """Name the group of a known tool, without its prefix."""
    for group, names in GROUPS.items():
        if name in names:
            return group.partition(":")[2]
    return MCP_GROUP.partition(":")[2]


@dataclass(frozen=True, slots=True)
class Entry:
    """What an entry of a list stands for: these names, and what the glob matches, if there is one."""

    text: str
    names: frozenset[str] = frozenset()
    glob: str = ""

    def covers(self, name: str) -> bool:
        """Whether it means this tool; with a glob for a name, whether it means all of those."""
        return name in self.names or (bool(self.glob) and name_matches(self.glob, name))

    @property
    def exactness(self) -> tuple[int, int]:
        """Orders entries that mean one tool: a name before a group, a group before a glob, a long glob before a short
        one."""
        if self.glob:
            return (0, len(self.glob))
        return (1, 0) if self.text in GROUPS else (2, 0)


def read_entry(text: str) -> Entry | None:
    """Read an entry: a tool's name, a group, or a glob with `*`; None if it means nothing that is known."""
    if text in GROUPS:
        return Entry(text, frozenset(GROUPS[text]))
    if text == MCP_GROUP:
        return Entry(text, glob=MCP_GLOB)
    if STAR in text:
        known = _MCP_ENTRY.fullmatch(text) or any(name_matches(text, name) for name in BUILT_IN)
        return Entry(text, glob=text) if known else None
    return Entry(text, frozenset({text})) if is_known(text) else None


def read_entries(texts: Iterable[str]) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Read entries; those that mean nothing are answered apart."""
    read = [(text, read_entry(text)) for text in texts]
    found = tuple(entry for _, entry in read if entry is not None)
    return found, tuple(text for text, entry in read if entry is None)
