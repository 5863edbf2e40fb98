"""Secrets taken out by rule, since a bundle leaves its deployment. Each rule has a name that is counted.

A rule looks only at texts that hold one of its hints, and no pattern goes over a text more than once, so that a text of
a megabyte takes milliseconds. What stands in a secret's place matches no rule: redacting twice changes nothing.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from retinue_portability.domain.content import Fact, Message, Profile, Settings, Summary, Taken

PASSES_MAX = 8
"""A secret that was taken out may lay bare another beside it. Each pass takes out one at least; two mostly do."""

DEPTH_MAX = 64
"""Levels of a value that are looked at; what is further down is taken out."""

TOO_DEEP = "[left out: nested too deeply]"

CARD_DIGITS = {"34": {15}, "37": {15}, "4": {13, 16, 19}, "35": {16}, "36": {14}, "38": {14}, "62": {16, 17, 18, 19}}
CARD_DIGITS |= {"65": {16}, "6011": {16}, **{str(two): {16} for two in range(51, 56)}}
CARD_DIGITS |= {str(four): {16} for four in range(2221, 2721)}
"""How the numbers of payment cards begin, and how many digits they have."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is taken out: the group 1 of each match that passes the check."""

    name: str
    hints: tuple[str, ...]
    """One of them is in each text that has a match; none: a digit is."""
    pattern: re.Pattern[str]
    passes: Callable[[str], bool] = lambda _: True


def mark(rule: str) -> str:
    """What stands where a secret was."""
    return f"[redacted: {rule}]"


def is_card(text: str) -> bool:
    """Tell a card's number by how it begins, its length and its check digit (Luhn's)."""
    digits = [int(one) for one in text if one not in " -"]
    number = "".join(map(str, digits))
    if not any(len(digits) in CARD_DIGITS.get(number[:size], ()) for size in (1, 2, 4)):
        return False
    doubled = (sum(divmod(2 * one, 10)) for one in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


_API_KEYS = (
    r"sk-[A-Za-z0-9_-]{20,}",
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",
    r"gh[opusr]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"(?:AKIA|ASIA)[0-9A-Z]{16}",
    r"AIza[0-9A-Za-z_-]{35}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,}",
    r"npm_[A-Za-z0-9]{36}",
    r"hf_[A-Za-z0-9]{30,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"whsec_[A-Za-z0-9+/=]{24,}",
)
_KEY_HINTS = (
    *("sk-", "_live_", "_test_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "ASIA"),
    *("AIza", "xox", "npm_", "hf_", "SG.", "whsec_"),
)

RULES = (
    Rule(
        "private_key",
        ("PRIVATE KEY-----",),
        # Without its last line it is taken out to the end: somebody has cut it off.
        re.compile(
            r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z))", re.DOTALL
        ),
    ),
    Rule(
        "json_web_token",
        ("eyJ",),
        re.compile(r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})"),
    ),
    Rule("api_key", _KEY_HINTS, re.compile(rf"(?<![A-Za-z0-9_-])({'|'.join(_API_KEYS)})")),
    Rule(
        "bearer_token",
        ("earer", "EARER"),
        re.compile(r"(?<![A-Za-z])(?:[Bb]earer|BEARER)[ \t]{1,8}([A-Za-z0-9._~+/=-]{16,})"),
    ),
    Rule(
        "url_password",
        ("://",),
        re.compile(r"://[^\s/:@\"'<>\[\]]{0,128}:([^\s/@\"'<>\[\]]{1,256})@"),
    ),
    Rule(
        "card_number",
        (),
        re.compile(r"(?<![0-9])(?<![0-9][ -])([0-9](?:[ -]?[0-9]){12,18})(?![ -]?[0-9])"),
        is_card,
    ),
)
"""In the order in which they are applied."""

_DIGITS = re.compile(r"[0-9][0-9 -]{11}")
"""Whatever has no twelve digits, blanks and dashes in a row holds no card's number."""


_HINTS = tuple(hint for rule in RULES for hint in rule.hints)


def redact(text: str, part: str, taken: Taken) -> str:
    """Take secrets out of a text and count them."""
    if not any(map(text.__contains__, _HINTS)) and _DIGITS.search(text) is None:
        return text
    for _ in range(PASSES_MAX):
        before = text
        for rule in RULES:
            if _hinted(rule, text):
                text = _apply(rule, text, part, taken)
        if text == before:
            break
    return text


def _hinted(rule: Rule, text: str) -> bool:
    return any(map(text.__contains__, rule.hints)) if rule.hints else _DIGITS.search(text) is not None


def _apply(rule: Rule, text: str, part: str, taken: Taken) -> str:
    def replaced(match: re.Match[str]) -> str:
        if not rule.passes(match[1]):
            return match[0]
        taken[part, rule.name] += 1
        start = match.start()
        return match[0][: match.start(1) - start] + mark(rule.name) + match[0][match.end(1) - start :]

    return rule.pattern.sub(replaced, text)


def redact_value(value: Any, part: str, taken: Taken, depth: int = 0) -> Any:
    """Take secrets out of all texts of a JSON value, names of its members too."""
    if isinstance(value, str):
        return redact(value, part, taken)
    if depth >= DEPTH_MAX and isinstance(value, Mapping | list | tuple):
        taken[part, "too_deep"] += 1
        return TOO_DEEP
    if isinstance(value, Mapping):
        return {redact(str(k), part, taken): redact_value(v, part, taken, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(one, part, taken, depth + 1) for one in value]
    return value


def redact_messages(messages: tuple[Message, ...], taken: Taken) -> tuple[Message, ...]:
    """Messages without secrets."""
    made = []
    for message in messages:
        text = redact(message.text, "messages", taken)
        made.append(message if text is message.text else replace(message, text=text))
    return tuple(made)


def redact_facts(facts: tuple[Fact, ...], taken: Taken) -> tuple[Fact, ...]:
    """Facts without secrets."""
    return tuple(replace(fact, text=redact(fact.text, "facts", taken)) for fact in facts)


def redact_summary(summary: Summary, taken: Taken) -> Summary:
    """A summary without secrets."""
    return replace(summary, text=redact(summary.text, "summary", taken))


def redact_profile(profile: Profile, taken: Taken) -> Profile:
    """Names without secrets; the profile's JSON is redacted as a value, before it is written."""
    name = redact(profile.display_name, "profile", taken)
    return replace(profile, display_name=name, channel=redact(profile.channel, "profile", taken))


def redact_settings(settings: Settings, taken: Taken) -> Settings:
    """Settings without secrets: a persona may hold one by its tenant's own choice, which is none to hand it on."""
    return replace(settings, persona=redact(settings.persona, "settings", taken))
