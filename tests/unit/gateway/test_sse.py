"""Framing of server-sent events."""

import json

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from retinue.router.v1 import run_pb2
from retinue_gateway import sse
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import Cursor, Entry, Kind


def entry(n: int, json_: bytes = b'{"a":"\xc3\xa9"}') -> Entry:
    return Entry(Cursor(7, n), Kind.TENTATIVE, None, "run_a", "assistant.delta", json_)


def test_an_event_is_told_as_it_is() -> None:
    assert sse.frame(entry(3)) == b'id: 7-3\nevent: assistant.delta\ndata: {"a":"\xc3\xa9"}\n\n'


def test_events_that_wait_together_are_one_piece() -> None:
    assert sse.frames([entry(1), entry(2)]) == sse.frame(entry(1)) + sse.frame(entry(2))
    assert sse.frames([]) == b""


def test_the_first_event_has_no_id() -> None:
    run = run_pb2.Run(run_id="run_a", session_id="ses_a", create_time=Timestamp(seconds=1))
    head, data = sse.queued(run).decode().removesuffix("\n\n").split("\n")
    assert head == "event: run.queued"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "run.queued",
        "session_id": "ses_a",
        "run_id": "run_a",
        "time": "1970-01-01T00:00:01Z",
        "data": {"attempt": 0, "runtime": "", "reason": "accepted"},
    }


def test_a_failure_is_a_status_on_one_line() -> None:
    data = sse.failure(RetinueError(Reason.DRAINING, "two\nlines", retry_after_s=1)).decode()
    assert data.startswith("event: error\ndata: {")
    assert data.count("\n") == 3
    status = json.loads(data.split("data: ")[1])
    assert (status["code"], status["details"][0]["reason"]) == (14, "DRAINING")


@pytest.mark.parametrize("size", [0, 1, sse.PIECE_SIZE_MAX_BYTES, 3 * sse.PIECE_SIZE_MAX_BYTES + 1])
def test_what_is_large_is_cut(size: int) -> None:
    data = bytes(size)
    pieces = list(sse.pieces(data))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= sse.PIECE_SIZE_MAX_BYTES for piece in pieces)
