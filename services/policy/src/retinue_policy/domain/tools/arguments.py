"""What is known of the arguments of a call: values as they came, and the path that they name, if they name one."""

import json
import posixpath
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

WORKSPACE = "/workspace"
PATH_LENGTH_MAX = 4095
"""Characters of a path, as the system bounds it."""

PATH_TOOLS = frozenset({"read", "write", "edit", "list", "delete"})
"""Tools whose argument `path` is a path beneath the workspace."""

EXEC = "exec"

ARGUMENTS: dict[str, frozenset[str]] = {
    "exec": frozenset({"command", "cwd", "timeout_s"}),
    "read": frozenset({"path", "offset", "limit"}),
    "write": frozenset({"path", "content"}),
    "edit": frozenset({"path", "old_text", "new_text", "all"}),
    "list": frozenset({"path", "recursive"}),
    "delete": frozenset({"path", "recursive"}),
}
"""Arguments that are understood. A call with others might do something else than what is compared of it."""

Arguments = Mapping[str, Any]

_NOT_SIMPLE = frozenset(";&|`$()<>{}[]*?~!#\\")
"""What a shell does not take as it is, wherever it stands: quoted or not is not looked at."""


def understood(tool: str, arguments: Arguments) -> bool:
    """Whether every argument of a built-in tool is one of those that are compared."""
    return set(arguments) <= ARGUMENTS[tool]


def canonical(arguments: Arguments) -> str:
    """Write arguments so that the same ones make the same text."""
    return json.dumps(_plain(arguments), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def named_path(tool: str, arguments: Arguments) -> str | None:
    """Say which path a file tool names, beneath the workspace and with `.` and `..` taken out; as it is if it leads
    elsewhere. None for other tools, or if it is no path. Tools may pass over space around it, and so does this."""
    if tool not in PATH_TOOLS:
        return None
    path = arguments.get("path", "" if tool == "list" else None)
    if not isinstance(path, str) or len(path) > PATH_LENGTH_MAX:
        return None
    path = path.strip()
    if not path:
        return "." if tool == "list" else None
    if path.startswith("/"):
        path = posixpath.normpath("/" + path.lstrip("/"))
        return posixpath.relpath(path, WORKSPACE) if f"{path}/".startswith(f"{WORKSPACE}/") else path
    return posixpath.normpath(path)


def path_parts(tool: str, arguments: Arguments) -> tuple[str, ...] | None:
    """Cut the path of a file tool into its parts, none for the workspace itself.

    None if it leads elsewhere, goes up on its way, has space around it, or holds what cannot be seen.
    """
    path, given = named_path(tool, arguments), str(arguments.get("path", ""))
    if path is None or not path.isprintable() or path.startswith("/"):
        return None
    if given != given.strip() or ".." in given.split("/"):
        return None
    return tuple(part for part in path.split("/") if part != ".")


def simple_words(command: Any) -> tuple[str, ...] | None:
    """Cut a command into words if any shell would do the same and nothing else; None if not."""
    if not isinstance(command, str) or not command.isprintable() or _NOT_SIMPLE.intersection(command):
        return None
    try:
        words = tuple(shlex.split(command))
    except ValueError:  # an open quote
        return None
    # A first word with "=" sets a variable for what follows it.
    return words if words and words[0] and "=" not in words[0] else None


def begins_in_workspace(arguments: Arguments) -> bool:
    """Whether a command begins where it does if nothing is said."""
    return arguments.get("cwd") in (None, "", ".", WORKSPACE)


def host_of(arguments: Arguments) -> str:
    """Name the host of an argument `url`, in lower case; empty if there is none."""
    url = arguments.get("url")
    try:
        return (urlsplit(url).hostname or "").rstrip(".") if isinstance(url, str) else ""
    except ValueError:
        return ""
