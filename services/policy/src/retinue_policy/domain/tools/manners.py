"""How a tool may be called: how far it is trusted, and when a person is asked.

| security | ask | a call on the list | any other |
|---|---|---|---|
| deny | any | deny | deny |
| allowlist | off | allow | deny |
| allowlist | on_miss | allow | ask |
| allowlist | always | ask | ask |
| full | off, on_miss | allow | allow |
| full | always | ask | ask |

The list is what the rules name, and what persons have allowed for good. Where several sections speak of a tool, each
gives its answer, and the strictest holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from retinue_policy.domain.tools.catalogue import Entry

EXPIRE_S = 300
"""Seconds that a person has for an answer where nothing else is said."""

EXPIRE_MAX_S = 86_400
"""A day: a run that waits longer has been forgotten."""


class Security(StrEnum):
    """How far a tool is trusted."""

    DENY = "deny"
    ALLOWLIST = "allowlist"
    FULL = "full"


class Ask(StrEnum):
    """When a person is asked."""

    OFF = "off"
    ON_MISS = "on_miss"
    ALWAYS = "always"


class Effect(StrEnum):
    """What becomes of a call, from the mildest to the strictest."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


_TABLE = {
    (Security.ALLOWLIST, Ask.OFF): (Effect.ALLOW, Effect.DENY),
    (Security.ALLOWLIST, Ask.ON_MISS): (Effect.ALLOW, Effect.ASK),
    (Security.ALLOWLIST, Ask.ALWAYS): (Effect.ASK, Effect.ASK),
    (Security.FULL, Ask.OFF): (Effect.ALLOW, Effect.ALLOW),
    (Security.FULL, Ask.ON_MISS): (Effect.ALLOW, Effect.ALLOW),
    (Security.FULL, Ask.ALWAYS): (Effect.ASK, Effect.ASK),
}


def effect_of(security: Security, ask: Ask, *, listed: bool) -> Effect:
    """Look a call up in the table."""
    if security is Security.DENY:
        return Effect.DENY
    hit, miss = _TABLE[security, ask]
    return hit if listed else miss


@dataclass(frozen=True, slots=True)
class Manner:
    """How the tools that an entry means may be called. `rule` names it; `patterns` are the calls on its list."""

    rule: str
    entry: Entry
    security: Security
    ask: Ask = Ask.OFF
    expire_s: int = EXPIRE_S
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a call. `pattern` is what put it on the list; `may_list` says whether listing it would let calls
    like it pass."""

    effect: Effect
    manner: Manner
    pattern: str = ""
    may_list: bool = False
    expire_s: int = 0


def manner_of(manners: Sequence[Manner], tool: str) -> Manner | None:
    """Find what holds for a tool in one section: the most exact of what means it."""
    return max(
        (manner for manner in manners if manner.entry.covers(tool)),
        key=lambda manner: manner.entry.exactness,
        default=None,
    )


def answer(manners: Sequence[Manner], matches: Callable[[str], bool], allowed: Sequence[str]) -> Answer:
    """Answer a call by the manners that hold for its tool, of which there is at least one; the strictest holds.

    `matches` says whether a pattern is on a list for this call, `allowed` are the patterns that persons have allowed.
    """
    given = [_one(manner, matches, allowed) for manner in manners]
    order = list(Effect)
    strictest = max(given, key=lambda each: order.index(each.effect))
    if strictest.effect is not Effect.ASK:
        return strictest
    asking = [each for each in given if each.effect is Effect.ASK]
    return Answer(
        Effect.ASK,
        strictest.manner,
        may_list=all(each.manner.ask is Ask.ON_MISS for each in asking),
        expire_s=min(each.manner.expire_s for each in asking),
    )


def _one(manner: Manner, matches: Callable[[str], bool], allowed: Sequence[str]) -> Answer:
    pattern = ""
    if manner.security is Security.ALLOWLIST:
        pattern = next((each for each in (*manner.patterns, *allowed) if matches(each)), "")
    effect = effect_of(manner.security, manner.ask, listed=bool(pattern))
    return Answer(effect, manner, pattern)
