"""Arguments as models write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import RetinueError
from retinue_runtime_adapter.tools import arguments
from retinue_runtime_adapter.tools.arguments import ArgumentsError, normalised, read
from retinue_runtime_adapter.tools.bounded import bounded, plain
from retinue_runtime_adapter.tools.builtin_files import beneath

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 1, "maximum": 9},
        "x": {"type": ["number", "null"]},
        "yes": {"type": "boolean"},
        "text": {"type": "string", "minLength": 2, "maxLength": 4},
        "many": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "inner": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        "choice": {"type": "string", "enum": ["a", "b"]},
    },
    "required": ["n"],
}


@pytest.mark.parametrize(
    ("given_", "taken"),
    [
        ({"n": "3"}, {"n": 3}),
        ({"n": 3.0}, {"n": 3}),
        ({"n": 1, "x": None}, {"n": 1, "x": None}),
        ({"n": 1, "x": "2.5"}, {"n": 1, "x": 2.5}),
        ({"n": 1, "yes": "True"}, {"n": 1, "yes": True}),
        ({"n": 1, "yes": None}, {"n": 1}),
        ({"n": 1, "text": 12}, {"n": 1, "text": "12"}),
        ({"n": 1, "many": "[1, 2]"}, {"n": 1, "many": [1, 2]}),
        ({"n": 1, "many": 4}, {"n": 1, "many": [4]}),
        ({"n": 1, "inner": '{"a": "7"}'}, {"n": 1, "inner": {"a": 7}}),
        ({"n": 1, "choice": "b"}, {"n": 1, "choice": "b"}),
    ],
)
def test_what_means_the_same_is_taken(given_: dict[str, Any], taken: dict[str, Any]) -> None:
    assert normalised(SCHEMA, given_) == taken


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({}, "n: is missing"),
        ({"n": None}, "n: must be integer"),
        ({"n": "three"}, "n: must be integer"),
        ({"n": 1.5}, "n: must be integer"),
        ({"n": True}, "n: must be integer"),
        ({"n": 0}, "n: must be at least 1"),
        ({"n": 10}, "n: must be at most 9"),
        ({"n": 1, "text": "a"}, "text: must have at least 2 characters"),
        ({"n": 1, "text": "abcde"}, "text: must have at most 4 characters"),
        ({"n": 1, "many": [1, 2, 3, 4]}, "many: must have at most 3 items"),
        ({"n": 1, "many": ["x"]}, "many[0]: must be integer"),
        ({"n": 1, "inner": {}}, "inner.a: is missing"),
        ({"n": 1, "inner": {"a": 1, "b": 2}}, "inner.b: there is no such argument"),
        ({"n": 1, "choice": "c"}, "choice: must be one of"),
        ({"n": 1, "other": 2}, "other: there is no such argument. There are: choice, inner"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name(given_: dict[str, Any], named: str) -> None:
    with pytest.raises(ArgumentsError) as refused:
        normalised(SCHEMA, given_)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "open_", [{"additionalProperties": True}, {"additionalProperties": {}}, {"patternProperties": {"^x": {}}}]
)
def test_an_unknown_name_passes_where_the_schema_says_that_more_may_come(open_: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, **open_}
    assert normalised(schema, {"a": "1", "x": [1]}) == {"a": 1, "x": [1]}


def test_a_schema_that_says_nothing_lets_everything_through() -> None:
    assert normalised({"type": "object"}, {"a": {"b": None}}) == {"a": {"b": None}}
    assert normalised({"properties": {"a": {"anyOf": [{"type": "string"}]}}}, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize("text", ["", "  ", "{}", '"{}"'])
def test_no_arguments_are_an_empty_object(text: str) -> None:
    assert read(text) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "3",
        '"x"',
        '{"a": 1e400}',
        '{"a": "\\ud800"}',
        '{"a": NaN}',
        "[" * 100_000,
        '{"a":' * 40 + "1" + "}" * 40,
    ],
)
def test_what_no_message_can_carry_is_refused(text: str) -> None:
    with pytest.raises(ArgumentsError):
        read(text)


def test_bounded_arguments_hold_only_so_many_values() -> None:
    with pytest.raises(ArgumentsError):
        read(f'{{"a": {[0] * arguments.VALUES_MAX}}}')


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["n", "x", "yes", "text", "many", "inner", "choice", "z"]), _JSON))
def test_normalising_twice_changes_nothing_more(value: dict[str, Any]) -> None:
    try:
        once = normalised(SCHEMA, value)
    except ArgumentsError:
        return
    assert normalised(SCHEMA, once) == once


@given(st.text(max_size=400), st.integers(70, 200))
def test_bounded_a_text_is_short_enough_and_keeps_both_its_ends(text: str, length: int) -> None:
    found = bounded(text, length)
    assert len(found) <= length
    assert found[:1] == text[:1]
    assert found[-1:] == text[-1:]
    if len(text) <= length:
        assert found == text


def test_a_text_is_made_one_that_every_protocol_carries() -> None:
    assert plain("a\0b\ud800c") == "ab?c"


@pytest.mark.parametrize(
    ("path", "found"),
    [("a.txt", "a.txt"), ("/workspace/a/b", "a/b"), ("./a//b/", "a/b"), ("/workspace", ""), ("", ""), ("../x", "../x")],
)
def test_a_path_is_meant_beneath_the_workspace(path: str, found: str) -> None:
    assert beneath(path) == found


@pytest.mark.parametrize("path", ["/etc/passwd", "/workspaces/x", "/"])
def test_a_path_beside_the_workspace_is_refused(path: str) -> None:
    with pytest.raises(RetinueError):
        beneath(path)
