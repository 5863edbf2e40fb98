"""Attempts under way, one a session: the one that comes later ends the one before, whatever runtime executes it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.metrics import stale_writes_refused

from retinue_runtime_adapter.adapter import Batches
from retinue_runtime_adapter.domain.fencing import Fences


class Guard:
    """Passes on what one attempt tells, until another overtakes it."""

    def __init__(self) -> None:
        self._scope: asyncio.Timeout | None = None
        self._overtaken = False

    def overtake(self) -> None:
        """End the present wait, or the next one."""
        self._overtaken = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(0)

    async def follow(self, batches: Batches) -> AsyncIterator[list[RuntimeEvent]]:
        """Yield the batches. Raises STALE_FENCING_TOKEN once the attempt is overtaken; the caller closes them.

        Only waits are cut off, never the caller's own work with a batch.
        """
        while True:
            try:
                async with asyncio.timeout(None) as self._scope:
                    events = await anext(batches)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if not self._overtaken:
                    raise
            finally:
                self._scope = None
            if self._overtaken:
                stale_writes_refused.labels("runtime").inc()
                raise RetinueError(Reason.STALE_FENCING_TOKEN, "Another attempt of this session has begun since.")
            yield events


class Running:
    """Admits attempts by their tokens."""

    def __init__(self) -> None:
        self._fences = Fences()
        self._guards: dict[tuple[str, str], Guard] = {}

    @contextmanager
    def attempt(self, tenant_id: str, session_id: str, token: int) -> Iterator[Guard]:
        """Begin an attempt and end the session's former one. Raises STALE_FENCING_TOKEN if it is itself overtaken."""
        try:
            self._fences.admit(tenant_id, session_id, token)
        except RetinueError:
            stale_writes_refused.labels("runtime").inc()
            raise
        key, guard = (tenant_id, session_id), Guard()
        former = self._guards.get(key)
        self._guards[key] = guard
        if former is not None:
            former.overtake()
        try:
            yield guard
        finally:
            if self._guards.get(key) is guard:
                del self._guards[key]
