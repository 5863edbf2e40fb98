"""Globs, matched in time that grows with the product of both lengths at worst: what is matched may be hostile."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

STAR = "*"
ANY = "?"
DEEP = "**"

COMPILED_MAX = 2048
"""Patterns kept ready, some 1 KiB each."""

P = TypeVar("P")
T = TypeVar("T")


def name_matches(glob: str, name: str) -> bool:
    """Whether a glob of tools matches a name; only `*` is special, for any characters.

    `name` may be such a glob itself: then the answer is whether the first matches all that the second does.
    """
    return _wild(glob, name, lambda part: part == STAR, lambda part, item: part == item)


def path_matches(glob: str, parts: Sequence[str]) -> bool:
    """Whether a glob of paths matches the parts of a path.

    `*` and `?` stand for characters of one part, `**` for any number of parts, at the end for at least one; a
    backslash takes the meaning from what follows it.
    """
    return _wild(_compiled(glob), parts, lambda part: part is None, _part_matches)


def escaped(path: str) -> str:
    """Write a path as a glob that matches it alone."""
    return "".join("\\" + each if each in "\\*?" else each for each in path)


_Characters = tuple[tuple[str, bool], ...]
"""Characters of a part, each with whether it is taken as it is."""

_Part = str | _Characters
"""A part of a path; text where nothing in it is special."""


@lru_cache(maxsize=COMPILED_MAX)
def _compiled(glob: str) -> tuple[_Part | None, ...]:
    """Cut a glob into parts; None stands for any number of parts."""
    parts = [each for each in glob.split("/") if each not in ("", ".")]
    found = [None if each == DEEP else _characters(each) for each in parts]
    if parts and parts[-1] == DEEP:
        found.insert(-1, ((STAR, False),))
    return tuple(found)


def _characters(part: str) -> _Part:
    found, taken = [], False
    for each in part:
        if each == "\\" and not taken:
            taken = True
            continue
        found.append((each, taken))
        taken = False
    special = any(each in ((STAR, False), (ANY, False)) for each in found)
    return tuple(found) if special else "".join(each for each, _ in found)


def _part_matches(part: _Part | None, name: str) -> bool:
    if part is None or isinstance(part, str):
        return part == name
    return _wild(part, name, lambda each: each == (STAR, False), _character_matches)


def _character_matches(each: tuple[str, bool], character: str) -> bool:
    return each == (ANY, False) or each[0] == character


def _wild(pattern: Sequence[P], items: Sequence[T], is_star: Callable[[P], bool], same: Callable[[P, T], bool]) -> bool:
    """Match, going back to the last star only: an earlier one could do no more than that one can."""
    at = here = 0
    star = kept = -1
    while here < len(items):
        if at < len(pattern) and is_star(pattern[at]):
            star, kept, at = at, here, at + 1
        elif at < len(pattern) and same(pattern[at], items[here]):
            at, here = at + 1, here + 1
        elif star >= 0:
            kept += 1
            at, here = star + 1, kept
        else:
            return False
    return all(is_star(rest) for rest in pattern[at:])
