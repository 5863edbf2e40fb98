"""ES256: makes keys, signs tokens, shows public keys."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from retinue_directory.domain.tokens import SigningKey

ALGORITHM = "ES256"


def new_key(now: datetime) -> SigningKey:
    """Make a key pair on P-256; its id is the RFC 7638 thumbprint, so that equal keys have equal ids."""
    private = ec.generate_private_key(ec.SECP256R1())
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    canonical = json.dumps(_public(text), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).digest()
    return SigningKey(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), text, now)


def sign(key: SigningKey, claims: Mapping[str, str | int]) -> str:
    """Sign claims; the header names the key."""
    return jwt.encode(dict(claims), key.private_key, algorithm=ALGORITHM, headers={"kid": key.kid})


def key_set(keys: Iterable[SigningKey]) -> str:
    """Show the public halves as an RFC 7517 JSON Web Key Set."""
    shown = [{**_public(key.private_key), "kid": key.kid, "alg": ALGORITHM, "use": "sig"} for key in keys]
    return json.dumps({"keys": shown}, separators=(",", ":"))


def _public(private_key: str) -> dict[str, str]:
    """Show the members of the public key that identify it."""
    key = serialization.load_pem_private_key(private_key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    members = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {name: str(members[name]) for name in ("crv", "kty", "x", "y")}
