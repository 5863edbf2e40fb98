"""OpenClaw's WebSocket protocol, version 4: its frames, its handshake, and what its errors mean. No I/O.

A client sends `req` frames; the gateway answers each with a `res` of the same id (a run with two, see gateway.py) and
sends `event` frames of its own accord, about everybody's runs.
"""

import json
import re
from typing import Any

import msgspec
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.troubles import Trouble

PROTOCOL = 4
"""Version of the protocol: gateways accept exactly their own."""

FRAME_SIZE_MAX_BYTES = 32 * 1024 * 1024
"""Largest frame that is read. Gateways themselves accept 25 MiB."""

TICK_INTERVAL_S = 30.0
"""Time between two ticks where a gateway names none; it is OpenClaw's own default."""

TICK_INTERVAL_MIN_S = 1.0
TICK_INTERVAL_MAX_S = 120.0
"""What is believed of a gateway's own word, so that none is given up at once, or never."""

RETRY_AFTER_MIN_S = 0.05
RETRY_AFTER_MAX_S = 2.0
"""What is believed of a gateway that says when to come again while it starts."""

SCOPES = ("operator.read", "operator.write", "operator.admin")
CAPABILITIES = ("tool-events",)
"""Without it no tool event is sent, and nobody says so."""

_ASKED = "connect"


class Fault(msgspec.Struct, rename="camel"):
    """The error of a `res`. Its message is OpenClaw's own and may name hosts, folders and keys: it is for the log."""

    code: str = ""
    message: str = ""
    details: Any = None
    retry_after_ms: float | None = None


class Incoming(msgspec.Struct):
    """A frame from the gateway; the payload stays unread until somebody wants it."""

    type: str = ""
    id: str = ""
    ok: bool = False
    event: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"null")
    error: Fault | None = None


class Head(msgspec.Struct, rename="camel"):
    """What says whose an event is."""

    run_id: str = ""
    session_key: str = ""
    agent_id: str = ""


class Hello(msgspec.Struct):
    """What a gateway says of itself when it has accepted a connection."""

    version: str
    boot_id: str
    tick_interval_s: float
    payload_max_bytes: int


class Starting(Exception):  # noqa: N818 - it is no error
    """The gateway is not ready yet."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the gateway is starting")
        self.retry_after_s = retry_after_s


class Refused(Trouble):
    """A request that the gateway refused. `code` and `text` are its own words, for decisions and the log only."""

    def __init__(self, reason: Reason, message: str, *, code: str, text: str) -> None:
        super().__init__(reason, message)
        self.code = code
        self.text = text


_decode = msgspec.json.Decoder(Incoming).decode
_decode_head = msgspec.json.Decoder(Head).decode
_encode = msgspec.json.Encoder().encode


def decode(data: str | bytes) -> Incoming:
    """Read a frame. Raises ValueError if it makes no sense."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        mended = _mend(data)
        if mended is None:
            raise ValueError(str(error)) from None
    try:
        return _decode(mended)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _mend(data: str | bytes) -> bytes | None:
    """Leave out halves of characters: JavaScript may cut text between them, and no strict decoder reads one alone."""
    if "\\ud" not in (data if isinstance(data, str) else data.decode(errors="ignore")).lower():
        return None
    try:
        return json.dumps(json.loads(data), ensure_ascii=False).encode(errors="ignore")
    except (ValueError, RecursionError):
        return None


def head(payload: msgspec.Raw) -> Head:
    """Read whose an event is. Raises ValueError."""
    try:
        return _decode_head(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def body(payload: msgspec.Raw) -> dict[str, Any]:
    """Read a payload; {} for none. Raises ValueError if it is no object."""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def encode(request_id: str, method: str, params: dict[str, Any], traceparent: str = "") -> bytes:
    """Write a request."""
    frame: dict[str, Any] = {"type": "req", "id": request_id, "method": method, "params": params}
    if traceparent:
        frame["traceparent"] = traceparent
    return _encode(frame)


def connect(request_id: str, token: str, version: str) -> bytes:
    """Write the handshake's request. The client's id is one of a closed list; this one needs no device of its own."""
    client = {"id": "gateway-client", "version": version, "platform": "linux", "mode": "backend"}
    params = {
        "minProtocol": PROTOCOL,
        "maxProtocol": PROTOCOL,
        "client": client,
        "role": "operator",
        "scopes": list(SCOPES),
        "caps": list(CAPABILITIES),
        "auth": {"token": token},
    }
    return encode(request_id, _ASKED, params)


def read_hello(answer: Incoming) -> Hello:
    """Read the handshake's answer. Raises Starting, or Trouble (RUNTIME_UNAVAILABLE) with a line for operators."""
    if not answer.ok:
        raise _refusal(answer.error or Fault())
    try:
        said = body(answer.payload)
    except ValueError:
        said = {}
    protocol = said.get("protocol")
    if protocol != PROTOCOL:
        raise _mismatch(protocol)
    server, policy = _part(said, "server"), _part(said, "policy")
    tick_s = _number(policy.get("tickIntervalMs"), TICK_INTERVAL_S * 1000) / 1000
    return Hello(
        version=str(server.get("version") or ""),
        boot_id=str(server.get("bootId") or ""),
        tick_interval_s=min(max(tick_s, TICK_INTERVAL_MIN_S), TICK_INTERVAL_MAX_S),
        payload_max_bytes=min(int(_number(policy.get("maxPayload"), FRAME_SIZE_MAX_BYTES)), FRAME_SIZE_MAX_BYTES),
    )


def _part(value: dict[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name)
    return part if isinstance(part, dict) else {}


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else default


def _mismatch(theirs: object) -> Trouble:
    told = theirs if isinstance(theirs, int) else "another one"
    return Trouble(
        Reason.RUNTIME_UNAVAILABLE,
        f"This OpenClaw speaks version {told} of its protocol, and this adapter version {PROTOCOL}.",
    )


def _refusal(fault: Fault) -> Starting | Trouble:
    details = fault.details if isinstance(fault.details, dict) else {}
    code = details.get("code")
    if code == "PROTOCOL_MISMATCH":
        return _mismatch(details.get("expectedProtocol"))
    if code == "AUTH_TOKEN_MISMATCH":
        return Trouble(Reason.RUNTIME_UNAVAILABLE, "OpenClaw refused the token: another gateway is at its address.")
    if fault.code == "UNAVAILABLE":
        wait_s = _number(fault.retry_after_ms, RETRY_AFTER_MIN_S * 1000) / 1000
        return Starting(min(max(wait_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S))
    return Trouble(Reason.RUNTIME_UNAVAILABLE, "OpenClaw refused the connection.")


def read_end(answer: Incoming) -> dict[str, Any]:
    """Read a run's answer as one object: the payload, and `error` where it did not go well. {} if it makes no sense."""
    try:
        found = body(answer.payload)
    except ValueError:
        found = {}
    if not answer.ok:
        fault = answer.error or Fault()
        found["error"] = {"code": fault.code, "message": fault.message}
    return found


# --- errors --------------------------------------------------------------------------------------------------------

_SENTENCES = {
    Reason.MODEL_CONTEXT_OVERFLOW: "The conversation does not fit the model's window.",
    Reason.MODEL_ROLE_ORDER: "The model refused the order of roles.",
    Reason.MODEL_AUTH: "The model's endpoint refused the credential.",
    Reason.MODEL_RATE_LIMITED: "The model's endpoint limits the rate of requests.",
    Reason.MODEL_QUOTA: "The quota at the model's endpoint is used up.",
    Reason.MODEL_TIMEOUT: "The model's endpoint ran out of time.",
    Reason.MODEL_UNAVAILABLE: "The model's endpoint has an error of its own.",
    Reason.MODEL_RESPONSE_INVALID: "The model's answer could not be used.",
    Reason.MODEL_REQUEST_REFUSED: "The model's endpoint refused the request.",
    Reason.RUNTIME_UNAVAILABLE: "OpenClaw cannot do this now.",
    Reason.RUN_TIMEOUT: "The time for the run is over.",
    Reason.INTERNAL: "OpenClaw refused the request.",
}

_KINDS = {
    "auth": Reason.MODEL_AUTH,
    "auth_permanent": Reason.MODEL_AUTH,
    "format": Reason.MODEL_REQUEST_REFUSED,
    "model_not_found": Reason.MODEL_REQUEST_REFUSED,
    "rate_limit": Reason.MODEL_RATE_LIMITED,
    "billing": Reason.MODEL_QUOTA,
    "overloaded": Reason.MODEL_UNAVAILABLE,
    "server_error": Reason.MODEL_UNAVAILABLE,
    "tls_certificate": Reason.MODEL_UNAVAILABLE,
    "timeout": Reason.MODEL_TIMEOUT,
    "context_overflow": Reason.MODEL_CONTEXT_OVERFLOW,
    "empty_response": Reason.MODEL_RESPONSE_INVALID,
    "incomplete_turn": Reason.MODEL_RESPONSE_INVALID,
}
"""OpenClaw's own classes of what went wrong with a model."""

_WORDS = [
    (
        re.compile(r"context (overflow|length|window)|maximum context|prompt (is )?too (large|long)", re.I),
        Reason.MODEL_CONTEXT_OVERFLOW,
    ),
    (re.compile(r"roles? must alternate|role[_ ]order|incorrect role", re.I), Reason.MODEL_ROLE_ORDER),
    (re.compile(r"quota|billing|insufficient (credits|balance)|\b402\b", re.I), Reason.MODEL_QUOTA),
    (re.compile(r"authentication|unauthorized|api key|re-authenticate|\b40[13]\b", re.I), Reason.MODEL_AUTH),
    (re.compile(r"rate.?limit|too many requests|\b429\b", re.I), Reason.MODEL_RATE_LIMITED),
    (re.compile(r"timed? ?out|\b504\b", re.I), Reason.MODEL_TIMEOUT),
    (re.compile(r"rejected the request|invalid request|\b400\b", re.I), Reason.MODEL_REQUEST_REFUSED),
    (re.compile(r"couldn't generate|empty response", re.I), Reason.MODEL_RESPONSE_INVALID),
]  # fmt: skip
"""For errors without a class: OpenClaw's sentences are its own, not a provider's, and change little."""

_GONE = re.compile(r"unknown agent|not found|config changed since|no explicit owner", re.I)
"""The gateway is not as it is remembered: what it was told is told again with the next attempt."""


def of_failure(kind: str, text: str) -> Trouble:
    """What the failure of a run means, by OpenClaw's class of it, else by its words. None of them are passed on."""
    reason = _KINDS.get(kind)
    if reason is None:
        reason = next((reason for words, reason in _WORDS if words.search(text)), Reason.MODEL_UNAVAILABLE)
    return Trouble(reason, _SENTENCES[reason])


def of_refusal(fault: Fault) -> Refused:
    """What the refusal of a request means."""
    if fault.code == "INVALID_REQUEST" and not _GONE.search(fault.message):
        reason = Reason.INTERNAL
    else:
        reason = Reason.RUNTIME_UNAVAILABLE
    return Refused(reason, _SENTENCES[reason], code=fault.code, text=fault.message)


def lost(what: str = "The connection to OpenClaw is lost.") -> Trouble:
    """The gateway is not there."""
    return Trouble(Reason.RUNTIME_UNAVAILABLE, what, retry_after_s=1.0)
