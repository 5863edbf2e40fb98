"""What an operator may set for the local deployment: arguments first, the environment after them, defaults last."""

import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from retinue_kit import config
from retinue_kit.config import SettingError

from retinue_local import model_choice, settings
from retinue_local.model_choice import ModelChoice
from retinue_local.settings import Overrides

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080
OPENCLAW, LIGHT = "openclaw", "light"
RUNTIMES = (OPENCLAW, LIGHT)
"""Runtimes that this version has."""

DEFAULT_RUNTIMES = ",".join(RUNTIMES)

WORKERS_MAX = 16
"""Each holds connections to Postgres, which allows 80 in all."""

DEFAULT_WORKERS_MAX = 2
"""One process keeps a core busy; more than two only on purpose."""


class Options(NamedTuple):
    """Settings of one deployment, all of them checked."""

    state_dir: Path
    host: str
    port: int
    """0 takes a free one."""
    workers: int
    runtimes: str
    tls_cert: Path | None
    tls_key: Path | None
    sample_percent: float
    model: ModelChoice | None
    """What is set; None if the machine is to be looked at."""
    postgres_user: str
    """Whom Postgres runs as where the supervisor is root; it refuses to run as root itself."""
    follow_parent: bool
    """Whether to stop when the `uv run` or `make` that started the supervisor is gone."""
    environ: Mapping[str, str]
    """The caller's environment, from which services get what is theirs."""
    overrides: Overrides
    """What single services are told in place of it."""


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Name the state folder where none is given: RETINUE_STATE_DIR, else by the XDG convention."""
    if given := environ.get("RETINUE_STATE_DIR"):
        return Path(given).expanduser().absolute()
    base = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "retinue"


def build(
    environ: Mapping[str, str] | None = None,
    *,
    state_dir: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    runtimes: str | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    follow_parent: bool = True,
    overrides: Sequence[str] = (),
) -> Options:
    """Gather and check the settings. Raises SettingError, one line that names the first one that is wrong."""
    environ = dict(os.environ if environ is None else environ)
    cert, key = _tls(environ, tls_cert, tls_key)
    config.log_level(environ)
    return Options(
        state_dir=(state_dir or default_state_dir(environ)).expanduser().absolute(),
        host=_host(host or environ.get("RETINUE_HOST") or DEFAULT_HOST, tls=cert is not None),
        port=_integer(environ, "RETINUE_PORT", port, DEFAULT_PORT, 0, 65535),
        workers=_integer(
            environ, "RETINUE_WORKERS", workers, min(DEFAULT_WORKERS_MAX, os.cpu_count() or 1), 1, WORKERS_MAX
        ),
        runtimes=_runtimes(environ, runtimes),
        tls_cert=cert,
        tls_key=key,
        sample_percent=_percent(environ),
        model=model_choice.from_settings(environ),
        postgres_user=environ.get("RETINUE_POSTGRES_USER") or "nobody",
        follow_parent=follow_parent,
        environ=environ,
        overrides=settings.parse(overrides),
    )


def _integer(environ: Mapping[str, str], name: str, given: int | None, default: int, least: int, most: int) -> int:
    text = environ.get(name, "") if given is None else str(given)
    if not text:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise SettingError(f"{name}={text!r} must be a whole number from {least} to {most}.")
    return value


def _percent(environ: Mapping[str, str]) -> float:
    text = environ.get("RETINUE_TRACE_SAMPLE_PERCENT") or "100"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise SettingError(f"RETINUE_TRACE_SAMPLE_PERCENT={text!r} must be a number from 0 to 100.")
    return value


def _host(host: str, *, tls: bool) -> str:
    host = DEFAULT_HOST if host == "localhost" else host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise SettingError(f"RETINUE_HOST={host!r} must be an IP address of this machine.") from None
    if not address.is_loopback and not tls:
        raise SettingError(
            f"RETINUE_HOST={host!r} is not a loopback address: plain HTTP is served only on loopback; "
            "set RETINUE_TLS_CERT and RETINUE_TLS_KEY."
        )
    return host


def _runtimes(environ: Mapping[str, str], given: str | None) -> str:
    name, text = next(
        (
            (name, text)
            for name, text in (
                ("RUNTIMES", given),
                ("RETINUE_RUNTIMES", environ.get("RETINUE_RUNTIMES")),
                ("RUNTIMES", environ.get("RUNTIMES")),
            )
            if text
        ),
        ("RUNTIMES", DEFAULT_RUNTIMES),
    )
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names or any(part not in RUNTIMES for part in names):
        raise SettingError(f"{name}={text!r} cannot be used: this version has {' and '.join(RUNTIMES)}.")
    return ",".join(names)


def _tls(environ: Mapping[str, str], cert: Path | None, key: Path | None) -> tuple[Path | None, Path | None]:
    found: list[Path] = []
    for name, given in (("RETINUE_TLS_CERT", cert), ("RETINUE_TLS_KEY", key)):
        text = str(given or environ.get(name, ""))
        if not text:
            continue
        path = Path(text).expanduser().absolute()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SettingError(f"{name}={text!r} cannot be read: {error.strerror}.") from None
        if b"-----BEGIN " not in content:
            raise SettingError(f"{name}={text!r} is not a PEM file.")
        found.append(path)
    if len(found) == 1:
        raise SettingError("RETINUE_TLS_CERT and RETINUE_TLS_KEY must be set together.")
    if not found:
        return None, None
    try:
        # Envoy would start again and again; an empty password, as nobody is there to be asked for one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found[0], found[1], password="")
    except ssl.SSLError:
        raise SettingError(
            f"RETINUE_TLS_CERT={str(found[0])!r} and RETINUE_TLS_KEY={str(found[1])!r} are not a certificate and its "
            "key without a password."
        ) from None
    return found[0], found[1]
