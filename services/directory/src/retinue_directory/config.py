"""What an operator may set."""

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """Read from RETINUE_<NAME>."""

    address: str
    """Where to listen: unix:/path or host:port."""

    postgres_dsn: str
    """The database, as role retinue_directory."""

    migrate_dsn: str = ""
    """The same database as its owner. If set, the schema is brought up to date at start."""

    postgres_pool_count: int = 4
    """Connections at most: tokens and keys are asked for rarely, tenants are cached by who asks."""
