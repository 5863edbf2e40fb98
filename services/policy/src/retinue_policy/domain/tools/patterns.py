"""Which calls a pattern means. One that was made of a call means that call, and as little more as is of any use.

- `read`, `write`, `edit`, `list`, `delete`: a glob of paths beneath the workspace, such as `notes/*.md` or `build/**`;
  for deletions with all that is in a folder, `-r ` and such a glob.
- `exec`: words, such as `git status -s`; with a last word `*` whatever may follow them, such as `git status *`. Where
  words cannot mean it, its arguments, exactly, as JSON.
- any other: its arguments, exactly, as JSON.

A command in which a shell would find anything to do, or that begins in another folder, is never one that words mean.
"""

import shlex
from functools import cached_property, lru_cache

from retinue_policy.domain.tools.arguments import (
    EXEC,
    PATH_TOOLS,
    Arguments,
    begins_in_workspace,
    canonical,
    path_parts,
    simple_words,
    understood,
)
from retinue_policy.domain.tools.wildcards import STAR, escaped, path_matches

PATTERN_LENGTH_MAX = 4096
"""Characters of a pattern; what would need more is asked about each time."""

READ_MAX = 2048
"""Patterns of words kept ready, some 1 KiB each."""

RECURSIVE = "-r "

LOOKING = frozenset({"cat", "grep", "head", "ls", "tail", "wc"})
"""Programs that only look, whatever words follow: allowed for good, they are so with any. Not git, which starts what a
repository's own configuration names."""


def check_pattern(pattern: str) -> str:
    """Say what is wrong with a pattern of the rules; empty if nothing is."""
    if not pattern or len(pattern) > PATTERN_LENGTH_MAX:
        return f"must have 1 to {PATTERN_LENGTH_MAX} characters"
    return "" if pattern.isprintable() else "must be one line of printable characters"


def pattern_of(tool: str, arguments: Arguments) -> str:
    """Make the pattern that allowing a call for good would allow; empty if it cannot be told from others."""
    if tool in PATH_TOOLS:
        found = _path_pattern(tool, arguments)
    elif tool == EXEC:
        found = _words_pattern(arguments) or canonical(arguments)
    else:
        found = canonical(arguments)
    return found if len(found) <= PATTERN_LENGTH_MAX else ""


def matches(pattern: str, tool: str, arguments: Arguments) -> bool:
    """Whether a pattern means a call."""
    return Matcher(tool, arguments)(pattern)


class Matcher:
    """Says of many patterns whether they mean one call, whose arguments it looks at once, if at all."""

    def __init__(self, tool: str, arguments: Arguments) -> None:
        self._tool = tool
        self._arguments = arguments

    def __call__(self, pattern: str) -> bool:
        if self._tool in PATH_TOOLS:
            return self._means_path(pattern)
        if self._tool == EXEC and self._words is not None and _words_match(_wanted(pattern), self._words):
            return True
        return pattern == self._exact

    @cached_property
    def _exact(self) -> str:
        return canonical(self._arguments)

    @cached_property
    def _words(self) -> tuple[str, ...] | None:
        return _command(self._arguments)

    @cached_property
    def _parts(self) -> tuple[str, ...] | None:
        return path_parts(self._tool, self._arguments) if understood(self._tool, self._arguments) else None

    def _means_path(self, pattern: str) -> bool:
        if self._parts is None or pattern.startswith(RECURSIVE) is not _takes_all(self._tool, self._arguments):
            return False
        return path_matches(pattern.removeprefix(RECURSIVE), self._parts)


def _path_pattern(tool: str, arguments: Arguments) -> str:
    parts = path_parts(tool, arguments)
    if parts is None or not understood(tool, arguments):
        return ""
    path = escaped("/".join(parts) or ".")
    if path.startswith("-"):
        path = f"./{path}"
    return RECURSIVE + path if _takes_all(tool, arguments) else path


def _takes_all(tool: str, arguments: Arguments) -> bool:
    """Whether a deletion takes with it all that is in a folder: it needs a pattern of its own."""
    return tool == "delete" and arguments.get("recursive") not in (None, False)


def _command(arguments: Arguments) -> tuple[str, ...] | None:
    """Read the words of a call that words can mean."""
    words = simple_words(arguments.get("command")) if understood(EXEC, arguments) else None
    if words is None:
        return None
    # Elsewhere the same words may start another program, or the same one on other files.
    return words if begins_in_workspace(arguments) else None


def _words_pattern(arguments: Arguments) -> str:
    words = _command(arguments)
    if words is None:
        return ""
    return f"{words[0]} {STAR}" if words[0] in LOOKING else shlex.join(words)


@lru_cache(maxsize=READ_MAX)
def _wanted(pattern: str) -> tuple[str, ...]:
    """Read a pattern's words; none if it has none that a command could have."""
    try:
        return tuple(shlex.split(pattern))
    except ValueError:
        return ()


def _words_match(wanted: tuple[str, ...], words: tuple[str, ...]) -> bool:
    # No word of a simple command holds a star, so that one at the end can only be the pattern's own.
    if wanted[-1:] == (STAR,):
        return words[: len(wanted) - 1] == wanted[:-1]
    return words == wanted
