"""Parts of the OpenAPI document that the contract cannot say: what is served past the transcoder, errors, security."""

from typing import Any

Json = dict[str, Any]

TRACE_ID: Json = {
    "description": "The request's trace: `retinue trace` and every collector find it by this.",
    "schema": {"type": "string"},
}
REPLAY: Json = {
    "description": "`true` if the idempotency key was used before: nothing new was accepted.",
    "schema": {"type": "string", "enum": ["true"]},
}
SERVER_SENT_EVENT: Json = {
    "type": "object",
    "description": "An event; comments in between keep the connection alive.",
    "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
}
RETRY_AFTER: Json = {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}}

KEY_HEADER: Json = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The client's name for this intent, kept for 7 days or more: same key and body, same answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
LAST_EVENT_ID_HEADER: Json = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "Cursor after which to go on; browsers send it by themselves.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,16}-[0-9]{1,16}$"},
}
SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "accessToken": {
        "type": "apiKey",
        "in": "query",
        "name": "access_token",
        "description": "The same token, where a browser cannot set a header: event streams and the WebSocket.",
    },
}

SCHEMAS: Json = {
    "Status": {
        "type": "object",
        "description": "An error: google.rpc.Status. The reason in its ErrorInfo says what to do about it.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": {"type": "integer", "format": "int32", "description": "gRPC's code."},
            "message": {"type": "string", "description": "For a person."},
            "details": {"type": "array", "items": {"$ref": "#/components/schemas/Detail"}},
        },
    },
    "Detail": {
        "type": "object",
        "description": "An ErrorInfo, a RetryInfo, or another detail, as its @type says.",
        "properties": {
            "@type": {"type": "string"},
            "reason": {"type": "string"},
            "domain": {"type": "string"},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
    "Event": {
        "type": "object",
        "description": "An event of a contact's stream, as the data of a server-sent event or in a WebSocket frame.",
        "required": ["type", "session_id", "run_id", "time", "data"],
        "properties": {
            "cursor": {"type": "string", "description": "Place in the stream; resume with it. Absent on run.queued."},
            "type": {"type": "string"},
            "session_id": {"type": "string"},
            "run_id": {"type": "string"},
            "time": {"type": "string", "format": "date-time"},
            "data": {"type": "object"},
        },
    },
    "OpenAiError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
    "ChatCompletionRequest": {
        "type": "object",
        "required": ["model", "messages"],
        "properties": {
            "model": {"type": "string", "minLength": 1, "description": "retinue, or retinue/ and a runtime's name."},
            "messages": {
                "type": "array",
                "minItems": 1,
                "maxItems": 2000,
                "description": "With a contact named, only the last one is new; the mesh knows the others.",
                "items": {
                    "type": "object",
                    "required": ["role"],
                    "properties": {
                        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant"]},
                        "content": {"description": "Text, or parts of type text."},
                    },
                },
            },
            "user": {"type": "string", "minLength": 1, "maxLength": 128, "description": "The contact."},
            "stream": {"type": "boolean"},
            "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
            "temperature": {"type": "number", "minimum": 0, "maximum": 2},
            "top_p": {"type": "number", "minimum": 0, "maximum": 1},
            "max_tokens": {"type": "integer", "minimum": 1},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
            "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
            "seed": {"type": "integer"},
            "stop": {"description": "A string, or at most 4 of them."},
            "n": {"type": "integer", "enum": [1]},
        },
    },
    "ChatCompletion": {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": {"type": "string", "description": "chatcmpl- and the run's id."},
            "object": {"type": "string", "enum": ["chat.completion"]},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": {"type": "object"}},
            "usage": {"type": "object"},
        },
    },
}


def _refusal(text: str, *, retry: bool = False) -> Json:
    headers = {"x-trace-id": TRACE_ID, **({"retry-after": RETRY_AFTER} if retry else {})}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}}
    return {"description": text, "headers": headers, "content": content}


RESPONSES: Json = {
    "Invalid": _refusal("The request is malformed, or the state of things forbids it; metadata.field names a field."),
    "Unauthenticated": _refusal("No token, or one that is not valid, revoked or expired."),
    "Forbidden": _refusal("The token lacks the scope, or policy said no."),
    "NotFound": _refusal("There is no such thing, or it is another tenant's."),
    "Conflict": _refusal(
        "The idempotency key was used with another body, the session is busy, or the file changed meanwhile."
    ),
    "TooLarge": _refusal("The body is larger than 1 MiB, the bundle than 3 MiB, or the file than 4 MiB."),
    "TooMany": _refusal("A rate or quota of the tenant is used up.", retry=True),
    "Unavailable": _refusal("A part of the mesh does not answer at the moment, or the queue is full.", retry=True),
    "Failed": _refusal("Something went wrong inside; x-trace-id leads to it."),
}


def _openai_refusals(*statuses: str) -> Json:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAiError"}}}
    found: Json = {status: {"description": "An error in OpenAI's shape.", "content": content} for status in statuses}
    if "400" in found:  # Envoy refuses such before it has read which path is asked for
        shapes = [{"$ref": f"#/components/schemas/{name}"} for name in ("OpenAiError", "Status")]
        found["400"] = {
            "description": "An error in OpenAI's shape; a Status where HTTP itself refuses, as a header's name with an "
            "underscore.",
            "content": {"application/json": {"schema": {"anyOf": shapes}}},
        }
    return found


def _open(operation: str, summary: str, content_type: str, schema: Json) -> Json:
    """Describe something that needs no token."""
    return {
        "operationId": operation,
        "tags": ["service"],
        "summary": summary,
        "security": [],
        "responses": {"200": {"description": summary, "content": {content_type: {"schema": schema}}}},
    }


def _readiness() -> Json:
    schema: Json = {
        "type": "object",
        "required": ["state", "dependencies"],
        "properties": {
            "state": {"type": "string", "enum": ["ready", "unavailable"]},
            "dependencies": {
                "type": "object",
                "additionalProperties": {"type": "string", "enum": ["ready", "unavailable"]},
            },
        },
    }
    operation = _open(
        "GetReadiness", "Whether messages can be answered, and each dependency's state", "application/json", schema
    )
    unready = {
        "description": "Something that is needed is not ready.",
        "content": {"application/json": {"schema": schema}},
    }
    operation["responses"]["503"] = unready
    return operation


_SOCKET = """One socket for everything of a tenant. Text frames of JSON: `{"type":"req","id","method","params"}` is \
answered by `{"type":"res","id","ok","result"}` or, with `ok` false, `error` (a Status); `{"type":"event","contact",\
"event"}` tells an Event. The first frame from the server is `{"type":"hello","protocol":1,"methods","limits"}`. \
Methods: messages.send, events.subscribe, events.unsubscribe, runs.get, runs.cancel, approvals.decide, ping; their \
params are the bodies and parameters of the calls of the same name. Closes with 4401 when the token counts no longer, \
1013 when the peer does not read, 1012 when this process stops."""

PATHS: Json = {
    "/v1/ws": {
        "get": {
            "operationId": "OpenSocket",
            "tags": ["ws"],
            "summary": "Opens a WebSocket; subprotocol retinue.v1",
            "description": _SOCKET,
            "security": [{"bearer": []}, {"accessToken": []}],
            "responses": {
                "101": {"description": "The socket is open."},
                "401": {"$ref": "#/components/responses/Unauthenticated"},
                "default": {"$ref": "#/components/responses/Failed"},
            },
        }
    },
    "/v1/models": {
        "get": {
            "operationId": "ListModels",
            "tags": ["openai"],
            "summary": "Lists what may be named as model, in OpenAI's shape",
            "responses": {
                "200": {
                    "description": "The models.",
                    "content": {"application/json": {"schema": {"type": "object"}}},
                },
                **_openai_refusals("401", "403", "429", "503"),
            },
        }
    },
    "/v1/chat/completions": {
        "post": {
            "operationId": "CreateChatCompletion",
            "tags": ["openai"],
            "summary": "Answers a conversation, in OpenAI's shape",
            "description": "The contact is `user`, or the header x-contact, or one of its own for each request. The "
            "run is as durable as any other: it goes on if the client leaves, and is found under GET /v1/runs.",
            "parameters": [
                KEY_HEADER,
                {"name": "x-contact", "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 128}},
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}},
            },
            "responses": {
                "200": {
                    "description": "The answer; with `stream`, chunks as server-sent events up to [DONE].",
                    "headers": {"idempotent-replay": REPLAY},
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletion"}},
                        "text/event-stream": {"schema": SERVER_SENT_EVENT},
                    },
                },
                **_openai_refusals("400", "401", "403", "404", "409", "413", "429", "500", "503", "504"),
            },
        }
    },
    "/healthz": {"get": _open("GetHealth", "Whether the edge is alive", "application/json", {"type": "object"})},
    "/readyz": {"get": _readiness()},
    "/openapi.json": {"get": _open("GetOpenApi", "This document", "application/json", {"type": "object"})},
    "/docs": {"get": _open("GetDocs", "This document as a page", "text/html", {"type": "string"})},
}
