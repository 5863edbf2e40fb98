"""Errors: one reason, one code, the contract's names, and the way over the wire and back."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from retinue.common.v1 import error_reason_pb2
from retinue_kit import wire
from retinue_kit.errors import CODES, Code, Reason, RetinueError

PREFIX = "ERROR_REASON_"


def test_reasons_are_the_contracts():
    contract = {name.removeprefix(PREFIX) for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {
        "UNSPECIFIED"
    }
    assert {str(reason) for reason in Reason} == contract
    assert all(reason.name == reason.value for reason in Reason)


def test_every_reason_has_a_code_and_none_is_unknown_to_grpc():
    assert set(CODES) == set(Reason)
    numbers = {code.value[0]: code.name for code in grpc.StatusCode}
    assert all(numbers[code.value] == code.name for code in Code)


def test_a_code_is_the_reasons_unless_told_otherwise():
    assert RetinueError(Reason.RUN_NOT_FOUND, "x").code is Code.NOT_FOUND
    assert RetinueError(Reason.INTERNAL, "x", code=Code.DATA_LOSS).code is Code.DATA_LOSS


def test_a_refused_field_is_named():
    error = RetinueError.field("ttl", "must be more than 0.")
    assert (error.reason, error.metadata, error.message) == (
        Reason.FIELD_INVALID,
        {"field": "ttl"},
        "ttl: must be more than 0.",
    )


def test_what_is_private_stays_here():
    error = RetinueError.unavailable("postgres", private="password=hunter2")
    assert "hunter2" not in str(error)
    assert b"hunter2" not in wire.to_status(error).SerializeToString()


@given(
    st.sampled_from(Reason),
    st.text(max_size=50),
    st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text(max_size=20), max_size=4),
    st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
    st.none() | st.sampled_from(Code),
)
def test_an_error_comes_back_as_it_went(reason, message, metadata, retry_after_s, code):
    error = RetinueError(reason, message, retry_after_s=retry_after_s, code=code)
    error.metadata = metadata
    status = status_pb2.Status.FromString(wire.to_status(error).SerializeToString())
    back = wire.from_status(status)
    assert (back.reason, back.message, back.metadata) == (reason, message, metadata)
    assert (back.retry_after_s, back.code) == (retry_after_s, error.code)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (Code.UNAVAILABLE, Reason.DEPENDENCY_UNAVAILABLE),
        (Code.DEADLINE_EXCEEDED, Reason.DEPENDENCY_UNAVAILABLE),
        (Code.NOT_FOUND, Reason.INTERNAL),
    ],
)
def test_an_error_without_a_reason_of_ours_is_told_by_its_code(code, reason):
    foreign = any_pb2.Any()
    foreign.Pack(error_details_pb2.ErrorInfo(reason="RUN_NOT_FOUND", domain="elsewhere"))
    error = wire.from_status(status_pb2.Status(code=code, message="secret sql", details=[foreign]), "router")
    assert error.reason is reason
    assert "secret sql" not in error.message
    assert "secret sql" in error.private


def test_json_always_has_details_and_metadata():
    shown = wire.to_json(wire.to_status(RetinueError(Reason.CONTACT_NOT_FOUND, "There is no such contact.")))
    assert shown == {
        "code": 5,
        "message": "There is no such contact.",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "CONTACT_NOT_FOUND",
                "domain": "retinue",
                "metadata": {},
            }
        ],
    }
    assert wire.to_json(status_pb2.Status(code=5))["details"] == []
