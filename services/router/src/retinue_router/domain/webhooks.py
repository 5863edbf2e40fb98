"""Webhooks: which events may be asked for, and what becomes of a delivery after each attempt."""

import email.utils
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from retinue_kit.errors import RetinueError

from retinue_router.domain.submission import check_key

STANDARD, FEISHU = "standard", "feishu"

WEBHOOKS_MAX = 16
"""Webhooks of a tenant: each event is written once more for each that asks for it."""

EVENT_TYPES = (
    *("run.succeeded", "run.failed", "run.cancelled", "run.resumed", "task.finished"),
    *("user.message", "assistant.message", "approval.requested", "approval.decided", "tool.started", "tool.finished"),
)
"""Those that are durable: what is told while an answer grows is not sent, nor is `run.started`, which is recorded only
with the commit after it."""

DEFAULT_EVENT_TYPES = ("run.succeeded", "run.failed", "run.cancelled", "task.finished")
TEST_EVENT = "webhook.test"

DELAYS_S = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 10800.0, 21600.0, 43200.0)
"""From each attempt to the next; after the last one the delivery is dead. Short first, for a receiver that restarts,
and 23 hours in all, for one whose owner sleeps."""

JITTER = 0.2
"""Share by which a delay is longer or shorter, so that what failed at once does not come back at once."""

RETRY_AFTER_MAX_S = 43200.0
"""How long a receiver may have us wait: no longer than we would by ourselves."""

FEISHU_CODE_MAX = 999_999_999
"""Feishu's codes have up to eight digits; what a stranger answers may have thousands, and would be kept and shown."""

FEISHU_REST_S = 10.0
"""After a bot was told to slow down: it takes 5 messages a second and 100 a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A webhook that is to be made, as asked for."""

    tenant_id: str
    url: str
    kind: str = STANDARD
    event_types: Sequence[str] = ()
    """All that a tenant is told by default if empty."""
    secret: str = ""
    idempotency_key: str = ""

    def check(self) -> list[str]:
        """Answer the types to send, each once; the address is not looked at. Raises RetinueError(FIELD_INVALID)."""
        check_key(self.idempotency_key)
        return check_event_types(self.event_types)

    def digest(self) -> bytes:
        """SHA-256 of what is asked, equal for equal intents but for the secret: of that, only whether there is one.

        A digest would let whoever reads the database guess a weak secret.
        """
        asked = [self.url, self.kind, sorted(set(self.event_types)), bool(self.secret)]
        return hashlib.sha256(json.dumps(asked, separators=(",", ":")).encode()).digest()


class Verdict(StrEnum):
    """What an attempt means for its delivery."""

    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"
    """Asking again as it is would be answered the same."""
    GONE = "gone"
    """Dead, and the webhook with it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `result` is for people and holds nothing of what was sent or answered."""

    verdict: Verdict
    result: str
    rest_s: float = 0.0
    """How long the receiver wants to be left alone."""


def purpose(tenant_id: str, webhook_id: str) -> str:
    """Name what a webhook's secret is sealed for."""
    return f"webhook {tenant_id} {webhook_id}"


def check_event_types(asked: Sequence[str]) -> list[str]:
    """Answer the types to send, each once. Raises RetinueError(FIELD_INVALID)."""
    unknown = sorted(set(asked) - set(EVENT_TYPES))
    if unknown:
        raise RetinueError.field("event_types", f"must be of {', '.join(EVENT_TYPES)}; {unknown[0]!r} is not.")
    return list(dict.fromkeys(asked)) or list(DEFAULT_EVENT_TYPES)


def delay_s(attempt: int, rest_s: float, chance: float) -> float | None:
    """Seconds from a failed attempt, counted from 1, to the next; None if it was the last. `chance` is from 0 to 1."""
    if attempt > len(DELAYS_S):
        return None
    return max(DELAYS_S[attempt - 1] * (1 + JITTER * (2 * chance - 1)), rest_s)


def retry_after_s(text: str, now: float) -> float:
    """Read the header Retry-After, seconds or a date; 0 if it says nothing. `now` is in seconds since the epoch."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def judge(status: int, rest_s: float) -> Outcome:
    """Judge an answer by its status, as Standard Webhooks has it."""
    if 200 <= status < 300:
        return Outcome(Verdict.DELIVERED, f"HTTP {status}")
    if status == 410:
        return Outcome(Verdict.GONE, "HTTP 410")
    if 300 <= status < 400:
        return Outcome(Verdict.RETRY, f"HTTP {status}: redirects are not followed")
    return Outcome(Verdict.RETRY, f"HTTP {status}", rest_s)


_FEISHU_VERDICTS = {
    9499: (Verdict.DEAD, "Feishu refuses the message's form"),
    19001: (Verdict.GONE, "Feishu knows no such bot"),
    19021: (Verdict.DEAD, "Feishu refuses the signature: is the secret the bot's?"),
    19022: (Verdict.DEAD, "Feishu refuses our address: it is not on the bot's list"),
    19024: (Verdict.DEAD, "Feishu refuses the message: none of the bot's keywords is in it"),
}
_FEISHU_SLOW_DOWN = frozenset({11232, 99991400})


def judge_feishu(status: int, body: bytes, rest_s: float) -> Outcome:
    """Judge an answer of Feishu, which says in its body what came of a message, whatever the status is."""
    try:
        answer = json.loads(body)
        code = answer.get("code", answer.get("StatusCode"))
    except (ValueError, AttributeError, RecursionError):  # 16 KiB hold more brackets than Python reads
        code = None
    if not isinstance(code, int) or not 0 <= code <= FEISHU_CODE_MAX:
        outcome = judge(status, rest_s)
        if outcome.verdict is not Verdict.DELIVERED:
            return outcome
        return Outcome(Verdict.RETRY, f"HTTP {status} without Feishu's answer")
    if code == 0 and 200 <= status < 300:
        return Outcome(Verdict.DELIVERED, f"HTTP {status}")
    if code in _FEISHU_SLOW_DOWN or status == 429:
        return Outcome(Verdict.RETRY, f"Feishu asks for fewer messages ({code})", max(rest_s, FEISHU_REST_S))
    verdict, why = _FEISHU_VERDICTS.get(code, (Verdict.RETRY, f"HTTP {status}"))
    return Outcome(verdict, f"{why} ({code})", rest_s)
