"""Where a contact's files stand in a tenant's workspace."""

import hashlib

FOLDER_SIZE_MAX_BYTES = 200
"""File systems take 255 bytes; a longer name keeps its beginning and gets a digest."""

_DIGEST_HEX = 24


def contact_folder(contact: str) -> str:
    """Name the folder of a contact: the name itself where it fits. Two contacts never share one."""
    encoded = contact.encode()
    if len(encoded) <= FOLDER_SIZE_MAX_BYTES:
        return contact
    start = encoded[: FOLDER_SIZE_MAX_BYTES - _DIGEST_HEX - 1].decode(errors="ignore")
    # A name can hold no tilde, so that no short name equals a shortened one.
    return f"{start}~{hashlib.sha256(encoded).hexdigest()[:_DIGEST_HEX]}"
