"""Frames of the WebSocket protocol."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_gateway.frames import FRAME_SIZE_MAX_BYTES, Frame, error_event, event_frame, refusal_frame, result_frame
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import Cursor, Entry, Kind


@pytest.mark.parametrize("id_", ["1", 7, "x" * 128])
def test_a_request_is_read(id_: str | int) -> None:
    frame = Frame()
    frame.read(json.dumps({"type": "req", "id": id_, "method": "ping", "params": {"a": 1}, "more": 1}))
    assert (frame.id, frame.method, frame.params) == (id_, "ping", {"a": 1})


def test_params_may_be_left_out() -> None:
    frame = Frame()
    frame.read('{"type":"req","id":"1","method":"ping"}')
    assert frame.params == {}


def test_what_is_too_large_is_not_read() -> None:
    for text in ("x" * (FRAME_SIZE_MAX_BYTES + 1), "é" * (FRAME_SIZE_MAX_BYTES // 2 + 1)):
        with pytest.raises(RetinueError) as raised:
            Frame().read(text)
        assert raised.value.reason is Reason.BODY_TOO_LARGE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.text()
    | json_values.map(json.dumps)
    | st.fixed_dictionaries(
        {"type": st.just("req")}, optional={"id": json_values, "method": json_values, "params": json_values}
    ).map(json.dumps)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    frame = Frame()
    try:
        frame.read(text)
    except RetinueError as error:
        refused = json.loads(refusal_frame(frame.id, error))
    else:
        refused = {"ok": False, "id": frame.id, "error": {"code": 3}}
    assert (refused["ok"], refused["id"], refused["error"]["code"]) == (False, frame.id, 3)
    assert isinstance(frame.method, str)
    assert isinstance(frame.params, dict)


def test_answers_and_events_have_their_shapes() -> None:
    assert json.loads(result_frame("1", {"a": 1})) == {"type": "res", "id": "1", "ok": True, "result": {"a": 1}}
    entry = Entry(Cursor(1, 2), Kind.DURABLE, None, "run_a", "x", '{"cursor":"1-2","t":"é"}'.encode())
    assert json.loads(event_frame('a"b', entry)) == {
        "type": "event",
        "contact": 'a"b',
        "event": {"cursor": "1-2", "t": "é"},
    }
    told = json.loads(error_event("ada", RetinueError(Reason.DRAINING, "bye")))
    assert (told["event"]["type"], told["event"]["data"]["code"]) == ("error", 14)
