"""What becomes of an attempt: its outcome so far, and what of it is kept for the next."""

from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeUsage
from retinue_kit import wire
from retinue_kit.errors import RETRY_AFTER_S, Reason, RetinueError

RETRY_DELAY_S = 0.5
"""Before the second attempt; doubled for each further one."""

_RETRYABLE = frozenset({Reason.DEPENDENCY_UNAVAILABLE, Reason.DRAINING, Reason.INTERNAL})
_NOT_YET = frozenset({Reason.DEPENDENCY_UNAVAILABLE, Reason.DRAINING})
"""What says, before a runtime has begun, that it could not begin yet."""


@dataclass(slots=True)
class Outcome:
    """What became of an attempt so far."""

    state: str = "failed"
    text: str = ""
    whole: list[str] = field(default_factory=list)
    usage: dict[str, object] = field(default_factory=lambda: {"input_tokens": 0, "output_tokens": 0, "model": ""})
    error: dict[str, object] | None = None
    reason: Reason | None = None
    retryable: bool = False
    put_back_s: float | None = None
    """The run could not go on through no fault of its own: it may be put back for at least so long (seconds) and keeps
    its attempt."""
    again: bool = False
    """It failed, and what it failed of is mended: it goes on at once, in an attempt of its own."""
    refused: bool = False
    """Policy's answer to what was asked is no, whoever asks it again."""
    parked: bool = False
    ring: bool = False

    @property
    def output(self) -> str:
        """All that it said."""
        return "\n\n".join([*self.whole, self.text] if self.text else self.whole)

    @property
    def is_final(self) -> bool:
        """Whether the run has ended without success, and no attempt follows."""
        return self.state in ("cancelled", "failed") and not (self.retryable or self.again) and self.put_back_s is None

    def fail(self, error: RetinueError, *, decided: bool, begun: bool, said: bool) -> None:
        """End with an error, which came before policy had decided, before the runtime had begun, before it had said
        anything, or after.
        """
        self.state, self.error, self.reason = "failed", wire.to_json(wire.to_status(error)), error.reason
        self.retryable = error.reason in _RETRYABLE
        waits = error.reason is Reason.DRAINING or (not begun and error.reason in _NOT_YET)
        if not decided and error.reason is Reason.RUNTIME_UNAVAILABLE:
            waits = error.retry_after_s is not None
            self.refused = not waits
        self.put_back_s = (error.retry_after_s or RETRY_AFTER_S) if waits else None
        if decided and not waits:
            self.put_back_s = not_yet_s(error, said=said)


class Saved(msgspec.Struct):
    """What a checkpoint keeps: the runtime's own state, and the messages that are recorded already."""

    state: bytes = b""
    whole: list[str] = []


V = TypeVar("V")


def not_yet_s(error: RetinueError, *, said: bool) -> float | None:
    """Seconds after which a runtime that could not begin may be asked again; None if that is not what its error says.

    It has no process or no room for the run just now: that is no attempt at it, whatever it was about to say.
    """
    if error.reason is not Reason.RUNTIME_UNAVAILABLE or said:
        return None
    return error.retry_after_s or RETRY_AFTER_S


def storable(value: V) -> V:
    """A value of JSON as Postgres can hold it: null characters, which no one can see, are left out of its texts."""
    found: Any = value
    if isinstance(value, str):
        found = value.replace("\0", "")
    elif isinstance(value, dict):
        found = {storable(name): storable(element) for name, element in value.items()}
    elif isinstance(value, list):
        found = [storable(element) for element in value]
    return cast("V", found)


def retry_delay_s(attempt: int) -> float:
    """How long a run waits after its n-th attempt has failed."""
    return RETRY_DELAY_S * 2.0 ** (attempt - 1)


def usage_of(usage: RuntimeUsage) -> dict[str, object]:
    """What an attempt used, as it is stored."""
    model = storable(usage.model)
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "model": model}
