"""The one way in which a message of a bundle is written, and the refusal of every other.

Protobuf leaves a writer free: order of fields, fields that nobody knows, defaults that are written out, numbers longer
than need be. So what is read is written again, without what is unknown, and must come out the same.
"""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from retinue_kit.errors import Reason, RetinueError

M = TypeVar("M", bound=Message)


def invalid(part: str, why: str) -> RetinueError:
    """Refuse a bundle for the sake of a part: one of its parts, "manifest" or "signature"."""
    return RetinueError(Reason.BUNDLE_INVALID, f"The bundle cannot be taken: its {part} {why}.", part=part)


def write(message: Message) -> bytes:
    """Write a message: fields in the order of their numbers. There are no maps, whose order would be anybody's."""
    return message.SerializeToString(deterministic=True)


def read(kind: type[M], data: bytes, part: str) -> M:
    """Read what `write` has written. Raises BUNDLE_INVALID for anything else."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise invalid(part, "cannot be read") from None
    message.DiscardUnknownFields()
    if write(message) != data:
        raise invalid(part, "is not written in the one way that is allowed, or holds something unknown")
    return message
