"""Who may run in a gateway now: a few at once, the rest in turn, and one turn a tenant."""

import asyncio
from collections import OrderedDict, deque

from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.troubles import Trouble

RETRY_AFTER_S = 2.0
"""Seconds after which it may look better: about as long as a few short runs take."""


def full() -> Trouble:
    """Say that too many wait already."""
    return Trouble(Reason.RUNTIME_UNAVAILABLE, "Too many runs wait for the runtime.", retry_after_s=RETRY_AFTER_S)


class Admission:
    """Slots of one gateway. Who waits is admitted in the order of coming, a tenant with many after one with few."""

    def __init__(self, slots: int, waiting_max: int) -> None:
        self._slots = slots
        self._waiting_max = waiting_max
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._closed: Trouble | None = None
        self.running = 0
        self.waiting = 0

    @property
    def slots(self) -> int:
        """Runs that it admits at once."""
        return self._slots

    @property
    def is_full(self) -> bool:
        """Whether one more would have to wait."""
        return self.running >= self._slots or self.waiting > 0

    async def enter(self, tenant_id: str) -> None:
        """Wait for a slot; whoever returns from here has one, and gives it back by `leave`.

        Raises Trouble: RUNTIME_UNAVAILABLE if too many wait already, and what `close` was given.
        """
        if self._closed is not None:
            raise self._closed
        if self.running >= self._slots and self.waiting >= self._waiting_max:
            raise full()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant_id, deque()).append(turn)
        self.waiting += 1
        self._admit()
        if turn.done():
            return
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # admitted and cancelled at once
            else:
                self._withdraw(tenant_id, turn)
            raise

    def leave(self) -> None:
        """Give a slot back."""
        self.running -= 1
        self._admit()

    def resize(self, slots: int) -> None:
        """Have more or fewer slots from now on; who is in stays in."""
        self._slots = slots
        self._admit()

    def close(self, trouble: Trouble) -> None:
        """Refuse everyone, those who wait too. Runs under way are not touched."""
        self._closed = trouble
        for queue in self._queues.values():
            for turn in queue:
                if not turn.done():
                    turn.set_exception(trouble)
        self._queues.clear()
        self.waiting = 0

    def _admit(self) -> None:
        while self.running < self._slots and self._queues:
            tenant_id, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            self._queues.pop(tenant_id)
            if queue:
                self._queues[tenant_id] = queue  # behind all the others
            self.waiting -= 1
            if not turn.done():  # else it was cancelled and does not know it yet
                self.running += 1
                turn.set_result(None)

    def _withdraw(self, tenant_id: str, turn: "asyncio.Future[None]") -> None:
        queue = self._queues.get(tenant_id)
        if queue is None or turn not in queue:
            return
        queue.remove(turn)
        if not queue:
            del self._queues[tenant_id]
        self.waiting -= 1
