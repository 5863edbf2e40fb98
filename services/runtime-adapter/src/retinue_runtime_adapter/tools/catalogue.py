"""Finds tools: those that this build brings along, and those of a tenant's MCP servers."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from retinue_runtime_adapter.tools.mcp import McpServers
from retinue_runtime_adapter.tools.metrics import MCP_PREFIX
from retinue_runtime_adapter.tools.ports import Scope, Tool

OFFERED_MAX = 128
"""Tools that one call of a model may be offered: what OpenAI takes."""

ALL_MCP = "group:mcp"
"""Stands for every tool of MCP servers, as `mcp__*` does."""


class Catalogue:
    """Implements ports.Toolbox."""

    def __init__(self, builtin: Sequence[Tool], mcp: McpServers | None = None) -> None:
        self._builtin = {tool.name: tool for tool in builtin}
        self._mcp = mcp

    async def offered(self, scope: Scope, names: Sequence[str]) -> Sequence[Tool]:
        wanted = set(names)
        found: list[Tool] = [tool for name, tool in self._builtin.items() if name in wanted]
        if self._mcp is not None and any(_is_mcp(name) for name in wanted):
            found += [tool for tool in await self._mcp.of(scope.tenant_id) if covers(wanted, tool.name)]
        return found[:OFFERED_MAX]

    async def find(self, scope: Scope, name: str) -> Tool | None:
        found = self._builtin.get(name)
        if found is None and self._mcp is not None and name.startswith(MCP_PREFIX):
            return await self._mcp.find(scope.tenant_id, name)
        return found


def _is_mcp(name: str) -> bool:
    return name.startswith(MCP_PREFIX) or name == ALL_MCP


def covers(wanted: set[str], name: str) -> bool:
    """Whether a tool of an MCP server is among the names: by its own, or by one with `*` in it."""
    if name in wanted or ALL_MCP in wanted:
        return True
    return any("*" in entry and fnmatchcase(name, entry) for entry in wanted)
