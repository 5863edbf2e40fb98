"""Spans of time as people type them."""

import re

from retinue_cli.failures import EXIT_SETTINGS, CommandError

UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

STEPS_S = (("d", 86400), ("h", 3600), ("m", 60))

TTL_MAX_S = 366 * 86400
"""What the contract lets a token live at most."""


def parse_ttl(text: str, option: str = "--ttl") -> int:
    """Read "30d", "12h", "90m" or plain seconds of an option. CommandError if it is something else, zero or above 366
    days."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*([smhdw]?)\s*", text)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else 0
    if not 0 < seconds <= TTL_MAX_S:
        told = f"{option} {text!r} is not a time such as 30d, 12h, 90m or 3600 (366d at most)."
        raise CommandError(told, EXIT_SETTINGS)
    return seconds


def short(seconds: float) -> str:
    """Write a span of time in its largest unit, such as "2h"; "0s" for one below a second, or below none."""
    for unit, size in STEPS_S:
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
