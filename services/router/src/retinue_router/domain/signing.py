"""How a receiver knows that a delivery is ours: Standard Webhooks, and the signature of Feishu's custom bots."""

import base64
import binascii
import hashlib
import hmac
import os

from retinue_kit.errors import RetinueError

PREFIX = "whsec_"
KEY_BYTES = 32
KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64
"""What Standard Webhooks asks of a key."""


def new_secret() -> str:
    """Make a secret for Standard Webhooks."""
    return PREFIX + base64.b64encode(os.urandom(KEY_BYTES)).decode()


def check_secret(secret: str) -> None:
    """Refuse a secret that Standard Webhooks does not know. Raises RetinueError(FIELD_INVALID)."""
    try:
        size = len(_key(secret)) if secret.startswith(PREFIX) else 0
    except binascii.Error:
        size = 0
    if not KEY_BYTES_MIN <= size <= KEY_BYTES_MAX:
        raise RetinueError.field(
            "secret", f"must be {PREFIX} and the base64 of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes."
        )


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)


def standard_headers(secret: str, delivery_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Sign a body as of a time in seconds since the epoch, by Standard Webhooks, version 1."""
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": delivery_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


def feishu_sign(secret: str, timestamp: int) -> str:
    """Sign as Feishu's custom bots want it: time and secret are the key, and nothing is what is signed."""
    return base64.b64encode(hmac.new(f"{timestamp}\n{secret}".encode(), b"", hashlib.sha256).digest()).decode()
