"""Rules of fields that the contract's own rules cannot say."""

import math

import pytest
from google.protobuf import struct_pb2
from retinue.edge.v1 import edge_service_pb2
from retinue_gateway import fields
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import validate


def message(contact: str = "ada", text: str = "hi") -> edge_service_pb2.SendMessageRequest:
    return edge_service_pb2.SendMessageRequest(contact=contact, text=text)


def check(contact: str) -> None:
    """Check by the contract's rules and by ours, as a call does."""
    validate(message(contact))
    fields.check_contact(contact)


@pytest.mark.parametrize(
    "contact",
    [
        "a",
        "ada",
        "Ева",
        "小红",
        "é",
        "a.b",
        "...",
        "a@b.c",
        "+4912",
        "a:b",
        "stream",
        "a:streams",
        ":",
        "a:",
        "-_.@+:",
        "क्षि",
    ],
)
def test_names_of_any_script_are_contacts(contact: str) -> None:
    check(contact)


@pytest.mark.parametrize(
    "contact",
    ["", "a b", "a/b", "a\n", "x" * 129, "a?", "😀", "\u202e", ".", "..", "e\u0301", "a:stream", ":cancel"],
)
def test_names_that_could_be_taken_for_another_are_none(contact: str) -> None:
    with pytest.raises(RetinueError) as raised:
        check(contact)
    assert raised.value.reason is Reason.FIELD_INVALID
    assert raised.value.metadata == {"field": "contact"}


@pytest.mark.parametrize("key", ["", "k", "!~", "x" * 255, 'a,b;c="d"'])
def test_visible_ascii_is_a_key(key: str) -> None:
    assert fields.check_key(key) == key


@pytest.mark.parametrize("key", [" ", "a b", "é", "\x7f", "\t", "x" * 256])
def test_anything_else_is_no_key(key: str) -> None:
    with pytest.raises(RetinueError) as raised:
        fields.check_key(key)
    assert raised.value.metadata == {"field": "Idempotency-Key"}


def test_facts_are_few() -> None:
    facts = struct_pb2.Struct()
    facts.update({str(n): n for n in range(64)})
    fields.check_metadata(facts)
    facts.update({"one more": None})
    with pytest.raises(RetinueError):
        fields.check_metadata(facts)


@pytest.mark.parametrize("value", ["a\0", {"a\0": 1}, [["a\0"]], math.nan, [math.inf], [{"a": -math.inf}]])
def test_what_postgres_cannot_hold_is_refused(value: object) -> None:
    request = message()
    request.metadata.update({"a": value})
    with pytest.raises(RetinueError) as raised:
        fields.check_storable(request)
    assert raised.value.metadata == {"field": "metadata"}


def test_depth_is_bounded() -> None:
    for depth, fits in ((fields.STRUCT_DEPTH_MAX, True), (fields.STRUCT_DEPTH_MAX + 1, False)):
        value: dict[str, object] = {"a": 1}
        for _ in range(depth - 1):
            value = {"a": value}
        request = message()
        request.metadata.update(value)
        if fits:
            fields.check_storable(request)
        else:
            with pytest.raises(RetinueError):
                fields.check_storable(request)


def test_ordinary_requests_are_storable() -> None:
    request = message(text="any\ttext\n€ 😀")
    request.metadata.update({"a": [1, 2.5, "x", None, True, {"b": []}]})
    fields.check_storable(request)
