"""What every call of the public API brings along besides its message, and what goes back beside the answer."""

from typing import Any

import grpc
from retinue_kit.errors import RetinueError
from retinue_kit.server import text_metadata

from retinue_gateway import fields
from retinue_gateway.credentials import Caller, read_caller

KEY = "idempotency-key"
REPLAY_HEADER = ("idempotent-replay", "true")

Context = grpc.aio.ServicerContext[Any, Any]


def caller_of(context: Context) -> Caller:
    """Read who calls; the gate has let them in."""
    return read_caller(text_metadata(context))


def key_of(context: Context) -> str:
    """Read the idempotency key; empty if there is none. Raises RetinueError(FIELD_INVALID)."""
    key = text_metadata(context).get(KEY)
    if key == "":
        raise RetinueError.field(fields.KEY_FIELD, "must not be empty.")
    return fields.check_key(key or "")
