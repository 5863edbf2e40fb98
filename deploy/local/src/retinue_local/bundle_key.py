"""The key that the deployment signs bundles with: made once, for the state folder's owner alone."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from retinue_kit.config import SettingError


async def prepare(path: Path) -> None:
    """Make the key, Ed25519 as PKCS #8 in PEM, if there is none. Raises SettingError in one line."""
    if path.exists():
        return
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    new = path.with_suffix(".new")
    try:
        # It is there whole or not at all: a start that is cut off leaves no half of a key.
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except OSError as error:
        raise SettingError(f"The key of bundles {path} cannot be made: {error.strerror}.") from None
