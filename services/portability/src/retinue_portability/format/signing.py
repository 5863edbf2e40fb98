"""The deployment's signature: Ed25519, by a key that is named after itself."""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from retinue_kit.config import SettingError

SIGNATURE_BYTES = 64
KEY_ID_DIGITS = 16

FORMER_KEYS_MAX = 32
"""Keys whose bundles are taken besides one's own: one rotated each month since nearly three years."""


def key_id_of(key: Ed25519PublicKey) -> str:
    """Name a key: the first digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:KEY_ID_DIGITS]


class Signer:
    """Signs with one key; knows the signatures of that one and of former ones."""

    def __init__(self, key: Ed25519PrivateKey, former: Iterable[Ed25519PublicKey] = ()) -> None:
        self._key = key
        own = key.public_key()
        self.key_id = key_id_of(own)
        self._known = {key_id_of(one): one for one in (*former, own)}

    @classmethod
    def load(cls, path: Path, former: str = "") -> "Signer":
        """Read a key, PKCS #8 in PEM, and public keys of others: base64 of 32 bytes each, separated by commas.

        Raises SettingError in one line if one of them cannot be used.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise SettingError(f"The key of bundles, {path}, cannot be read: {error.strerror}.") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingError(f"The key of bundles, {path}, must be an Ed25519 private key in PEM.")
        names = [name.strip() for name in former.split(",") if name.strip()]
        if len(names) > FORMER_KEYS_MAX:
            raise SettingError(f"There must be at most {FORMER_KEYS_MAX} former keys that bundles were signed with.")
        return cls(key, map(_public, names))

    def sign(self, data: bytes) -> bytes:
        """Sign; 64 bytes, the same for the same data."""
        return self._key.sign(data)

    def knows(self, key_id: str) -> bool:
        """Say whether signatures of a key are taken."""
        return key_id in self._known

    def verifies(self, key_id: str, signature: bytes, data: bytes) -> bool:
        """Say whether a key that is known has signed this."""
        key = self._known.get(key_id)
        if key is None:
            return False
        try:
            key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def new_key() -> bytes:
    """Make a key, PKCS #8 in PEM."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise SettingError(f"{text!r} is no former key that bundles were signed with: base64 of 32 bytes.") from None
