"""Events as clients see them, the same bytes from the bus and from the log."""

from datetime import UTC, datetime

import msgspec
from retinue_kit.streams import Cursor, Entry, Kind

TERMINAL = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
"""Exactly one of these ends a run."""

_encoder = msgspec.json.Encoder()


class Written(msgspec.Struct):
    """A durable event as the database wrote it."""

    n: int
    prev: str
    type: str
    data: msgspec.Raw
    run_id: str
    session_id: str
    time: str


_decoder = msgspec.json.Decoder(list[Written])


def instant(time: datetime) -> str:
    """Write an instant as RFC 3339 in UTC with milliseconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


def render(cursor: Cursor, type_: str, session_id: str, run_id: str, time: str, data: object) -> bytes:
    """Write an event on one line of JSON. `data` may be a msgspec.Raw."""
    event = {
        "cursor": str(cursor),
        "type": type_,
        "session_id": session_id,
        "run_id": run_id,
        "time": time,
        "data": data,
    }
    return _encoder.encode(event)


def durable(cursor: Cursor, prev: Cursor, event: Written) -> Entry:
    """Make the bus entry of an event that the database has written."""
    time = instant(datetime.fromisoformat(event.time))
    # Postgres writes spaces between the parts of jsonb; one line of JSON has none to spare.
    json = render(cursor, event.type, event.session_id, event.run_id, time, msgspec.json.decode(event.data))
    return Entry(cursor, Kind.DURABLE, prev, event.run_id, event.type, json)


def written(token: int, text: str) -> list[Entry]:
    """Read what write_events_1 answered: the entries of one token, in order."""
    return [durable(Cursor(token, e.n), Cursor.parse(e.prev), e) for e in _decoder.decode(text)]
