"""Arguments of OpenClaw's own tools under the names that rules know, so that a rule means the same on every runtime.

What OpenClaw takes, and what it makes of a path before it opens it, was read in its release of September 2026.
"""

import re
from collections.abc import Mapping
from typing import Any

from retinue_kit.errors import RetinueError

Json = dict[str, Any]

NAMES: dict[str, dict[str, str]] = {
    "read": {"file_path": "path", "filePath": "path"},
    "write": {"file_path": "path", "filePath": "path"},
    "edit": {"file_path": "path", "filePath": "path"},
    "exec": {"workdir": "cwd", "timeoutSeconds": "timeout_s", "timeout": "timeout_s"},
}
"""What OpenClaw calls an argument, and what rules call it. One that is not named here keeps its name: rules that do not
know it take the call for none that they allow."""

MEANINGLESS: dict[str, frozenset[str]] = {
    "read": frozenset({"cursor", "optional"}),
    "exec": frozenset({"title", "yieldMs", "background", "pty"}),
}
"""What changes nothing that rules look at: where in a file to begin, how a call is shown, how long it is waited for."""

OLD = ("oldText", "old_string")
NEW = ("newText", "new_string")
"""Texts of a replacement, which may stand in a list of `edits` or beside it."""

_REWRITTEN = re.compile(r"^[@~]|^[a-z][a-z0-9+.-]*:|\\|</arg_value>|\.(?:doc|ppt|xls)x?c?odex$|[^\S ]", re.IGNORECASE)
"""Paths that OpenClaw may read as other ones: with a mark in front, as a URL, mended, or with an unusual space."""


def as_ours(tool: str, arguments: Mapping[str, Any]) -> Json:
    """Write a call's arguments as rules know them; those of a tool that is not OpenClaw's own stay as they are.

    Raises RetinueError(FIELD_INVALID) where it could not be told what OpenClaw will make of them.
    """
    names = NAMES.get(tool)
    if names is None:
        return dict(arguments)
    found: Json = {}
    for name, value in arguments.items():
        if name in MEANINGLESS.get(tool, ()):
            continue
        ours = names.get(name, name)
        if found.setdefault(ours, value) != value:
            raise RetinueError.field(ours, "is given twice, and not the same.")
    if tool == "edit":
        found = _one_edit(found)
    path = found.get("path")
    if isinstance(path, str) and _REWRITTEN.search(path):
        raise RetinueError.field("path", "must be written plainly, such as notes/today.md.")
    return found


def _one_edit(found: Json) -> Json:
    """Write replacements as one, in which each text is seen; what cannot be read so stays, and no rule knows it."""
    edits = found.get("edits", [])
    if not isinstance(edits, list) or not all(isinstance(edit, dict) and _is_edit(edit) for edit in edits):
        return found
    beside = {name: found[name] for name in (*OLD, *NEW) if name in found}
    if beside:
        if not _is_edit(beside):
            return found
        edits = [*edits, beside]
    if not edits:
        return found
    rest = {name: value for name, value in found.items() if name != "edits" and name not in beside}
    return {
        **rest,
        "old_text": "\n".join(_text(edit, OLD) for edit in edits),
        "new_text": "\n".join(_text(edit, NEW) for edit in edits),
    }


def _is_edit(edit: Mapping[str, Any]) -> bool:
    """Whether it holds one old and one new text and nothing else."""
    texts = [[edit[name] for name in names if name in edit] for names in (OLD, NEW)]
    return len(edit) == len(texts) and all(len(found) == 1 and isinstance(found[0], str) for found in texts)


def _text(edit: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return str(next(edit[name] for name in names if name in edit))
