"""Tools as models are told of them: each endpoint takes its own part of JSON schema."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from retinue_runtime_adapter.tools.ports import Tool

SCHEMA_DEPTH_MAX = 16
"""Levels of a schema; what lies deeper is told as anything at all."""

DESCRIPTION_LENGTH_MAX = 1024
"""Characters of a tool's description: what OpenAI takes."""

WRITTEN_MAX = 1024
"""Descriptions that are kept written; then writing begins anew."""

Dialect = Literal["openai", "gemini"]
Json = dict[str, Any]

_NAMES_ONLY = frozenset({"$schema", "$id", "$comment", "$anchor"})
"""What says something about a schema and nothing about a value: some endpoints refuse it, none needs it."""

_GEMINI = frozenset(
    {
        *("type", "description", "enum", "items", "properties", "required", "nullable", "anyOf", "minimum", "maximum"),
        *("minItems", "maxItems", "minLength", "maxLength", "title"),
    }
)
"""What Gemini's schema has. It refuses a request for any other word."""

_REFERENCE = re.compile(r"#/(?:\$defs|definitions)/([^/]+)\Z")


_written: dict[tuple[int, Dialect], tuple[Tool, msgspec.Raw]] = {}
"""By a tool's identity, which is its own as long as it is held here."""


def described(tools: Sequence[Tool], dialect: Dialect) -> list[msgspec.Raw]:
    """Write `tools` of a chat completion's request, as JSON. A tool says the same of itself as long as it is there."""
    return [_described(tool, dialect) for tool in tools]


def _described(tool: Tool, dialect: Dialect) -> msgspec.Raw:
    key = (id(tool), dialect)
    found = _written.get(key)
    if found is None:
        if len(_written) >= WRITTEN_MAX:
            _written.clear()
        function = {
            "name": tool.name,
            "description": tool.description[:DESCRIPTION_LENGTH_MAX],
            "parameters": cleaned(tool.parameters, dialect),
        }
        written = msgspec.Raw(msgspec.json.encode({"type": "function", "function": function}))
        found = _written[key] = (tool, written)
    return found[1]


def cleaned(schema: Mapping[str, Any], dialect: Dialect) -> Json:
    """A tool's schema as an endpoint takes it: an object's, always."""
    definitions = {**_mapping(schema.get("definitions")), **_mapping(schema.get("$defs"))}
    found = _gemini(schema, definitions, 0) if dialect == "gemini" else _openai(schema, 0)
    if not isinstance(found, dict) or found.get("type") != "object":
        found = {"type": "object", **(found if isinstance(found, dict) else {})}
        found["type"] = "object"
    found.setdefault("properties", {})
    return found


def _mapping(value: Any) -> Json:
    return dict(value) if isinstance(value, Mapping) else {}


def _openai(schema: Any, depth: int) -> Any:
    if depth > SCHEMA_DEPTH_MAX:
        return {}
    if isinstance(schema, Mapping):
        return {name: _openai(value, depth + 1) for name, value in schema.items() if name not in _NAMES_ONLY}
    if isinstance(schema, list):
        return [_openai(value, depth + 1) for value in schema]
    return schema


def _gemini(schema: Any, definitions: Json, depth: int) -> Json:
    """One schema in Gemini's words: references are written out, null is a property, unions are `anyOf`."""
    if not isinstance(schema, Mapping) or depth > SCHEMA_DEPTH_MAX:
        return {"type": "object"} if depth > SCHEMA_DEPTH_MAX else {}
    reference = _REFERENCE.match(str(schema.get("$ref", "")))
    if reference:
        return _gemini({**_mapping(definitions.get(reference[1])), **_without(schema, "$ref")}, definitions, depth + 1)
    for part in schema.get("allOf") or ():
        schema = {**_mapping(part), **_without(schema, "allOf")}
    found = {name: value for name, value in schema.items() if name in _GEMINI}
    if "const" in schema:
        found["enum"] = [schema["const"]]
    if "enum" in found:
        # It takes texts only; a number means the same when it comes back, since arguments are read by their schema.
        found["enum"] = [str(value) for value in found["enum"] if value is not None]
        found["type"] = "string"
    _type(found)
    unions = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(unions, list):
        _union(found, [_gemini(part, definitions, depth + 1) for part in unions])
    if "properties" in found:
        properties = _mapping(found["properties"])
        found["properties"] = {name: _gemini(part, definitions, depth + 1) for name, part in properties.items()}
        if "required" in found:
            found["required"] = [name for name in found["required"] if name in properties]
    if found.get("type") == "array" or "items" in found:
        found["items"] = _gemini(found.get("items"), definitions, depth + 1) or {"type": "string"}
    return found


def _without(schema: Mapping[str, Any], name: str) -> Json:
    return {key: value for key, value in schema.items() if key != name}


def _type(found: Json) -> None:
    """Write a list of types as one, and null as a property."""
    types = found.get("type")
    if not isinstance(types, list):
        return
    if "null" in types:
        found["nullable"] = True
    rest = [kind for kind in types if kind != "null"]
    if len(rest) == 1:
        found["type"] = rest[0]
    else:
        del found["type"]
        if rest:
            found["anyOf"] = [{"type": kind} for kind in rest]


def _union(found: Json, parts: list[Json]) -> None:
    rest = [part for part in parts if part.get("type") != "null"]
    if len(rest) < len(parts):
        found["nullable"] = True
    if len(rest) == 1:
        found.pop("anyOf", None)
        for name, value in rest[0].items():
            found.setdefault(name, value)
    elif rest:
        found["anyOf"] = rest
