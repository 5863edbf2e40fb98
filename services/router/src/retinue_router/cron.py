"""Expressions of cron, and the times that they name in a time zone."""

import re
from datetime import UTC, datetime, tzinfo
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from retinue_kit.errors import RetinueError

FIELDS = 5
REPEATED_TICKS_MAX = 24 * 60
"""Where clocks are set back, times of the repeated hours are over before they are said again. Never was one set back by
more than a day."""

ZONE_DEFAULT = "UTC"
_ZONE = re.compile(r"(?!Factory$)[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
"""How zones of places and their older names are written. What else lies beside them (`localtime`, `posixrules`,
`right/…`) means another zone on another machine, or counts time in another way."""


def in_words(cron: str) -> str:
    """Write an expression with one space between its fields. Raises RetinueError(FIELD_INVALID)."""
    fields = cron.split()
    if len(fields) != FIELDS:
        raise RetinueError.field("cron", "must have five fields: minute, hour, day of month, month, day of week")
    return " ".join(fields)


def next_after(cron: str, time_zone: str, after: datetime) -> datetime | None:
    """Find the first time after an instant that an expression names, in UTC; None if none comes within 50 years.

    Where daylight saving begins or ends, Debian's rule holds: a time of day that is skipped comes as soon as the clock
    goes on, one that is repeated comes once; expressions with a star for minute or hour follow the clock as it runs.
    Raises RetinueError(FIELD_INVALID) for what is no expression, or no time zone.
    """
    local = after.astimezone(_zone(time_zone))
    try:
        times = CronSim(in_words(cron), local)
    except CronSimError as error:
        raise RetinueError.field("cron", f"must be an expression of cron; {_what(error)}") from None
    return next((time.astimezone(UTC) for time in islice(times, REPEATED_TICKS_MAX) if time > after), None)


def _what(error: CronSimError) -> str:
    return f"its {str(error).removeprefix('Bad ').replace('-', ' ')} names no time"


def _zone(name: str) -> tzinfo:
    if name == ZONE_DEFAULT:
        return UTC
    try:
        if _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # the last one for a folder of zones
        pass
    raise RetinueError.field("time_zone", "must name a time zone of the IANA database, such as Europe/Berlin")
