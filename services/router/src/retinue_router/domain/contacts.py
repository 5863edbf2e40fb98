"""Contacts: which names there are, and the log that a name leads to."""

import hashlib
import unicodedata

from retinue_kit.errors import RetinueError
from retinue_kit.ids import encode_base32

NAME_MAX_CHARS = 128
SIGNS = frozenset("-_.@+:")
VERBS = frozenset({"stream", "reset", "wait", "cancel", "decide"})
"""What may follow a colon at the end of a path of the public API; a name that ends like this could not be addressed."""

_LOG_BITS = 130
"""26 characters of 5 bits."""


def check_name(contact: str) -> None:
    """Refuse a name that is no contact's. Raises RetinueError(FIELD_INVALID)."""
    if not 1 <= len(contact) <= NAME_MAX_CHARS:
        raise RetinueError.field("contact", f"must have 1 to {NAME_MAX_CHARS} characters")
    if not all(sign in SIGNS or unicodedata.category(sign)[0] in "LMN" for sign in contact):
        raise RetinueError.field("contact", "must hold letters and digits of any script and -_.@+: only")
    if contact in (".", ".."):
        raise RetinueError.field("contact", "must not be . or ..")
    if unicodedata.normalize("NFC", contact) != contact:
        raise RetinueError.field("contact", "must be in Unicode's normal form C")
    _, colon, last = contact.rpartition(":")
    if colon and last in VERBS:
        raise RetinueError.field("contact", f"must not end in :{last}, which is a verb of the API")


def log_id_of(tenant_id: str, contact: str) -> str:
    """Name the log of a contact. Each pair of a tenant and a name has its own, whether anything was said or not."""
    tenant, name = tenant_id.encode(), contact.encode()
    # The length keeps pairs apart whose joint text is the same.
    digest = hashlib.sha256(len(tenant).to_bytes(4, "big") + tenant + name).digest()
    return "log_" + encode_base32(int.from_bytes(digest, "big") >> (256 - _LOG_BITS), 26)
