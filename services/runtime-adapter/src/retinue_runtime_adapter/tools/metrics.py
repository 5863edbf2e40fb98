"""What tools come to, as numbers."""

from retinue_kit import metrics

BUILTIN = (
    *("read", "write", "edit", "list", "delete", "exec", "python"),
    *("memory_note", "memory_search", "schedule_task"),
)
"""Tools that this build brings along, and the only ones that numbers name."""

MCP_PREFIX = "mcp__"
"""How the names of tools of MCP servers begin."""

tool_calls = metrics.counter("tool_calls", "Tool calls that came to an end.", ["tool", "outcome"])
"""Outcomes: ok, failed, refused (never made), unknown (made, and nobody knows how it ended)."""

tool_retries = metrics.counter("tool_retries", "Tool calls that were made again, since they may be.", ["tool"])


def label(tool: str) -> str:
    """A tool's name among few: what models make up must not become a number of its own."""
    if tool in BUILTIN:
        return tool
    return "mcp" if tool.startswith(MCP_PREFIX) else "other"
