"""Settings of single services, for operators who know what they do; all of them are checked before anything starts."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from retinue_kit import config
from retinue_kit.config import SettingError

Overrides = Mapping[str, Mapping[str, str]]
"""By service, as in the list of processes but without a number: fields of its settings, and their values as text."""


def parse(texts: Sequence[str]) -> Overrides:
    """Read SERVICE.FIELD=VALUE, as often as it was given; a later one of the same field holds. Raises SettingError."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        service, dot, field = name.strip().partition(".")
        if not (equals and dot and service and field and value):
            raise SettingError(f"--set {text!r} must be SERVICE.FIELD=VALUE, such as worker.lease_s=5.")
        found.setdefault(service, {})[field] = value
    return found


def environ_of(overrides: Overrides, service: str) -> dict[str, str]:
    """What a service is told in place of what the mesh or the environment says."""
    return {config.PREFIX + field.upper(): value for field, value in overrides.get(service, {}).items()}


def texts_of(overrides: Overrides) -> list[str]:
    """Write overrides as they are parsed."""
    return [f"{service}.{field}={value}" for service, fields in overrides.items() for field, value in fields.items()]


def check(overrides: Overrides, services: Iterable[tuple[str, str, Mapping[str, str]]]) -> None:
    """Read the settings of each service (its name, module and environment) as it will read them itself.

    Raises SettingError for the first that is wrong, and for an override that nobody would read.
    """
    known: set[str] = set()
    for service, module, environ in services:
        known.add(service)
        loaded: Any = importlib.import_module(f"{module}.config").Settings
        names = [field.name for field in msgspec.structs.fields(loaded)]
        for field in overrides.get(service, {}):
            if field not in names:
                raise SettingError(f"--set {service}.{field}: {service} has {', '.join(sorted(names))}.")
        config.log_level(environ)
        try:
            config.load(loaded, environ)
        except SettingError as error:
            raise SettingError(f"{service}: {error}") from None
    for service in overrides:
        if service not in known:
            raise SettingError(f"--set {service}.…: there is no such service; there is {', '.join(sorted(known))}.")
