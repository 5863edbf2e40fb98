"""Leaves out of commands what looks like a secret, before they are written down.

What a shell is to do is one word of a command, so secrets are looked for anywhere in a word. This is a net with holes:
what nothing gives away as a secret is written down, and whoever has one in a command has told it to the box as well.
"""

import re
from collections.abc import Sequence

ARGUMENTS_MAX = 16
ARGUMENT_LENGTH_MAX = 128
"""What is written of a command; its digest is of all of it."""

HIDDEN = "***"

_NAME = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|bearer|authorization|cookie|credentials?|signature"
    r"|(?:api|access|private|secret|auth|account|signing|encryption)[_-]?key)"
)
"""What secrets are called, whatever stands before or behind: PGPASSWORD, --db-password, x-api-key-2."""

_VALUE = r"""(?:"(?:\\.|[^"\\])*"?|'[^']*'?|\$\{[^}]*\}|\\.|[^\s'"&;|<>()\\])+"""
"""A word as a shell reads one: in quotes, or up to a blank; a quote that is not closed reaches to the end."""

_IN_URL = re.compile(r"(://)[^/@\s'\"]+@")
_ASSIGNED = re.compile(rf"""(?i)([\w.-]*{_NAME}[\w.-]*['"]?\s*[=:]\s*(?:(?:bearer|basic|token|digest)\s+)?){_VALUE}""")
_SAID = re.compile(rf"(?i)(\b(?:bearer|basic)\s+){_VALUE}")
_OPTION = re.compile(rf"(?i)((?:^|\s)--?[\w-]*{_NAME}[\w-]*\s+){_VALUE}")
_USER = re.compile(rf"(?i)((?:^|\s)(?:-u|--user|--proxy-user)[\s=]*['\"]?[^\s:'\"]+:){_VALUE}")
_ATTACHED = re.compile(rf"(\b(?:mysql|mysqldump|mysqladmin|mariadb|sshpass)\b[^;|&]*?\s-p\s*)(?!\s){_VALUE}")
_SHAPED = re.compile(
    r"\b(?:sk|pk|rk)[-_][\w-]{16,}|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}|\bxox[a-z]-[\w-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bAIza[\w-]{20,}|\bhf_\w{16,}|\bnpm_\w{16,}|\beyJ[\w-]{8,}(?:\.[\w-]*){1,2}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
"""Keys that are known by their beginning, whatever they are called."""

_LONE_OPTION = re.compile(rf"(?i)^--?[\w-]*{_NAME}[\w-]*$")
_LONE_USER = re.compile(r"^(?:-u|--user|--proxy-user)$")
"""The word behind such a one is the secret, or has it behind a colon."""


def redacted(argv: Sequence[str]) -> list[str]:
    """Shorten a command, with what looks like a secret left out."""
    short: list[str] = []
    before = ""
    for word in argv[:ARGUMENTS_MAX]:
        text = _hidden(word[: 4 * ARGUMENT_LENGTH_MAX])  # a secret that reaches over the cut is found before it is cut
        if _LONE_OPTION.match(before):
            text = HIDDEN
        elif _LONE_USER.match(before):
            text = re.sub(r":[\s\S]*", f":{HIDDEN}", text)
        short.append(text[:ARGUMENT_LENGTH_MAX])
        before = word
    return short


def _hidden(text: str) -> str:
    text = _IN_URL.sub(rf"\1{HIDDEN}@", text)
    text = _SHAPED.sub(HIDDEN, text)
    for pattern in (_ASSIGNED, _SAID, _OPTION, _USER, _ATTACHED):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text
