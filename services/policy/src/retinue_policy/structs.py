"""Structs of the wire as plain objects."""

from typing import Any

from google.protobuf import struct_pb2


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Read a Struct; every number is a float."""
    return {name: _value(value) for name, value in struct.fields.items()}


def _value(value: struct_pb2.Value) -> Any:
    """Read a value, whatever numbers it holds; protobuf bounds how deep it goes."""
    match value.WhichOneof("kind"):
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [_value(each) for each in value.list_value.values]
        case "null_value" | None:
            return None
        case kind:
            return getattr(value, kind)
