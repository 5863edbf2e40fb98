"""What an operator may set for a courier."""

from pathlib import Path

import msgspec
from retinue_kit import config

BOUNDS = {"delivery_lease_s": (0.1, 3600.0), "delivery_keep_s": (1.0, 31_622_400.0)}
"""Least and most: below, everything would be sent again and again, or gone before anybody looked."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from RETINUE_<FIELD>."""

    address: str
    """Where health and reflection are served, `unix:/path` or `host:port`."""
    postgres_dsn: str
    """Database, as the role retinue_courier, which sees the outbox and nothing else."""
    sealing_keys_file: Path
    """The keys that webhooks' secrets are sealed with; the same as the router's."""
    webhook_private_targets: bool = False
    """Whether webhooks may lead to any address, also without TLS: for receivers on one's own network alone."""
    delivery_lease_s: float = 30.0
    """How long a courier may be at one delivery before another takes it up; longer than an attempt and its record."""
    delivery_keep_s: float = 259200.0
    """How long a delivery is kept after its end, for whoever wants to look or to send it once more: three days."""

    def __post_init__(self) -> None:
        config.check_bounds(self, BOUNDS)
