"""What an operator may set."""

from pathlib import Path

import msgspec
from retinue_kit.config import check_bounds

from retinue_portability.domain.budget import TOKENS_MAX


class Settings(msgspec.Struct, frozen=True):
    """Read from RETINUE_<NAME>."""

    address: str
    """Where to listen: unix:/path or host:port."""

    router_address: str
    """The router, which owns the log and what is remembered."""

    directory_address: str
    """The directory, which knows agents."""

    bundle_signing_key_file: Path
    """The key that bundles are signed with: Ed25519, PKCS #8 in PEM."""

    runtime_adapter_address: str = ""
    """The runtime-adapter, whose models sum up; without it, sentences are picked."""

    bundle_former_keys: str = ""
    """Public keys whose bundles are taken besides: base64 of 32 bytes each, separated by commas."""

    bundle_token_budget: int = 24_000
    """Tokens of a bundle, or of a session that is summed up, where nobody asks for a number."""

    def __post_init__(self) -> None:
        check_bounds(self, {"bundle_token_budget": (256, TOKENS_MAX)})
