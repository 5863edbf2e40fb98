"""When a gateway may prepare agents for tenants to come: while nobody speaks, within bounds.

Making an agent and letting it have its first turn take a gateway's one thread for seconds. Done behind a claim, as soon
as a warm agent is gone, they were what the new tenant's own first turn waited for (measured: ten seconds of twelve).
"""

from retinue_kit.clock import Clock

QUIET_S = 5.0
"""Nothing is prepared until the last claim and the last run are so long ago: who has just come, or was just answered,
may speak."""

WAIT_MAX_S = 60.0
NONE_LEFT_WAIT_MAX_S = 10.0
"""What is missing waits for quiet so long at most, each agent anew. The shorter time is for when no warm agent is left,
so that a tenant to come would wait for all of it itself, and nobody waits for the gateway either."""


class Preparing:
    """Decides for one gateway; told of whatever stirs in it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stirred_at = -QUIET_S
        self._lacks_since: float | None = None

    def stir(self) -> float:
        """A tenant came, or a run is over; answers when, on the monotonic clock."""
        self._stirred_at = self._clock.monotonic()
        return self._stirred_at

    def is_time(self, *, missing: int, warm_count: int, is_used: bool, is_busy: bool) -> bool:
        """Whether the next step may be made now. `missing` agents are not there or not warm, `warm_count` are.

        `is_used` says that a run is under way, or waits, and `is_busy` that one waits for the gateway.
        """
        now = self._clock.monotonic()
        if missing <= 0:
            self._lacks_since = None
            return False
        if self._lacks_since is None:
            self._lacks_since = now
        if not is_used and not is_busy and now - self._stirred_at >= QUIET_S:
            return True
        wait_s = WAIT_MAX_S if warm_count or is_busy else NONE_LEFT_WAIT_MAX_S
        return now - self._lacks_since >= wait_s

    def prepared(self) -> None:
        """One more agent is warm: the next one waits anew."""
        self._lacks_since = None
