"""Addresses that the endpoints for gateways listen at."""

from urllib.parse import urlsplit

from retinue_kit.config import SettingError


def endpoint(setting: str, address: str) -> tuple[str, int]:
    """Read `host:port`. Raises SettingError that names the setting."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.netloc != address or parts.username is not None:
        raise SettingError(f"{setting}={address!r} must be host:port.")
    return host, port
