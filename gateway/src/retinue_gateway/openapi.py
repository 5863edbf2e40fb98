"""Makes the OpenAPI document from the contract: `python -m retinue_gateway.openapi > gateway/src/…/openapi.json`.

Paths and bodies come from the HTTP annotations, limits from the validation rules, words from the comments; what the
contract cannot say, because it is served past the transcoder, is written by hand in openapi_extra.py. Needs the
compiler of grpcio-tools and the sources of the contract, so it runs in a checkout only.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buf.validate import validate_pb2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from retinue_gateway import openapi_extra

Json = dict[str, Any]
Field = descriptor_pb2.FieldDescriptorProto

ROOT = Path(__file__).resolve().parents[3]
AREAS = ("edge", "schedule", "webhook", "dead_letter", "instance", "file", "tool", "context")
SERVICE_FILES = [f"retinue/edge/v1/{area}_service.proto" for area in AREAS]
PACKAGE = ".retinue.edge.v1."
_KEYED = frozenset({"SendMessage", "StreamMessage", "CreateTask", "CreateSchedule"})
_AS_ABOVE = " Failures as in EdgeService."
"""What services' comments end with; readers of the document have that service's words before them."""
_WATCHES = frozenset({"WatchContact", "WatchRun"})
_DOWNLOADS = frozenset({"DownloadFile"})
_BUSY = frozenset({"ImportBundle"})
"""Refused, without a key, while a run of the contact goes on."""
_SECTIONS = {"ContextService": "context"}
"""Sections of services whose paths begin as another's do."""
_BYTES = ".google.api.HttpBody"
"""Of this type are bodies that are a file's bytes, of any content type."""
_ANY_BYTES: Json = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_BUNDLE: Json = {"application/x-retinue-bundle": {"schema": {"type": "string", "format": "binary"}}}
_BUNDLES = frozenset({"ExportBundle", "ImportBundle"})
"""Calls whose bytes are a bundle's."""
_SCALARS: dict[int, Json] = {
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    # Its JSON is text: not every reader's numbers hold so much.
    Field.TYPE_INT64: {"type": "string", "format": "int64"},
    Field.TYPE_DOUBLE: {"type": "number"},
}
_WELL_KNOWN: dict[str, Json] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    ".google.rpc.Status": {"$ref": "#/components/schemas/Status"},
}
_REFUSALS = {"400": "Invalid", "401": "Unauthenticated", "403": "Forbidden", "404": "NotFound", "429": "TooMany"}
_REFUSALS |= {"503": "Unavailable", "default": "Failed"}


class Contract:
    """The compiled contract with its comments."""

    def __init__(self) -> None:
        self.messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        self.comments: dict[str, str] = {}
        self.methods: list[descriptor_pb2.MethodDescriptorProto] = []
        self.about = ""
        self.sections: dict[str, str] = {}
        """What stands above the calls of each further service, by the first part of its first path."""
        self.tags: dict[str, str] = {}
        """The section of each call."""
        for file in self._compiled().file:
            if file.package == PACKAGE.strip("."):
                self._read(file)

    @staticmethod
    def _compiled() -> descriptor_pb2.FileDescriptorSet:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "edge.binpb"
            command = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", "-Ithird_party", "--include_imports"]
            command += ["--include_source_info", f"--descriptor_set_out={out}", *SERVICE_FILES]
            subprocess.run(command, cwd=ROOT, check=True)
            return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())

    def _read(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for index, message in enumerate(file.message_type):
            name = PACKAGE + message.name
            self.messages[name] = message
            self.comments[name] = _words(comments.get((4, index), ""))
            for number, field in enumerate(message.field):
                self.comments[f"{name}.{field.name}"] = _words(comments.get((4, index, 2, number), ""))
        for index, service in enumerate(file.service):
            about = _words(comments.get((6, index), ""))
            section = ""
            if service.name == "EdgeService":
                self.about = about
            else:
                section = _SECTIONS.get(service.name) or _tag(_rule(service.method[0])[1])
                self.sections[section] = about.removesuffix(_AS_ABOVE)
            for number, method in enumerate(service.method):
                self.methods.append(method)
                self.tags[method.name] = section or _tag(_rule(method)[1])
                self.comments[method.name] = _words(comments.get((6, index, 2, number), ""))


def _words(comment: str) -> str:
    """Join a comment's lines, but for what it tells the linter."""
    lines = (line.strip() for line in comment.splitlines())
    return " ".join(line for line in lines if line and not line.startswith("buf:lint"))


def _rule(method: descriptor_pb2.MethodDescriptorProto) -> tuple[str, str, bool]:
    """Read how HTTP says a method: verb, path, and whether a body comes along."""
    rule = method.options.Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern") or ""
    return verb, getattr(rule, verb).replace("=**", ""), bool(rule.body)


def _tag(path: str) -> str:
    """Name the section of a path: `webhooks` for `/v1/webhooks/{webhook}:test`."""
    return path.split("/")[2].split(":")[0]


def _rules(field: Field) -> tuple[Json, bool]:
    """Read a field's rules: what its schema says, and whether it must be given."""
    rules = field.options.Extensions[validate_pb2.field]
    schema: Json = {}
    text, number = rules.string, rules.int32
    if text.HasField("min_len"):
        schema["minLength"] = text.min_len
    if text.HasField("max_len"):
        schema["maxLength"] = text.max_len
    if text.HasField("pattern"):
        schema["pattern"] = text.pattern
    one_of = list(getattr(text, "in"))
    if one_of:
        schema["enum"] = one_of
    if text.not_in:
        schema["not"] = {"enum": list(text.not_in)}
    if number.HasField("gte"):
        schema["minimum"] = number.gte
    if number.HasField("lte"):
        schema["maximum"] = number.lte
    return schema, bool(text.min_len) or bool(one_of and "" not in one_of)


class Document:
    """The document in the making."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._schemas: Json = dict(openapi_extra.SCHEMAS)

    def build(self) -> Json:
        """Make all of it."""
        paths: Json = {}
        for method in self._contract.methods:
            verb, path, operation = self._operation(method)
            paths.setdefault(path, {})[verb] = operation
        for path, operations in openapi_extra.PATHS.items():
            paths.setdefault(path, {}).update(operations)
        return {
            "openapi": "3.1.0",
            "info": {"title": "Retinue", "version": "1", "description": self._contract.about},
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}],
            "tags": [{"name": name, "description": about} for name, about in self._contract.sections.items()],
            "paths": paths,
            "components": {
                "schemas": dict(sorted(self._schemas.items())),
                "responses": openapi_extra.RESPONSES,
                "securitySchemes": openapi_extra.SECURITY_SCHEMES,
            },
        }

    def _operation(self, method: descriptor_pb2.MethodDescriptorProto) -> tuple[str, str, Json]:
        verb, path, has_body = _rule(method)
        summary, _, description = self._contract.comments[method.name].partition(". ")
        in_path = re.findall(r"{(\w+)}", path)
        fields = list(self._contract.messages[method.input_type].field)
        rest = [field for field in fields if field.name not in in_path]
        operation: Json = {
            "operationId": method.name,
            "tags": [self._contract.tags[method.name]],
            "summary": summary.rstrip("."),
            "description": description,
            "parameters": [
                self._parameter(method.input_type, field, "path") for field in fields if field.name in in_path
            ],
        }
        if has_body:
            operation["requestBody"] = self._body(method.input_type, rest)
        else:
            operation["parameters"] += [self._parameter(method.input_type, field, "query") for field in rest]
        operation["parameters"] += list(_headers(method.name))
        if method.name in _WATCHES:
            operation["security"] = [{"bearer": []}, {"accessToken": []}]
        operation["responses"] = self._responses(method, has_body)
        return verb, path, operation

    def _body(self, name: str, rest: list[Field]) -> Json:
        if [field.type_name for field in rest] == [_BYTES]:
            content = _BUNDLE if name.removeprefix(PACKAGE).removesuffix("Request") in _BUNDLES else _ANY_BYTES
            return {"required": False, "description": self._contract.comments[name], "content": content}
        body = self._object(name, rest)
        return {"required": "required" in body, "content": {"application/json": {"schema": body}}}

    def _responses(self, method: descriptor_pb2.MethodDescriptorProto, has_body: bool) -> Json:
        headers: Json = {"x-trace-id": {"$ref": "#/components/headers/x-trace-id"}}
        headers = {"x-trace-id": openapi_extra.TRACE_ID}
        if method.name in _KEYED:
            headers["idempotent-replay"] = openapi_extra.REPLAY
        if method.name in _DOWNLOADS:
            content: Json = _ANY_BYTES
            text = "The file's bytes; its content type goes by its name. An answer that breaks off is no whole file."
        elif method.output_type == _BYTES and method.name in _BUNDLES:
            content, text = _BUNDLE, "The bundle."
        elif method.server_streaming:
            content = {"text/event-stream": {"schema": openapi_extra.SERVER_SENT_EVENT}}
            text = "Events, each with its cursor as id, its type as event, and the Event as data."
        else:
            content = {"application/json": {"schema": self._reference(method.output_type)}}
            text = self._contract.comments[method.output_type]
        refusals = dict(_REFUSALS)
        if method.name in _KEYED | _DOWNLOADS | _BUSY:
            refusals["409"] = "Conflict"
        if has_body:
            refusals["413"] = "TooLarge"
        found: Json = {"200": {"description": text, "headers": headers, "content": content}}
        for status, name in sorted(refusals.items()):
            found[status] = {"$ref": f"#/components/responses/{name}"}
        return found

    def _parameter(self, message: str, field: Field, place: str) -> Json:
        schema, required = self._schema(field), _rules(field)[1]
        about = self._contract.comments[f"{message}.{field.name}"]
        return {
            "name": field.name,
            "in": place,
            "required": place == "path" or required,
            "description": about,
            "schema": schema,
        }

    def _schema(self, field: Field) -> Json:
        if field.type == Field.TYPE_MESSAGE:
            schema = dict(_WELL_KNOWN.get(field.type_name) or self._reference(field.type_name))
        else:
            schema = {**_SCALARS[field.type], **_rules(field)[0]}
        return {"type": "array", "items": schema} if field.label == Field.LABEL_REPEATED else schema

    def _object(self, name: str, fields: list[Field]) -> Json:
        properties: Json = {}
        required: list[str] = []
        for field in fields:
            properties[field.name] = {
                **self._schema(field),
                "description": self._contract.comments[f"{name}.{field.name}"],
            }
            if _rules(field)[1]:
                required.append(field.name)
        made: Json = {"type": "object", "description": self._contract.comments[name], "properties": properties}
        return {**made, "required": required} if required else made

    def _reference(self, name: str) -> Json:
        """Refer to a message's schema, which is made if it is not there yet."""
        short = name.removeprefix(PACKAGE)
        if short not in self._schemas:
            self._schemas[short] = {}
            self._schemas[short] = self._object(name, list(self._contract.messages[name].field))
        return {"$ref": f"#/components/schemas/{short}"}


def _headers(method: str) -> Iterator[Json]:
    if method in _KEYED:
        yield openapi_extra.KEY_HEADER
    if method in _WATCHES:
        yield openapi_extra.LAST_EVENT_ID_HEADER


def build() -> str:
    """Make the document as it is committed."""
    return json.dumps(Document(Contract()).build(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(build())
