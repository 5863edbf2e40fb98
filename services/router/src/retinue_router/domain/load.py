"""How much waits, and how long it takes until there is room again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from retinue_router.domain.queues import QueueClass

RETRY_AFTER_MIN_S = 1.0
RETRY_AFTER_MAX_S = 60.0
"""A guess about more than a minute is none: the pace will have changed."""

ROOM_SHARE = 10
"""A caller is asked to come back when one part in so many of the queue has drained: sooner, it would find the places
taken by others who were asked the same; later, workers might wait for it."""


class Bounds(NamedTuple):
    """How many runs may wait: of one tenant, in all, and of one tenant those whose time has not come."""

    tenant_waiting: int
    waiting: int
    tenant_later: int


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What waits in one class: runs whose time has come, for how long the first of them has (seconds), and others."""

    waiting: int = 0
    oldest_s: float = 0.0
    later: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What waits over all tenants. So many `ended` within the last `window_s`; `whole`: nothing was left uncounted."""

    queues: Mapping[QueueClass, QueueLoad] = field(default_factory=lambda: {c: QueueLoad() for c in QueueClass})
    dead: int = 0
    ended: int = 0
    window_s: float = 1.0
    whole: bool = True
    count_time: datetime | None = None
    """When it was counted; None before the first time."""

    @property
    def waiting(self) -> int:
        """Runs whose time has come, in all classes."""
        return sum(queue.waiting for queue in self.queues.values())

    def room(self, waiting_max: int) -> int:
        """How many more runs may wait; 0 or less where none may."""
        return waiting_max - self.waiting if self.whole else 0


def retry_after_s(waiting: int, ended: int, window_s: float) -> float:
    """Tell in how many seconds a part of a queue will have drained, where so many runs ended within a window.

    One more is taken for ended than was seen: that none ended in a short while does not mean that none ever will.
    """
    pace = (ended + 1) / window_s
    return min(max(waiting / ROOM_SHARE / pace, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
