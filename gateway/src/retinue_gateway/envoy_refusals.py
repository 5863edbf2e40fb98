"""What Envoy itself refuses, said in the shapes of the public contract: google.rpc.Status, or OpenAI's error."""

from typing import Any, NamedTuple

Json = dict[str, Any]

TRACE_ID_HEADER: Json = {
    "header": {"key": "x-trace-id", "value": "%TRACE_ID%"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}
"""The id to look the request up by, on every answer."""

CHALLENGE_HEADER: Json = {
    "header": {"key": "www-authenticate", "value": "Bearer"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}
"""In place of Envoy's own, which repeats the request's address, and with it a token that came in the query."""

RETRY_AFTER_S = 1
"""About as long as a process of the mesh takes to come back, and what a rate limit refills in."""

_OPENAI_PATHS = ("/v1/chat/completions", "/v1/models")


class Refusal(NamedTuple):
    """A status of Envoy's own, and how it is told. An empty message stands for Envoy's own words."""

    status: int
    code: int
    reason: str
    message: str = ""
    detail: str = ""
    """Only answers whose cause, as Envoy names it, contains this."""
    at_least: bool = False
    """Whether higher statuses are meant as well."""
    told_as: int = 0
    """The status that the client sees, where it is another."""


REFUSALS = [
    Refusal(400, 3, "FIELD_INVALID", detail="transcode"),
    Refusal(400, 3, "FIELD_INVALID", "The path holds an escaped slash.", detail="direct_response"),
    # Just started, while the directory is away: without its keys nobody can be known, and that says nothing of a token.
    Refusal(
        401,
        14,
        "DEPENDENCY_UNAVAILABLE",
        "Tokens cannot be checked at the moment; try again.",
        detail="Jwks_remote_fetch",
        told_as=503,
    ),
    Refusal(401, 16, "CREDENTIAL_EXPIRED", "The token has expired.", detail="expired"),
    Refusal(401, 16, "CREDENTIAL_MISSING", "A bearer token is needed.", detail="missing"),
    Refusal(401, 16, "CREDENTIAL_INVALID", "The token is not valid."),
    # A token for another audience is no credential here; who may do what is decided behind Envoy.
    Refusal(403, 16, "CREDENTIAL_INVALID", "The token is not valid.", told_as=401),
    Refusal(404, 5, "ROUTE_NOT_FOUND", "There is nothing at this path for this method."),
    Refusal(413, 8, "BODY_TOO_LARGE", "The body is larger than 1 MiB, the bundle than 3 MiB, or the file than 4 MiB."),
    Refusal(429, 8, "QUOTA_EXCEEDED", "The tenant makes more requests a second than it may."),
    Refusal(504, 4, "DEPENDENCY_UNAVAILABLE", "The answer took too long; whether anything happened is not known."),
    Refusal(500, 14, "DEPENDENCY_UNAVAILABLE", "The gateway does not answer at the moment; try again.", at_least=True),
    Refusal(400, 3, "FIELD_INVALID", "The request is malformed: %RESPONSE_CODE_DETAILS%.", at_least=True),
]
"""In the order they are looked at; the last two are for what the ones before do not name."""

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def mappers() -> list[Json]:
    """Local reply mappers; gRPC callers are left alone, who get the code and Envoy's words as a gRPC status."""
    return [_mapper(refusal, openai=openai) for openai in (True, False) for refusal in REFUSALS]


def _mapper(refusal: Refusal, *, openai: bool) -> Json:
    filters = [_status(refusal), _not_grpc()]
    if refusal.detail:
        filters.append(_detail(refusal.detail))
    if openai:
        filters.append({"or_filter": {"filters": [_path(path) for path in _OPENAI_PATHS]}})
    headers = [TRACE_ID_HEADER]
    if 401 in (refusal.status, refusal.told_as):
        headers.append(CHALLENGE_HEADER)
    if refusal.status in (429, 500) or refusal.told_as == 503:
        headers.append({"header": {"key": "retry-after", "value": str(RETRY_AFTER_S)}})
    return {
        "filter": {"and_filter": {"filters": filters}},
        **({"status_code": refusal.told_as} if refusal.told_as else {}),
        "headers_to_add": headers,
        "body_format_override": {
            "json_format": _openai_body(refusal) if openai else _body(refusal),
            "content_type": "application/json",
        },
    }


def _body(refusal: Refusal) -> Json:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refusal.reason,
        "domain": "retinue",
        "metadata": {},
    }
    return {"code": refusal.code, "message": _message(refusal), "details": [info]}


def _openai_body(refusal: Refusal) -> Json:
    kind = _OPENAI_TYPES.get(refusal.told_as or refusal.status, "server_error")
    return {"error": {"message": _message(refusal), "type": kind, "code": refusal.reason.lower(), "param": None}}


def _message(refusal: Refusal) -> str:
    return refusal.message or "%LOCAL_REPLY_BODY%"


def _status(refusal: Refusal) -> Json:
    # The name of a runtime key that nobody sets: the filter wants one.
    value = {"default_value": refusal.status, "runtime_key": "retinue.status"}
    return {"status_code_filter": {"comparison": {"op": "GE" if refusal.at_least else "EQ", "value": value}}}


def _not_grpc() -> Json:
    # A request that is being transcoded looks like gRPC by now, and is known by its former path.
    plain = {"name": "content-type", "string_match": {"prefix": "application/grpc"}, "invert_match": True}
    transcoded = {"name": "x-envoy-original-path", "present_match": True}
    headers = [{**plain, "treat_missing_header_as_empty": True}, transcoded]
    return {"or_filter": {"filters": [{"header_filter": {"header": header}} for header in headers]}}


def _path(path: str) -> Json:
    return {"header_filter": {"header": {"name": ":path", "string_match": {"prefix": path}}}}


def _detail(text: str) -> Json:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": f"response.code_details.contains('{text}')",
            },
        }
    }
