"""Values of the contract's free-form fields, and rows as messages."""

import json
import math

import pytest
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st
from retinue.router.v1 import router_service_pb2, run_pb2
from retinue_kit.errors import RetinueError
from retinue_router import encoding

ROW = {
    "tenant_id": "ten_a", "run_id": "run_1", "contact": "anna", "session_id": "ses_1", "log_id": "log_1",
    "kind": "chat", "state": "failed", "runtime": None, "attempt": 1, "create_time": None,
    "start_time": None, "end_time": None,
    "output": None, "usage": None, "error": None, "after_token": 1, "after_n": 2, "traceparent": "", "decision": None,
    "run_at": None,
}  # fmt: skip

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def struct(document):
    return json_format.ParseDict(document, struct_pb2.Struct())


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_a_free_form_field_is_read_as_json_would(document):
    assert encoding.plain(struct(document), "metadata") == document


def test_whole_numbers_are_integers_where_a_double_holds_them_all():
    read = encoding.plain(struct({"a": 3, "b": -0.5, "c": 1e300, "d": [2.0]}), "metadata")
    assert json.dumps(read, sort_keys=True) == '{"a": 3, "b": -0.5, "c": 1e+300, "d": [2]}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_is_refused(number):
    wrong = struct({"a": {"b": [1]}})
    wrong.fields["a"].struct_value.fields["b"].list_value.values[0].number_value = number
    with pytest.raises(RetinueError) as refused:
        encoding.plain(wrong, "input")
    assert refused.value.metadata["field"] == "input"


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(-62135596801, 0), (253402300800, 0), (2**62, 0), (0, -1), (0, 1_000_000_000)]
)
def test_an_instant_that_no_calendar_holds_is_refused(seconds, nanos):
    wrong = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    with pytest.raises(RetinueError) as refused:
        encoding.to_submission(router_service_pb2.SubmitRunRequest(kind="extract", run_at=wrong))
    assert refused.value.metadata["field"] == "run_at"


@pytest.mark.parametrize("seconds", [-62135596800, 0, 253402300799])
def test_an_instant_of_any_other_year_is_read_and_written_as_it_is(seconds):
    instant = timestamp_pb2.Timestamp(seconds=seconds, nanos=5000)
    read = encoding.to_submission(router_service_pb2.SubmitRunRequest(kind="extract", run_at=instant)).run_at
    assert encoding.run({**ROW, "run_at": read}).run_at == instant


def test_a_run_s_trace_is_read_from_its_parent_span():
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    assert encoding.run({**ROW, "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}).trace_id == trace_id
    assert encoding.run(ROW).trace_id == ""


def test_an_error_with_a_detail_that_is_not_known_keeps_its_code_and_message():
    error = {"code": 14, "message": "away", "details": [{"@type": "type.googleapis.com/not.known.Here", "a": 1}]}
    shown = encoding.run({**ROW, "error": json.dumps(error)}).error
    assert (shown.code, shown.message, len(shown.details)) == (14, "away", 0)


def test_states_are_named_as_rows_name_them():
    assert encoding.state_name(run_pb2.RUN_STATE_WAITING) == "waiting"
    assert encoding.state_name(run_pb2.RUN_STATE_UNSPECIFIED) == ""
