"""What a token says and how long it lives; which keys must be known for how long."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from retinue_kit.errors import RetinueError

ISSUER = "retinue"
AUDIENCE = "retinue"
DEFAULT_SCOPES = ("chat",)

DEFAULT_TTL_S = 30 * 24 * 3600.0

TTL_MAX_S = 366 * 24 * 3600.0
"""A token that nobody renews for a year belongs to nobody."""

KEY_MARGIN = timedelta(hours=1)
"""A former key is kept this much longer than its last token can live: for clocks that differ, and for a token that was
being signed while the key was replaced."""

USER_NAME_MAX = 128


@dataclass(frozen=True, slots=True)
class Token:
    """A signed token and what its holder needs to know of it."""

    text: str
    jti: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, PKCS 8 in PEM; `retire_time` is set once another one signs."""

    kid: str
    private_key: str
    create_time: datetime
    retire_time: datetime | None = None


def claims(
    *, tenant_id: str, user_id: str, scopes: Iterable[str], now: datetime, ttl_s: float, jti: str
) -> Mapping[str, str | int]:
    """State what a token claims; instants are whole seconds since the epoch, a part of one is granted whole.

    Raises RetinueError(FIELD_INVALID) for a time to live out of its bounds.
    """
    if not 0 < ttl_s <= TTL_MAX_S:
        raise RetinueError.field("ttl", f"must be more than 0 and at most {TTL_MAX_S:.0f} seconds.")
    issued = int(now.timestamp())
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "tenant": tenant_id,
        "scope": " ".join(dict.fromkeys(scopes)) or " ".join(DEFAULT_SCOPES),
        "iat": issued,
        "exp": issued + math.ceil(ttl_s),
        "jti": jti,
    }


def user_name(text: str, default: str) -> str:
    """Read a user's name. Raises RetinueError(FIELD_INVALID) if it could not be shown on one line."""
    name = text.strip() or default
    if len(name) > USER_NAME_MAX or not name.isprintable():
        raise RetinueError.field("user", f"must be 1 to {USER_NAME_MAX} printable characters.")
    return name


def retired_since(now: datetime) -> datetime:
    """Keys that were retired before this instant can be forgotten: whatever they signed has expired."""
    return now - timedelta(seconds=TTL_MAX_S) - KEY_MARGIN


def revoked_until(asked: datetime | None, now: datetime) -> datetime:
    """How long a revocation must be remembered: until the token expires, the longest life if that is not known."""
    latest = now + timedelta(seconds=TTL_MAX_S) + KEY_MARGIN
    return latest if asked is None else min(asked, latest)
