"""What an operator may set for a worker."""

from pathlib import Path

import msgspec
from retinue_kit.config import SettingError

from retinue_router.domain.extraction import EVERY_MAX

BOUNDS = {
    "lease_s": (0.1, 600.0),
    "renew_s": (0.01, 300.0),
    "slots": (1, 1000),
    "task_slots": (1, 1000),
    "drain_s": (0.0, 3600.0),
    "put_back_s": (0.0, 86400.0),
    "memory_extract_every": (0, EVERY_MAX),
}
"""Least and most: below, a busy machine would lose every lease; above, a mistyped number looks like a dead mesh."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from RETINUE_<FIELD>."""

    address: str
    """Where health and reflection are served, `unix:/path` or `host:port`."""
    postgres_dsn: str
    """Database, as the role retinue_router."""
    sweep_dsn: str
    """Database, as the role retinue_sweep."""
    redis_url: str
    """The bus and the ring."""
    policy_address: str
    directory_address: str
    runtime_adapter_address: str
    workspaces_dir: Path
    """Root of the tenants' workspace files."""
    portability_address: str = ""
    """Carries a conversation over into another runtime; empty: a run that would change its session's runtime fails."""
    lease_s: float = 3.0
    """How long a lease lasts without renewal; recovery from a dead worker takes this and up to a second more."""
    renew_s: float = 0.8
    """How often leases are renewed; three renewals fit into a lease, so that one lost answer costs nothing."""
    slots: int = 128
    """Chats that this process answers at once; each waits for a model most of its time. Twice what policy lets one
    tenant have at once, so that a flood by one leaves slots for others: none is taken back from a run."""
    task_slots: int = 32
    """Tasks that this process executes at once, besides; twice what one tenant may have: a quarter of its chats."""
    drain_s: float = 25.0
    """Time that runs under way get to end when the process is told to stop; what runs then is left to other workers."""
    put_back_s: float = 120.0
    """How long a run waits in all for a runtime that fails, or a part of the mesh that is away, before it fails."""
    memory_extract_every: int = 12
    """Messages of a contact after which a task looks for facts in what was said since the last one; 0: never."""
    tenant_waiting_count: int = 5000
    tenant_later_count: int = 10_000
    waiting_count: int = 50_000
    """As the service's: what schedules ask is bounded like what clients do."""

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            if not least <= getattr(self, name) <= most:
                raise SettingError(
                    f"RETINUE_{name.upper()}={getattr(self, name):g} must be a number from {least:g} to {most:g}."
                )
        if self.lease_s < 2 * self.renew_s:
            raise SettingError(
                f"RETINUE_LEASE_S={self.lease_s:g} must be at least twice RETINUE_RENEW_S={self.renew_s:g}: "
                "one lost renewal must not cost a lease."
            )
