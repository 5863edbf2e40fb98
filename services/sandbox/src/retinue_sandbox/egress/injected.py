"""Secrets that the proxy puts into requests, so that no box ever holds one. Read from the operator's file.

In a box there is a placeholder, `retinue-secret:NAME`, which stands for the secret in one header of a plain http://
request to one of the secret's hosts. The proxy puts the value in its place and sends the request on over TLS.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
from retinue_kit.config import SettingError
from retinue_kit.errors import RetinueError

from retinue_sandbox.egress.targets import Target, parse

PLACEHOLDER = "retinue-secret:"

FILE_SIZE_MAX_BYTES = 1024 * 1024
SECRETS_MAX = 256
HOSTS_MAX = 16
VALUE_LENGTH_MAX = 8192
"""Headers of a request have 32 KiB together."""

TLS_PORT = 443

SETTING = "RETINUE_EGRESS_SECRETS"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HEADER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_FORBIDDEN_HEADERS = frozenset({"host", "connection", "content-length", "transfer-encoding", "upgrade", "te"})
"""What decides where a request goes and where it ends."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A secret in the file, under its name."""

    hosts: list[str]
    """Where it may go: "host" means port 443, "host:port" any other."""
    value: str
    """Takes the place of the placeholder."""
    header: str = "authorization"
    """In which it is replaced. Its whole value is the placeholder, or "Bearer " and the placeholder."""
    tenants: list[str] | None = None
    """Whose boxes may use it; everybody's if absent."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret. Nothing prints its value."""

    name: str
    targets: tuple[Target, ...]
    header: str
    value: str
    tenants: frozenset[str] | None

    def __repr__(self) -> str:
        """Leave the value out."""
        return f"Secret({self.name})"

    def is_for(self, tenant_id: str) -> bool:
        """Whether boxes of the tenant may use it."""
        return self.tenants is None or tenant_id in self.tenants

    @property
    def placeholder(self) -> str:
        """What stands for it in a box."""
        return PLACEHOLDER + self.name


def load(path: str) -> tuple[Secret, ...]:
    """Read the file; no secrets if there is no path. Raises SettingError, without a value in its text."""
    if not path:
        return ()
    try:
        with Path(path).open("rb") as file:
            raw = file.read(FILE_SIZE_MAX_BYTES + 1)
    except OSError as error:
        raise SettingError(f"{SETTING}: {path} cannot be read: {error.strerror}.") from None
    if len(raw) > FILE_SIZE_MAX_BYTES:
        raise SettingError(f"{SETTING}: {path} is larger than {FILE_SIZE_MAX_BYTES} bytes.")
    try:
        entries = msgspec.json.decode(raw, type=dict[str, Entry])
    except msgspec.ValidationError as error:  # says where, and of which type, never what
        raise SettingError(f"{SETTING}: {path}: {error}") from None
    except msgspec.DecodeError:
        raise SettingError(f"{SETTING}: {path} holds no JSON object of secrets.") from None
    if len(entries) > SECRETS_MAX:
        raise SettingError(f"{SETTING}: {path} holds more than {SECRETS_MAX} secrets.")
    return tuple(_secret(name, entry) for name, entry in entries.items())


def _secret(name: str, entry: Entry) -> Secret:
    header = entry.header.lower()
    if not _NAME.fullmatch(name):
        raise SettingError(f"{SETTING}: a name has up to 64 letters, digits, dots and dashes, not {name[:80]!r}.")
    if not _HEADER.fullmatch(header) or header in _FORBIDDEN_HEADERS or header.startswith(("x-envoy-", "proxy-")):
        raise SettingError(f"{SETTING}: {name}: no secret can be put into the header {header[:80]!r}.")
    if len(entry.value) > VALUE_LENGTH_MAX or not _VALUE.fullmatch(entry.value):
        raise SettingError(f"{SETTING}: {name}: the value must be 1 to {VALUE_LENGTH_MAX} printable ASCII characters.")
    if not 0 < len(entry.hosts) <= HOSTS_MAX:
        raise SettingError(f"{SETTING}: {name}: there must be 1 to {HOSTS_MAX} hosts.")
    try:
        targets = tuple(sorted({parse(host, TLS_PORT) for host in entry.hosts}))
    except RetinueError as error:
        raise SettingError(f"{SETTING}: {name}: {error.message}") from None
    tenants = None if entry.tenants is None else frozenset(entry.tenants)
    return Secret(name, targets, header, entry.value, tenants)
