"""What an operator may set for the router's service; the worker's settings are in worker/config.py."""

from pathlib import Path

import msgspec
from retinue_kit import config

BOUNDS = {
    "pool_size": (1, 1000),
    "tenant_waiting_count": (1, 1_000_000),
    "tenant_later_count": (1, 1_000_000),
    "waiting_count": (1, 200_000),
}
"""Least and most: below, everything would be refused; of all that waits, no more than the last is counted."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from RETINUE_<FIELD>."""

    address: str
    """Where calls are served, `unix:/path` or `host:port`."""
    postgres_dsn: str
    """Database, as the role retinue_router."""
    sweep_dsn: str
    """Database, as the role retinue_sweep, which sees ids and cursors of every tenant."""
    redis_url: str
    """The bus and the ring."""
    workspaces_dir: Path
    """Root of the tenants' workspace files."""
    migrate_dsn: str = ""
    """Database, as a superuser; where it is set, the schema is brought up to date at the start."""
    pool_size: int = 8
    """Connections to the database; accepting a run holds one for half a millisecond."""
    tenant_waiting_count: int = 5000
    """Runs of one tenant that may wait; more are refused with QUOTA_EXCEEDED. A minute's work."""
    tenant_later_count: int = 10_000
    """Runs of one tenant that may wait for their time on top of those; more are refused with QUOTA_EXCEEDED."""
    waiting_count: int = 50_000
    """Runs that may wait in all; more are refused with QUEUE_FULL. It takes ten tenants that flood at once."""
    sealing_keys_file: Path | None = None
    """Keys that webhooks' secrets are sealed with; without it no webhook can be made that has one."""
    runtime_adapter_address: str = ""
    """Asked for vectors of facts; needed with embeddings only."""
    embeddings: bool = False
    """Whether facts are found by meaning too, by vectors of the adapter's model for them; by words alone otherwise."""
    webhook_private_targets: bool = False
    """Whether webhooks may lead to any address, also without TLS: for receivers on one's own network alone."""

    def __post_init__(self) -> None:
        config.check_bounds(self, BOUNDS)
        if self.embeddings and not self.runtime_adapter_address:
            raise config.SettingError("RETINUE_EMBEDDINGS needs RETINUE_RUNTIME_ADAPTER_ADDRESS.")
