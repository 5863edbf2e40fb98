"""OpenAI's chat completions as the mesh understands them: what a request asks for, and how it is refused."""

import math
from typing import Any

import msgspec
from retinue_kit.errors import RetinueError

from retinue_gateway import asgi

MODEL = "retinue"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MESSAGES_MAX = 2000
"""Messages of a request, as the router's contract bounds them."""

_NUMBERS = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "seed": (-(2.0**53), 2.0**53),
    "max_tokens": (1.0, 1e9),
    "max_completion_tokens": (1.0, 1e9),
}
"""Parameters that are passed on, and their bounds as OpenAI documents them."""

_INTEGERS = frozenset({"seed", "max_tokens", "max_completion_tokens"})
_STOP_MAX = 4


class ApiError(Exception):
    """A refusal in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s: float | None = None
        self.final = False
        """Whether a client is told not to repeat the request by itself: the mesh has done so already."""

    def body(self) -> dict[str, object]:
        """Write it as OpenAI does."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def from_error(error: RetinueError) -> ApiError:
    """Say an error of the mesh in OpenAI's shape; its reason becomes the code."""
    param = {"text": "messages", "contact": "user"}.get(error.metadata.get("field", ""), error.metadata.get("field"))
    told = ApiError(asgi.status_of(error), error.message, code=str(error.reason), param=param)
    told.retry_after_s = error.retry_after_s
    return told


class Ask(msgspec.Struct, frozen=True):
    """What a request asks for."""

    model: str
    runtime: str
    """Name of a runtime, or "auto"."""
    text: str
    """The new message."""
    earlier: list[tuple[str, str]]
    """Role and text of what came before it."""
    contact: str
    """Empty if none was named."""
    parameters: dict[str, Any]
    stream: bool
    include_usage: bool


def models(runtimes: list[str]) -> list[str]:
    """Names that a client may give as model."""
    return [MODEL, *(f"{MODEL}/{runtime}" for runtime in runtimes)]


def parse(body: bytes, runtimes: list[str]) -> Ask:
    """Read a request. Raises ApiError."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.") from None
    if not isinstance(request, dict):
        raise ApiError(400, "The body must be a JSON object.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "You must provide a model parameter.", param="model")
    if model not in models(runtimes):
        raise ApiError(404, f"The model {model[:100]!r} does not exist.", code="model_not_found", param="model")
    if request.get("n") not in (None, 1):
        raise ApiError(400, "n must be 1.", code="unsupported_value", param="n")
    choice = request.get("tool_choice")
    if choice == "required" or isinstance(choice, dict):
        raise ApiError(
            400, "Tools run inside the mesh and cannot be required.", code="unsupported_value", param="tool_choice"
        )
    earlier, text = _messages(request.get("messages"))
    contact = request.get("user")
    if contact is not None and (not isinstance(contact, str) or not contact):
        raise ApiError(400, "user must be a non-empty string.", param="user")
    options = request.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options must be an object.", param="stream_options")
    _, _, runtime = model.partition("/")
    return Ask(
        model=model,
        runtime=runtime or "auto",
        text=text,
        earlier=earlier,
        contact=contact or "",
        parameters=_parameters(request),
        stream=request.get("stream") is True,
        include_usage=options.get("include_usage") is True,
    )


def _messages(messages: object) -> tuple[list[tuple[str, str]], str]:
    """Read the messages: those before the last, and the last one's text, which must be the user's."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a non-empty array.", param="messages")
    if len(messages) > MESSAGES_MAX:
        raise ApiError(400, f"messages must have at most {MESSAGES_MAX} elements.", param="messages")
    found: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            allowed = ", ".join(ROLES)
            raise ApiError(400, f"The role must be one of {allowed}.", param=f"messages[{index}].role")
        found.append((ROLES[role], _content(message.get("content"), f"messages[{index}].content")))
    role, text = found.pop()
    if role != "user":
        raise ApiError(400, "The last message must be the user's.", param="messages")
    if not text:
        raise ApiError(400, "The last message must not be empty.", param="messages")
    return [(role, text) for role, text in found if text], text


def _content(content: object, param: str) -> str:
    """Read a message's text; parts are joined."""
    if content is None:
        return ""  # as of an assistant that only called tools
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, "content must be a string or an array of parts.", param=param)
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise ApiError(400, "Only parts of type text are understood.", code="unsupported_value", param=param)
        texts.append(text)
    return "".join(texts)


def _parameters(request: dict[str, Any]) -> dict[str, Any]:
    """Read what is passed on to the model."""
    found: dict[str, Any] = {}
    for name, (lowest, highest) in _NUMBERS.items():
        value = request.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ApiError(400, f"{name} must be a number.", param=name)
        if name in _INTEGERS and value != int(value):
            raise ApiError(400, f"{name} must be an integer.", param=name)
        if not lowest <= value <= highest:
            raise ApiError(400, f"{name} must be between {lowest:g} and {highest:g}.", param=name)
        found["max_tokens" if name == "max_completion_tokens" else name] = value
    stop = request.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or len(stops) > _STOP_MAX or not all(isinstance(s, str) for s in stops):
            raise ApiError(400, f"stop must be a string or an array of at most {_STOP_MAX}.", param="stop")
        found["stop"] = stops
    return found
