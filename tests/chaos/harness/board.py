"""What goes on just now: which contacts have something in progress, and when each of them was last heard of."""

import asyncio
import time
from collections import defaultdict

from harness.history import TERMINAL, Event

Name = tuple[str, str]
"""A tenant and its contact."""

IN_FLIGHT_S = 0.1
"""What was on its way when a process died arrives within this; it is no sign of recovery."""


class Board:
    """Told by those who talk and those who listen."""

    def __init__(self) -> None:
        self._open: dict[Name, set[str]] = defaultdict(set)
        self._over: set[str] = set()
        self._parked: set[str] = set()
        self._heard: dict[Name, list[float]] = defaultdict(list)
        self._types: dict[str, set[str]] = defaultdict(set)

    def acknowledged(self, name: Name, run_id: str) -> None:
        """A run was accepted."""
        if run_id not in self._over:
            self._open[name].add(run_id)

    def heard(self, name: Name, event: Event) -> None:
        """A watcher was told an event."""
        self._heard[name].append(time.monotonic())
        self._types[event.run_id].add(event.type)
        if event.type in TERMINAL or event.type == "task.finished":
            self._over.add(event.run_id)
            self._open[name].discard(event.run_id)
        if event.type == "approval.requested":
            self._parked.add(event.run_id)
        else:
            self._parked.discard(event.run_id)

    def forget(self, name: Name) -> None:
        """The contact was deleted: nobody will hear of its runs."""
        self._over |= self._open[name]
        self._open[name].clear()

    def in_progress(self) -> list[Name]:
        """Contacts with a run that is accepted, not over, and does not wait for an answer of ours."""
        return [name for name, runs in self._open.items() if runs - self._parked]

    async def until_told(self, run_id: str, type_: str, timeout_s: float) -> bool:
        """Wait until an event of a run was told; False if that takes too long."""
        return await self._until(lambda: type_ in self._types[run_id] or run_id in self._over, timeout_s)

    async def until_over(self, run_id: str, timeout_s: float) -> bool:
        """Wait for a run's end; False if that takes too long."""
        return await self._until(lambda: run_id in self._over, timeout_s)

    async def recovery_s(self, names: list[Name], since: float, timeout_s: float) -> float | None:
        """Wait until each of these contacts is heard of again, or has nothing in progress any more.

        Answers the longest silence in seconds since the given (monotonic) time; None if nobody was affected.
        """
        after = since + IN_FLIGHT_S

        def first(name: Name) -> float | None:
            return next((at for at in self._heard[name] if at > after), None)

        await self._until(lambda: all(first(n) is not None or not self._open[n] for n in names), timeout_s)
        silences = [at - since for at in map(first, names) if at is not None]
        silences += [timeout_s for name in names if first(name) is None and self._open[name]]
        return max(silences, default=None)

    async def _until(self, check: object, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not check():  # type: ignore[operator]
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.01)
        return True
