"""Time as something that is handed in, so that rules can be tested without waiting."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Seconds that only grow; for spans."""
        ...

    def now(self) -> float:
        """Seconds since the epoch; for instants."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()
