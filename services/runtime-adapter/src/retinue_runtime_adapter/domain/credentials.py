"""Several credentials for one provider: which is next, and how long one rests after it was refused."""

from collections.abc import Sequence
from dataclasses import dataclass

COOLDOWN_MIN_S = 60.0
"""First rest of a refused credential: providers count their rates by the minute."""

COOLDOWN_MAX_S = 900.0
"""Longest rest. A key that was topped up or unblocked is found again within a quarter of an hour."""


@dataclass(slots=True)
class _Rest:
    until: float = 0.0
    next_s: float = COOLDOWN_MIN_S


class Credentials:
    """The keys of one provider. Stays with one until it is refused, then goes on to the next that is not resting."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys) or ("",)
        self._rests = [_Rest() for _ in self.keys]
        self._current = 0

    def pick(self, now: float) -> int:
        """The key to use, by its place: if all are resting, the one that has rested enough first.

        A refusal by the provider itself is a better answer than one of ours, so a sole key is always used.
        """
        count = len(self.keys)
        for place in ((self._current + step) % count for step in range(count)):
            if self._rests[place].until <= now:
                self._current = place
                return place
        return min(range(count), key=lambda place: self._rests[place].until)

    def refused(self, place: int, now: float) -> None:
        """Let a key rest, twice as long each time in a row."""
        rest = self._rests[place]
        if rest.until <= now:  # several calls with one key may be refused at once; that is one refusal
            rest.until = now + rest.next_s
            rest.next_s = min(rest.next_s * 2, COOLDOWN_MAX_S)

    def ready(self, now: float) -> bool:
        """Whether a key is not resting."""
        return any(rest.until <= now for rest in self._rests)

    def accepted(self, place: int) -> None:
        """Forget a key's refusals."""
        rest = self._rests[place]
        if rest.until:
            rest.until, rest.next_s = 0.0, COOLDOWN_MIN_S
