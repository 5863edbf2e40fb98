"""The caller's deadline, carried from an incoming call to the outgoing ones: grpc.aio does not do that by itself."""

import time
from contextvars import ContextVar

from retinue_kit.errors import Reason, RetinueError

HOP_MARGIN_S = 0.01
"""Shaved off at each hop, so that the one further in gives up first and its error can still travel."""

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def enter(remaining_s: float | None) -> None:
    """Set the deadline for this task and those that it starts; None where the caller set none."""
    _deadline.set(None if remaining_s is None else time.monotonic() + remaining_s)


def timeout_s(default_s: float) -> float:
    """Seconds that an outgoing call may take: its default, or less if the caller waits less.

    Raises RetinueError(RUN_TIMEOUT) if the caller's time is over.
    """
    deadline = _deadline.get()
    if deadline is None:
        return default_s
    remaining = deadline - time.monotonic() - HOP_MARGIN_S
    if remaining <= 0:
        raise RetinueError(Reason.RUN_TIMEOUT, "The caller's deadline has passed.")
    return min(default_s, remaining)
