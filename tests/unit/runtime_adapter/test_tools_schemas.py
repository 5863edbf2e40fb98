"""Tools as models are told of them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_runtime_adapter.tools.schemas import (
    _GEMINI,
    DESCRIPTION_LENGTH_MAX,
    SCHEMA_DEPTH_MAX,
    WRITTEN_MAX,
    cleaned,
    described,
)
from tool_driver import CountingTool

WILD: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "x",
    "type": "object",
    "title": "Wild",
    "additionalProperties": False,
    "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "number", "exclusiveMinimum": 0}}}},
    "properties": {
        "where": {"$ref": "#/$defs/Point", "description": "Where."},
        "when": {"type": "string", "format": "date-time", "default": "now"},
        "maybe": {"type": ["string", "null"]},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
        "one": {"oneOf": [{"type": "string"}, {"type": "null"}]},
        "fixed": {"const": "a"},
        "count": {"type": "integer", "enum": [1, 2]},
        "all": {"allOf": [{"type": "string"}, {"description": "All."}]},
        "list": {"type": "array"},
        "many": {"type": ["string", "integer"]},
    },
    "required": ["where", "gone"],
}


def test_openai_gets_the_schema_without_what_names_it() -> None:
    found = cleaned(WILD, "openai")
    assert "$schema" not in found
    assert "$id" not in found
    assert found["additionalProperties"] is False
    assert found["properties"] == WILD["properties"]
    assert found["$defs"] == WILD["$defs"]


def test_gemini_gets_only_words_that_it_knows() -> None:
    found = cleaned(WILD, "gemini")
    properties = found["properties"]
    assert properties["where"] == {
        "type": "object",
        "properties": {"x": {"type": "number"}},
        "description": "Where.",
    }
    assert properties["when"] == {"type": "string"}
    assert properties["maybe"] == {"type": "string", "nullable": True}
    assert properties["either"] == {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True}
    assert properties["one"] == {"type": "string", "nullable": True}
    assert properties["fixed"] == {"enum": ["a"], "type": "string"}
    assert properties["count"] == {"enum": ["1", "2"], "type": "string"}
    assert properties["all"] == {"type": "string", "description": "All."}
    assert properties["list"] == {"type": "array", "items": {"type": "string"}}
    assert properties["many"] == {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    assert found["required"] == ["where"]


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"anyOf": [{"type": "object"}]}, {"properties": {}}])
def test_a_tools_schema_is_an_objects_always(dialect: Any, schema: dict[str, Any]) -> None:
    found = cleaned(schema, dialect)
    assert found["type"] == "object"
    assert found["properties"] == {}


@pytest.mark.parametrize("dialect", ["openai", "gemini"])
def test_bounded_a_schema_that_leads_into_itself_ends(dialect: Any) -> None:
    round_: dict[str, Any] = {"$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/a"}}}}}
    found = cleaned({**round_, "type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}, dialect)
    assert str(found).count("properties") <= SCHEMA_DEPTH_MAX + 2
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}}
    assert str(cleaned(deep, dialect)).count("properties") <= SCHEMA_DEPTH_MAX + 1


_SCHEMA = st.recursive(
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["string", "null", ["integer", "null"]]),
                                        "format": st.just("email"), "const": st.integers(), "pattern": st.just(".")}),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"properties": st.dictionaries(st.sampled_from("ab"), inner), "items": inner,
                      "anyOf": st.lists(inner, max_size=2), "allOf": st.lists(inner, max_size=2),
                      "required": st.just(["a"]), "additionalProperties": st.booleans()}
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=50)
@given(_SCHEMA)
def test_nothing_that_gemini_refuses_is_left_at_any_depth(schema: dict[str, Any]) -> None:
    def check(found: dict[str, Any]) -> None:
        assert found.keys() <= _GEMINI
        assert isinstance(found.get("type", ""), str)
        for part in [*found.get("properties", {}).values(), *found.get("anyOf", [])]:
            check(part)
        if "items" in found:
            check(found["items"])

    check(cleaned(schema, "gemini"))


def test_a_description_is_cut_where_endpoints_refuse_a_longer_one() -> None:
    tool = CountingTool()
    tool.description = "d" * 2000
    found = json.loads(bytes(described([tool], "openai")[0]))
    assert found["type"] == "function"
    assert len(found["function"]["description"]) == DESCRIPTION_LENGTH_MAX


def test_bounded_what_is_kept_written_is_each_tools_own() -> None:
    names = [f"t{n}" for n in range(WRITTEN_MAX + 10)]
    found = [json.loads(bytes(described([CountingTool(name)], "gemini")[0]))["function"]["name"] for name in names]
    assert found == names
    tool = CountingTool("same")
    assert described([tool], "openai")[0] is described([tool], "openai")[0]
    assert described([tool], "openai") != described([CountingTool("other")], "openai")
