"""What an operator may set."""

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """Read from RETINUE_<NAME>."""

    address: str
    """Where to listen: unix:/path or host:port."""
