"""Settings from the environment: RETINUE_<FIELD> for each field of a frozen msgspec.Struct."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

PREFIX = "RETINUE_"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class SettingError(Exception):
    """A setting is missing or wrong; the text is one line that names it."""


def log_level(environ: Mapping[str, str]) -> int:
    """Read RETINUE_LOG_LEVEL, from which on lines are written; "info" if it is not set. Raises SettingError."""
    text = environ.get(f"{PREFIX}LOG_LEVEL") or "info"
    if text.lower() not in LOG_LEVELS:
        raise SettingError(f"{PREFIX}LOG_LEVEL={text!r} must be one of {', '.join(LOG_LEVELS)}.")
    return logging.getLevelNamesMapping()[text.upper()]


def check_bounds(settings: msgspec.Struct, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a number that is below the least or above the most of its field. Raises SettingError for the first."""
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            raise SettingError(f"{PREFIX}{name.upper()}={value:g} must be a number from {least:g} to {most:g}.")


def _convert(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"no setting can be a {kind.__name__}")


def load(cls: type[T], environ: Mapping[str, str] | None = None) -> T:
    """Read settings of a class; an empty variable counts as absent. Raises SettingError for the first wrong one."""
    environ = os.environ if environ is None else environ
    values: dict[str, object] = {}
    for field in msgspec.structs.fields(cls):
        name = PREFIX + field.name.upper()
        text = environ.get(name, "")
        if not text:
            if field.required:
                raise SettingError(f"{name} is not set.")
            continue
        try:
            values[field.name] = msgspec.convert(text, field.type, strict=False, dec_hook=_convert)
        except msgspec.ValidationError as error:
            raise SettingError(f"{name}={text!r} is not valid: {error}.") from None
    return cls(**values)
