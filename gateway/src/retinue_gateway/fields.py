"""Rules of the public contract that the validation rules of its fields cannot say."""

import math
import unicodedata
from collections.abc import Iterable

from google.protobuf import struct_pb2
from google.protobuf.message import Message
from retinue_kit.errors import RetinueError

VERBS = frozenset({"stream", "reset", "wait", "cancel", "decide"})
"""What may follow the last colon of a path: a contact that ended so could not be told from a call."""

KEY_LENGTH_MAX = 255
METADATA_ENTRIES_MAX = 64
STRUCT_DEPTH_MAX = 32
"""Deeper than any facts a person wrote, and far from where parsers give up."""

KEY_FIELD = "Idempotency-Key"


def check_contact(contact: str) -> None:
    """Raise RetinueError(FIELD_INVALID) for a name that could not be told from another, or from a part of a path.

    Length and characters are checked by the contract's own rules.
    """
    if not unicodedata.is_normalized("NFC", contact):
        raise RetinueError.field("contact", "must be in Unicode's normal form C.")
    if contact in (".", ".."):
        raise RetinueError.field("contact", 'must not be "." or "..".')
    _, colon, last = contact.rpartition(":")
    if colon and last in VERBS:
        raise RetinueError.field("contact", f'must not end in ":{last}", which is a call.')


def check_key(key: str) -> str:
    """Answer an idempotency key as it is. Raises RetinueError(FIELD_INVALID); an absent one is empty."""
    if len(key) > KEY_LENGTH_MAX or not all("!" <= character <= "~" for character in key):
        raise RetinueError.field(KEY_FIELD, f"must be 1 to {KEY_LENGTH_MAX} visible ASCII characters.")
    return key


def check_metadata(metadata: struct_pb2.Struct) -> None:
    """Raise RetinueError(FIELD_INVALID) for too many of the client's own facts."""
    if len(metadata.fields) > METADATA_ENTRIES_MAX:
        raise RetinueError.field("metadata", f"must have at most {METADATA_ENTRIES_MAX} entries.")


def check_storable(request: Message) -> None:
    """Raise RetinueError(FIELD_INVALID) for what JSON and Postgres cannot hold: NUL, NaN, infinity, endless depth."""
    for descriptor, value in request.ListFields():
        if isinstance(value, str):
            _check_text(descriptor.name, value)
        elif isinstance(value, struct_pb2.Struct):
            _check_values(descriptor.name, value.fields.items())


def _check_text(field: str, text: str) -> None:
    if "\0" in text:
        raise RetinueError.field(field, "must not contain the character U+0000.")


def _check_values(field: str, items: Iterable[tuple[str, struct_pb2.Value]], depth: int = 1) -> None:
    if depth > STRUCT_DEPTH_MAX:
        raise RetinueError.field(field, f"must not be nested deeper than {STRUCT_DEPTH_MAX} levels.")
    for name, value in items:
        _check_text(field, name)
        match value.WhichOneof("kind"):
            case "string_value":
                _check_text(field, value.string_value)
            case "number_value":
                if not math.isfinite(value.number_value):
                    raise RetinueError.field(field, "must not contain NaN or infinity.")
            case "struct_value":
                _check_values(field, value.struct_value.fields.items(), depth + 1)
            case "list_value":
                _check_values(field, (("", element) for element in value.list_value.values), depth + 1)
