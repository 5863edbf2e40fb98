"""Which deliveries are attempted now: a dead receiver, or one tenant's many, must not take the places of all others."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

PLACES_MAX = 64
"""Attempts at once of one process. Each waits for a stranger's server most of its time."""

PLACES_OF_WEBHOOK_MAX = 2
"""Of one webhook: a slow receiver is not stormed, and one message that it chokes on does not hold up the next."""

PLACES_OF_TENANT_MAX = 16
PLACES_OF_HOST_MAX = 16
"""Four tenants, or hosts, that answer nothing fill a process for one attempt's time; then others have their turn."""


class Waiting(NamedTuple):
    """A webhook that has something pending."""

    webhook_id: str
    tenant_id: str
    host: str
    state: str
    """The webhook's: active, off, gone or removed."""
    is_due: bool


class Places:
    """Attempts under way, by whom they are for."""

    def __init__(self) -> None:
        self._webhooks: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """Attempts that may still begin."""
        return PLACES_MAX - self._webhooks.total()

    def take(self, waiting: Iterable[Waiting]) -> list[Waiting]:
        """Choose who may send one delivery each, first come first served, and give them places."""
        chosen = []
        for one in waiting:
            if (
                one.is_due
                and self.free > 0
                and self._webhooks[one.webhook_id] < PLACES_OF_WEBHOOK_MAX
                and self._tenants[one.tenant_id] < PLACES_OF_TENANT_MAX
                and self._hosts[one.host] < PLACES_OF_HOST_MAX
            ):
                self._count(one, 1)
                chosen.append(one)
        return chosen

    def give_back(self, one: Waiting) -> None:
        """Free a place."""
        self._count(one, -1)

    def _count(self, one: Waiting, step: int) -> None:
        for counter, key in ((self._webhooks, one.webhook_id), (self._tenants, one.tenant_id), (self._hosts, one.host)):
            counter[key] += step
            if not counter[key]:
                del counter[key]  # ids come and go for as long as the process lives
