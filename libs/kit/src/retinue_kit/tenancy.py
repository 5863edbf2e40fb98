"""Who a call is made for, carried in metadata from hop to hop. The edge alone reads it from a token."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

TENANT_KEY = "x-retinue-tenant"
PRINCIPAL_KEY = "x-retinue-principal"
SCOPE_KEY = "x-retinue-scope"


@dataclass(frozen=True, slots=True)
class Identity:
    """A tenant and who speaks within it; empty text where unknown."""

    tenant_id: str = ""
    principal: str = ""
    scopes: frozenset[str] = frozenset()


NOBODY = Identity()
_identity: ContextVar[Identity] = ContextVar("identity", default=NOBODY)


def from_metadata(metadata: Mapping[str, str]) -> Identity:
    """Read the identity of an incoming call."""
    scopes = frozenset(metadata.get(SCOPE_KEY, "").split())
    return Identity(metadata.get(TENANT_KEY, ""), metadata.get(PRINCIPAL_KEY, ""), scopes)


def enter(identity: Identity) -> None:
    """Act for this identity in this task and those that it starts."""
    _identity.set(identity)


def current() -> Identity:
    """For whom this task acts."""
    return _identity.get()


def to_metadata() -> list[tuple[str, str]]:
    """Write the identity for an outgoing call."""
    identity = _identity.get()
    if not identity.tenant_id:
        return []
    return [(TENANT_KEY, identity.tenant_id), (PRINCIPAL_KEY, identity.principal)]
