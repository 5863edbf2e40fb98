"""A run under way in a gateway, which outlives the streams that follow it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent

from retinue_runtime_adapter.light.attempt import Attempt


class Begun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is recorded before a run's first call that may change something: from then on it is not asked anew."""

    runtime: str
    begun: str
    """The call's tool."""


def read_begun(state: bytes, runtime: str) -> Begun | None:
    """Read a recorded state; None if there is none, or it says something else."""
    try:
        found = msgspec.json.decode(state, type=Begun)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return found if found.runtime == runtime else None


class Run:
    """A run under way, or just over: everything it told, for whoever follows it."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.told: list[RuntimeEvent] = []
        self.over = False
        self.followers = 0
        self.leaving: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.token = 0
        """Of the latest attempt that follows it: tools are called under it."""
        self.who: tuple[str, str, str] | None = None
        """Where it goes on: instance, agent and session key."""
        self._more = asyncio.Event()
        self._pause: RuntimeEvent | None = None
        self._pause_at = 0
        """How much was told before the pause."""
        self._recorded = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether a call that may change something was let through."""
        return self._recorded.is_set()

    def tell(self, events: Sequence[RuntimeEvent], *, last: bool = False) -> None:
        """Add what happened; nothing is added behind the end."""
        if self.over or not events:
            return
        self.told.extend(events)
        self.over = last
        self._more.set()

    async def begin(self, begun: Begun, announce: Callable[[], Sequence[RuntimeEvent]]) -> None:
        """Have it recorded that a call begins which may change something; returns once it is.

        `announce` answers what is to be told of the call before. A run pauses once: of its later calls the record says
        nothing new.
        """
        if self._pause is None and not self.begun:
            self.tell(announce())
            self._pause = RuntimeEvent(paused=pb.Paused(state=msgspec.json.encode(begun)))
            self._pause_at = len(self.told)
            self._more.set()
        await self._recorded.wait()

    def recorded(self) -> None:
        """Whoever follows has come with the recorded state: calls may begin."""
        self._recorded.set()
        self._more.set()

    async def follow(self, *, behind_pause: bool = False) -> AsyncIterator[list[RuntimeEvent]]:
        """Yield everything from the beginning, or from the pause, to the end or to a pause that is not recorded yet.

        Each batch is as large as it has become meanwhile.
        """
        read = self._pause_at if behind_pause else 0
        while True:
            pause = None if self.begun or self.over else self._pause
            end = len(self.told) if pause is None else self._pause_at
            if read < end:
                events, read = self.told[read:end], end
                yield events
            elif pause is not None:
                yield [pause]
                return
            elif self.over:
                return
            else:
                self._more.clear()
                await self._more.wait()
