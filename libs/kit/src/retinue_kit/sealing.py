"""Secrets at rest: sealed with a key of the deployment, bound to what they are for.

A file holds the keys, one a line, as `id base64` of 32 bytes. The first one seals; all of them open, so that a new key
is put above the old ones, and an old one is taken out once nothing is sealed with it any more.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from retinue_kit.config import SettingError

KEY_BYTES = 32
_NONCE_BYTES = 12
_ID = re.compile(r"[0-9a-z]{1,32}")


class UnsealError(Exception):
    """What was sealed cannot be opened; the text says why and holds nothing of it."""


class Sealer:
    """AES-256-GCM under named keys. What is sealed: size of the key's id, the id, the nonce, the text with its tag."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {name: AESGCM(key) for name, key in keys.items()}
        self._newest = next(iter(keys))

    @classmethod
    def load(cls, path: Path) -> "Sealer":
        """Read a file of keys. Raises SettingError in one line if it cannot be used."""
        keys: dict[str, bytes] = {}
        try:
            for line in path.read_text("utf-8").splitlines():
                name, _, text = line.strip().partition(" ")
                key = base64.b64decode(text, validate=True)
                if not _ID.fullmatch(name) or name in keys or len(key) != KEY_BYTES:
                    raise ValueError
                keys[name] = key
        except OSError as error:
            raise SettingError(f"The sealing keys in {path} cannot be read: {error.strerror}.") from None
        except (ValueError, binascii.Error):
            raise SettingError(
                f"The sealing keys in {path} must be lines of an id (letters a to z, digits) and the base64 of"
                f" {KEY_BYTES} bytes, each id once."
            ) from None
        if not keys:
            raise SettingError(f"There is no sealing key in {path}.")
        return cls(keys)

    def seal(self, secret: bytes, purpose: str) -> bytes:
        """Seal a secret; it opens for the same purpose only, such as the name of the row that it stands in."""
        name, nonce = self._newest.encode(), os.urandom(_NONCE_BYTES)
        return bytes([len(name)]) + name + nonce + self._ciphers[self._newest].encrypt(nonce, secret, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """Open what was sealed for this purpose. Raises UnsealError."""
        start = 1 + (sealed[0] if sealed else 0)
        name = sealed[1:start].decode("ascii", "replace")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise UnsealError(f"it was sealed with the key {name}, which is not in the file of keys")
        nonce, text = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, text, purpose.encode())
        except (InvalidTag, ValueError):
            raise UnsealError("it was sealed with another key of this name, or for something else") from None


def new_key() -> str:
    """Make a line for a file of keys."""
    return f"{os.urandom(4).hex()} {base64.b64encode(os.urandom(KEY_BYTES)).decode()}\n"
