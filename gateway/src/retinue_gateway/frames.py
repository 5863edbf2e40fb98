"""Frames of the WebSocket protocol: reading what clients say, writing what they are told."""

from typing import Any

import msgspec
from retinue_kit import wire
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import Entry

FRAME_SIZE_MAX_BYTES = 1024 * 1024
"""A client's frame: as large as a request's body may be. The server below cuts off at twice that."""

ID_LENGTH_MAX = 128


class Frame:
    """A request of a client. What could be read of it stays, so that a refusal can name it."""

    def __init__(self) -> None:
        self.id: str | int | None = None
        self.method = ""
        self.params: dict[str, Any] = {}

    def read(self, text: str | None) -> None:
        """Read a frame; None stands for a binary one. Raises RetinueError(FIELD_INVALID or BODY_TOO_LARGE)."""
        if text is None:
            raise RetinueError.field("frame", "must be text.")
        if len(text) > FRAME_SIZE_MAX_BYTES or len(text.encode()) > FRAME_SIZE_MAX_BYTES:
            raise RetinueError(Reason.BODY_TOO_LARGE, "The frame is larger than 1 MiB.")
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise RetinueError.field("frame", "must be JSON.") from None
        if not isinstance(value, dict):
            raise RetinueError.field("frame", "must be a JSON object.")
        id_ = value.get("id")
        if isinstance(id_, bool) or not isinstance(id_, str | int) or len(str(id_)) > ID_LENGTH_MAX:
            raise RetinueError.field("id", f"must be a string of at most {ID_LENGTH_MAX} characters.")
        self.id = id_
        method, params = value.get("method"), value.get("params", {})
        if value.get("type") != "req":
            raise RetinueError.field("type", 'must be "req".')
        if not isinstance(method, str):
            raise RetinueError.field("method", "must be a string.")
        if not isinstance(params, dict):
            raise RetinueError.field("params", "must be an object.")
        self.method, self.params = method, params


def result_frame(id_: str | int | None, result: dict[str, Any]) -> str:
    """Answer a request."""
    return msgspec.json.encode({"type": "res", "id": id_, "ok": True, "result": result}).decode()


def refusal_frame(id_: str | int | None, error: RetinueError) -> str:
    """Refuse a request."""
    told = wire.to_json(wire.to_status(error))
    return msgspec.json.encode({"type": "res", "id": id_, "ok": False, "error": told}).decode()


def event_frame(contact: str, entry: Entry) -> str:
    """Tell an event of a contact; its JSON goes in as it is."""
    return f'{{"type":"event","contact":{_text(contact)},"event":{entry.json.decode()}}}'


def error_event(contact: str, error: RetinueError) -> str:
    """Tell that a subscription has ended because of an error."""
    event = {"type": "error", "data": wire.to_json(wire.to_status(error))}
    return msgspec.json.encode({"type": "event", "contact": contact, "event": event}).decode()


def _text(value: str) -> str:
    return msgspec.json.encode(value).decode()
