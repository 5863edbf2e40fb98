"""What a refusal must look like, whoever refuses: Envoy, the gateway, or a service behind it."""

from typing import Any

import httpx

TRACE_ID_LENGTH = 32
INNARDS = (
    "Traceback",
    'File "',
    "<class",
    "asyncpg",
    "grpc.",
    "select ",
    "insert into",
    "router.",
    "directory.",
    "/src/",
)
"""Words that only our own code says; none may reach a client."""


def assert_refused(answer: httpx.Response, status: int, reason: str, field: str = "") -> dict[str, Any]:
    """Hold a refusal to the public contract; answers its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert len(answer.headers["x-trace-id"]) == TRACE_ID_LENGTH
    body: dict[str, Any] = answer.json()
    assert set(body) == {"code", "message", "details"}
    assert body["message"]
    info = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert (info["reason"], info["domain"]) == (reason, "retinue")
    if field:
        assert info["metadata"].get("field", field) == field
        assert field in body["message"]
    assert not any(word in answer.text.replace("type.googleapis.com/google.rpc.", "") for word in INNARDS), answer.text
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return body


def assert_refused_as_openai(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Hold a refusal to OpenAI's shape; answers its error."""
    assert answer.status_code == status, answer.text
    assert len(answer.headers["x-trace-id"]) == TRACE_ID_LENGTH
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind
    assert error["message"]
    assert not any(word in answer.text for word in INNARDS), answer.text
    return error
