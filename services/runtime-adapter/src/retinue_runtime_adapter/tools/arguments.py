"""Arguments as models write them, made into what a tool's schema asks for."""

import json
import math
from collections.abc import Mapping
from typing import Any

DEPTH_MAX = 32
"""Levels of arguments; far below what protobuf's own decoders refuse (100)."""

VALUES_MAX = 10_000
"""Values in one call's arguments: what every server of the mesh takes in one struct."""

SHOWN_MAX = 20
"""Names that a message lists."""

Json = dict[str, Any]


class ArgumentsError(ValueError):
    """Arguments that a tool cannot be called with; the text is for the model."""


def read(text: str) -> Json:
    """Read what a model wrote. Raises ArgumentsError unless it is an object that a struct can carry."""
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        said = error if isinstance(error, json.JSONDecodeError) else "too deep"
        raise ArgumentsError(f"The arguments are not valid JSON: {said}.") from None
    if isinstance(value, str):
        # Some models write the object into a string.
        return read(value) if value.lstrip().startswith("{") else _no_object()
    if not isinstance(value, dict):
        return _no_object()
    _check_storable(value, 0, [VALUES_MAX])
    return value


def _no_object() -> Json:
    raise ArgumentsError("The arguments must be a JSON object.")


def _check_storable(value: Any, depth: int, left: list[int]) -> None:
    """Refuse what google.protobuf.Struct cannot carry."""
    left[0] -= 1
    if depth > DEPTH_MAX or left[0] < 0:
        raise ArgumentsError(f"The arguments must not be deeper than {DEPTH_MAX} levels or hold {VALUES_MAX} values.")
    if isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ArgumentsError("The arguments hold half a letter (a lone surrogate).")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            finite = math.isfinite(float(value))
        except OverflowError:
            finite = False
        if not finite:
            raise ArgumentsError("The arguments hold a number that is too large.")
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_storable(name, depth + 1, left)
            _check_storable(item, depth + 1, left)
    elif isinstance(value, list):
        for item in value:
            _check_storable(item, depth + 1, left)


def normalised(schema: Mapping[str, Any], arguments: Json) -> Json:
    """Arguments as the schema wants them. Raises ArgumentsError that names what is wrong.

    What means the same is taken ("3" for 3, null for what may be left out); an argument that the schema does not know
    is refused by its name. Looks at types, names, enumerations and bounds; the rest of a schema is its tool's to check.
    """
    return _object(schema, arguments, "", 0)


def _object(schema: Mapping[str, Any], value: Json, path: str, depth: int) -> Json:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or depth > DEPTH_MAX:
        return value
    required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
    found: Json = {}
    for name, item in value.items():
        where = f"{path}.{name}" if path else name
        wanted = properties.get(name)
        if not isinstance(wanted, Mapping):
            if name not in properties and _is_closed(schema):
                raise ArgumentsError(f"{where}: there is no such argument. There are: {_names(properties)}.")
            found[name] = item
        elif item is None and name not in required and not _takes(wanted, "null"):
            continue
        else:
            found[name] = _value(wanted, item, where, depth + 1)
    for name in required:
        if name not in found:
            raise ArgumentsError(f"{path}.{name}: is missing." if path else f"{name}: is missing.")
    return found


def _is_closed(schema: Mapping[str, Any]) -> bool:
    """Whether an unknown name is a mistake: unless the schema says that more may come."""
    return schema.get("additionalProperties", False) is False and not any(
        key in schema for key in ("patternProperties", "anyOf", "oneOf", "allOf", "$ref")
    )


def _names(properties: Mapping[str, Any]) -> str:
    names = sorted(properties)
    return ", ".join(names[:SHOWN_MAX]) or "none"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _types(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema names; none if it says it in other ways, which are not looked at."""
    named = schema.get("type")
    return [named] if isinstance(named, str) else [name for name in _list(named) if isinstance(name, str)]


def _takes(schema: Mapping[str, Any], kind: str) -> bool:
    types = _types(schema)
    return not types or kind in types


_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "number": (int, float),
    "integer": (int,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS.get(kind, (object,)))


def _value(schema: Mapping[str, Any], value: Any, path: str, depth: int) -> Any:
    types = _types(schema)
    if types:
        kind = next((kind for kind in types if _is(kind, value)), "")
        if not kind:
            kind, value = _coerced(types, value, path)
        if kind == "integer":
            value = int(value)
        elif kind == "object":
            value = _object(schema, value, path, depth)
        elif kind == "array":
            items = schema.get("items")
            if isinstance(items, Mapping) and depth <= DEPTH_MAX:
                value = [_value(items, item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value)]
    _check_bounds(schema, value, path)
    return value


def _coerced(types: list[str], value: Any, path: str) -> tuple[str, Any]:
    """The same value as one of the types; no guess is made where it could mean something else."""
    for kind in types:
        if kind in ("integer", "number") and isinstance(value, str):
            number = _number(value)
            if number is not None and (kind == "number" or float(number).is_integer()):
                return kind, number
        if kind == "boolean" and isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return kind, value.strip().lower() == "true"
        if kind == "string" and isinstance(value, int | float):
            return kind, json.dumps(value)
        if kind in ("array", "object") and isinstance(value, str):
            found = _parsed(value)
            if _is(kind, found):
                return kind, found
        if kind == "array" and isinstance(value, int | float):
            return kind, [value]
    raise ArgumentsError(f"{path}: must be {' or '.join(types)}.")


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text)
        _check_storable(value, 0, [VALUES_MAX])
    except (ValueError, RecursionError):
        return None
    return value


def _check_bounds(schema: Mapping[str, Any], value: Any, path: str) -> None:
    allowed = schema.get("enum")
    if isinstance(allowed, list) and value not in allowed:
        raise ArgumentsError(f"{path}: must be one of {json.dumps(allowed[:SHOWN_MAX], ensure_ascii=False)}.")
    if isinstance(value, str):
        _check_length(schema, "minLength", "maxLength", len(value), f"{path}: must have", "characters")
    elif isinstance(value, list):
        _check_length(schema, "minItems", "maxItems", len(value), f"{path}: must have", "items")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_length(schema, "minimum", "maximum", value, f"{path}: must be", "")


def _check_length(schema: Mapping[str, Any], least: str, most: str, found: float, beginning: str, unit: str) -> None:
    low, high = schema.get(least), schema.get(most)
    if isinstance(low, int | float) and found < low:
        raise ArgumentsError(f"{beginning} at least {low} {unit}".rstrip() + ".")
    if isinstance(high, int | float) and found > high:
        raise ArgumentsError(f"{beginning} at most {high} {unit}".rstrip() + ".")
