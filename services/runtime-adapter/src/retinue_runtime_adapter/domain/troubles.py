"""What a model's trouble means: its reason, who may try again, and what a client may read of it."""

import json
import re
from collections.abc import Iterable

from retinue_kit.errors import Code, Reason, RetinueError

DETAIL_SIZE_MAX = 200
"""Characters of a provider's own words that are passed on: one sentence."""

BODY_SIZE_MAX_BYTES = 64 * 1024
"""Bytes of an error's body that are read; what is beyond explains nothing more."""

RETRY_AFTER_MAX_S = 2.0
"""Longest pause asked for by a provider that is waited out in place. A person is waiting: beyond that, another model is
tried, or the run goes back to the queue."""

RETRYABLE = {
    Reason.MODEL_RATE_LIMITED,
    Reason.MODEL_TIMEOUT,
    Reason.MODEL_UNAVAILABLE,
    Reason.MODEL_RESPONSE_INVALID,
    Reason.RUNTIME_UNAVAILABLE,
}
"""Another attempt could go better; the rest need another request, another key or more money."""

_AGAIN = RETRYABLE - {Reason.MODEL_TIMEOUT}
"""Worth another try at once. What has used up its time is not waited for twice."""

_CREDENTIAL = {Reason.MODEL_AUTH, Reason.MODEL_RATE_LIMITED, Reason.MODEL_QUOTA}
"""The credential's own trouble: another one of the same provider may serve."""

_OVERFLOW = re.compile(
    r"context[_ ](length|window|size)|maximum context|too many tokens|(prompt|input) is too long|reduce the length",
    re.I,
)
_ROLE_ORDER = re.compile(
    r"roles? must alternate|alternate between|role[_ ]order|incorrect role|after the optional system message", re.I
)
_QUOTA = re.compile(
    r"insufficient[_ ]quota|exceeded your current quota|credit balance|insufficient (credits|balance)", re.I
)
_SECRET = re.compile(r"\b(?:sk|pk|key)[-_][\w*.\-]{6,}|\bBearer\s+\S+", re.I)

_SENTENCES = {
    Reason.MODEL_CONTEXT_OVERFLOW: "The conversation does not fit the model's window",
    Reason.MODEL_ROLE_ORDER: "The model refused the order of roles",
    Reason.MODEL_AUTH: "The model's endpoint refused the credential",
    Reason.MODEL_RATE_LIMITED: "The model's endpoint limits the rate of requests",
    Reason.MODEL_QUOTA: "The quota at the model's endpoint is used up",
    Reason.MODEL_TIMEOUT: "The model's endpoint ran out of time",
    Reason.MODEL_UNAVAILABLE: "The model's endpoint has an error of its own",
    Reason.MODEL_RESPONSE_INVALID: "The model's endpoint answered something that is not a model's answer",
    Reason.MODEL_REQUEST_REFUSED: "The model's endpoint refused the request",
}


class Trouble(Exception):  # noqa: N818 - it is no error of this program
    """A model call, or a whole attempt, that did not go well."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        code: Code | None = None,
        retry_after_s: float | None = None,
        final: bool = False,
    ) -> None:
        """`final` says that no attempt may follow, whatever the reason."""
        super().__init__(message)
        self.reason = reason
        self.final = final
        self.error = RetinueError(reason, message, code=code, retry_after_s=retry_after_s)

    @property
    def retryable(self) -> bool:
        """Whether another attempt of the run could go better."""
        return self.reason in RETRYABLE and not self.final

    @property
    def again(self) -> bool:
        """Whether the same model may be tried again in this attempt."""
        return self.reason in _AGAIN and (self.error.retry_after_s or 0) <= RETRY_AFTER_MAX_S

    @property
    def of_credential(self) -> bool:
        """Whether the credential should rest."""
        return self.reason in _CREDENTIAL


def _words(body: bytes) -> tuple[str, str]:
    """What an error's body says: the provider's message, and its type and code."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return "", ""
    error = value.get("error", value)
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message") or error.get("detail") or ""
    labels = " ".join(str(error.get(name) or "") for name in ("type", "code"))
    return message if isinstance(message, str) else "", labels


def _detail(message: str, secrets: Iterable[str]) -> str:
    """A provider's message as a client may read it: one short line without anything that looks like a key."""
    for secret in secrets:
        if secret:
            message = message.replace(secret, "…")
    message = _SECRET.sub("…", message).encode(errors="replace").decode()
    message = " ".join("".join(letter if letter.isprintable() else " " for letter in message).split())
    return message if len(message) <= DETAIL_SIZE_MAX else message[: DETAIL_SIZE_MAX - 1] + "…"


def _reason(status: int, text: str) -> Reason:
    if status in (400, 413, 422, 500) and _OVERFLOW.search(text):
        return Reason.MODEL_CONTEXT_OVERFLOW
    if status in (400, 422, 500) and _ROLE_ORDER.search(text):
        return Reason.MODEL_ROLE_ORDER
    if status == 402 or (status in (400, 403, 429) and _QUOTA.search(text)):
        return Reason.MODEL_QUOTA
    known = {
        401: Reason.MODEL_AUTH,
        403: Reason.MODEL_AUTH,
        408: Reason.MODEL_TIMEOUT,
        413: Reason.MODEL_CONTEXT_OVERFLOW,
        429: Reason.MODEL_RATE_LIMITED,
        504: Reason.MODEL_TIMEOUT,
    }.get(status)
    if known:
        return known
    if status >= 500:
        return Reason.MODEL_UNAVAILABLE
    return Reason.MODEL_REQUEST_REFUSED if status >= 400 else Reason.MODEL_RESPONSE_INVALID


def retry_after_s(header: str) -> float | None:
    """Read a Retry-After header in seconds. Dates are not read: providers of models do not send them."""
    try:
        value = float(header)
    except ValueError:
        return None
    return value if 0 <= value < 86_400 else None


def of_response(status: int, body: bytes, retry_after: str = "", secrets: Iterable[str] = ()) -> Trouble:
    """What an answer other than 200 means. `secrets` are taken out of the provider's words."""
    message, labels = _words(body)
    reason = _reason(status, f"{message} {labels}")
    sentence = f"{_SENTENCES[reason]} ({status})"
    detail = "" if reason is Reason.MODEL_AUTH else _detail(message, secrets)
    return Trouble(
        reason, f"{sentence}: {detail}" if detail else f"{sentence}.", retry_after_s=retry_after_s(retry_after)
    )


def of_stream(error: bytes, secrets: Iterable[str] = ()) -> Trouble:
    """What an error in the middle of a stream means; without a status in it, it is the endpoint's own."""
    try:
        found = json.loads(error)["error"]
        status = next((found[name] for name in ("code", "status") if isinstance(found.get(name), int)), 500)
    except (ValueError, KeyError, AttributeError, TypeError):
        status = 500
    return of_response(status if 400 <= status < 600 else 500, error, secrets=secrets)


def invalid(what: str) -> Trouble:
    """An answer that broke off or makes no sense."""
    return Trouble(Reason.MODEL_RESPONSE_INVALID, what)


def aborted() -> Trouble:
    """The attempt was told to stop."""
    return Trouble(Reason.RUN_TERMINAL, "The attempt was aborted.", code=Code.CANCELLED)


def after_calls(trouble: Trouble) -> Trouble:
    """The trouble of an attempt that called tools which its next one would know nothing of: none follows."""
    said = "Tools were called before: what they did stays done, and the run is not asked anew, which might do it twice."
    return Trouble(trouble.reason, f"{trouble} {said}", code=trouble.error.code, final=True)
