"""What an operator may set for a worker."""

from pathlib import Path

import msgspec


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
    lease_s: float = 3.0
    """How long a lease lasts without renewal; recovery from a dead worker takes this and up to a second more."""
    renew_s: float = 0.8
    """How often leases are renewed; three renewals fit into a lease, so that one lost answer costs nothing."""
    slots: int = 64
    """Runs that this process executes at once. Each waits for a model most of its time."""
    drain_s: float = 25.0
    """Time that runs under way get to end when the process is told to stop."""
