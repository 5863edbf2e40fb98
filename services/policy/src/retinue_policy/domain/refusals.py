"""What is refused, as a table: the first that holds."""

from collections.abc import Callable
from dataclasses import dataclass

from retinue_kit.errors import Reason, RetinueError

from retinue_policy.domain.snapshot import KNOWN_RUNTIMES, Snapshot


@dataclass(frozen=True, slots=True)
class Refusal:
    """When a run is not executed, and with which reason; `{…}` stands for a field of the snapshot.

    One that `passes` does not hold for ever: the error says when to ask again.
    """

    name: str
    when: Callable[[Snapshot], bool]
    error: Reason
    reason: str
    passes: bool = False


REFUSALS = (
    Refusal(
        "requested_runtime_unknown",
        lambda s: bool(s.asked) and s.asked not in KNOWN_RUNTIMES,
        Reason.RUNTIME_UNAVAILABLE,
        "There is no runtime of the name that was asked for.",
    ),
    Refusal(
        "requested_runtime_off",
        lambda s: bool(s.asked) and not s.is_on(s.asked),
        Reason.RUNTIME_UNAVAILABLE,
        "The runtime {asked} was asked for and is not switched on here.",
    ),
    Refusal(
        "tool_transaction_open",
        lambda s: bool(s.asked and s.bound) and s.asked != s.bound,
        Reason.TOOL_TRANSACTION_OPEN,
        "The run has called tools under {bound}; it cannot change to {asked} before its end.",
    ),
    Refusal(
        "tool_transaction_runtime_off",
        lambda s: bool(s.bound) and not s.is_on(s.bound),
        Reason.RUNTIME_UNAVAILABLE,
        "The run has called tools under {bound}, which is not switched on any more.",
    ),
    Refusal(
        "requested_runtime_away",
        lambda s: s.asked in s.away,
        Reason.RUNTIME_UNAVAILABLE,
        "The runtime {asked} was asked for and can take no run at present.",
        passes=True,
    ),
    Refusal(
        "tool_transaction_runtime_away",
        lambda s: s.bound in s.away,
        Reason.RUNTIME_UNAVAILABLE,
        "The run has called tools under {bound}, which can take no run at present.",
        passes=True,
    ),
    Refusal(
        "every_runtime_away",
        lambda s: all(runtime in s.away for runtime in s.runtimes_on),
        Reason.RUNTIME_UNAVAILABLE,
        "No runtime can take the run at present.",
        passes=True,
    ),
    Refusal(
        "requested_runtime_failing",
        lambda s: s.asked in s.failing,
        Reason.RUNTIME_UNAVAILABLE,
        "The runtime {asked} was asked for and fails at present.",
        passes=True,
    ),
    Refusal(
        "tool_transaction_runtime_failing",
        lambda s: s.bound in s.failing,
        Reason.RUNTIME_UNAVAILABLE,
        "The run has called tools under {bound}, which fails at present.",
        passes=True,
    ),
    Refusal(
        "every_runtime_failing",
        lambda s: not s.usable,
        Reason.RUNTIME_UNAVAILABLE,
        "Every runtime that could take the run fails or is away at present.",
        passes=True,
    ),
)
"""What is refused; the first that holds."""


def check(s: Snapshot) -> None:
    """Raise RetinueError(RUNTIME_UNAVAILABLE or TOOL_TRANSACTION_OPEN) if a run cannot be executed, with the refusing
    rule as metadata; one that passes with the seconds until it may."""
    for refusal in REFUSALS:
        if refusal.when(s):
            message = refusal.reason.format(asked=s.asked, bound=s.bound)
            waits = [s.wait_s(runtime) for runtime in s.insisted]
            raise RetinueError(
                refusal.error,
                message,
                retry_after_s=min(waits) if refusal.passes else None,
                rule=refusal.name,
                runtime=",".join(s.insisted),
            )
