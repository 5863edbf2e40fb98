"""The circuit breaker: keeps work away from a runtime that fails, and finds out when it works again.

A breaker counts failures that follow one another without a success between. At its limit it opens: nothing is let
through for a period that doubles with each failed probe. Then it is half open: one attempt at a time, under a lease,
finds out; its first sign of life closes the breaker. There is one for each tenant and runtime, and one for each runtime
over all tenants: a tenant's own trouble leaves others alone, and a dead runtime need not be found dead by each tenant.

All functions are pure and take `now` in seconds since the epoch. None stands for a closed breaker that saw nothing.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from retinue_kit.errors import Reason

FAILURES_MAX = 5
"""Failures in a row that open a tenant's breaker: more than the attempts of one run, so that a single request which no
runtime can serve does not stop its tenant's others."""

REFUSALS_MAX = 2
"""Times in a row that a runtime has no room for a tenant until its breaker opens: no request can have caused that, and
whoever may have another runtime need not wait for this one. Once may be chance."""

FAILURES_OF_ALL_MAX = 10
"""Failures in a row that open a runtime for everybody: a hiccup that a few runs of many tenants meet at once is no
outage."""

TENANTS_MIN = 3
"""Tenants that the failures of a whole runtime must come from: fewer speak of those tenants."""

WINDOW_S = 60.0
"""A failure is forgotten after so long without another: in a quiet hour, failures in a row need not have one cause."""

PERIOD_FIRST_S = 1.0
"""How long a breaker stays open at first: a process that died is back by then."""

PERIOD_MAX_S = 10.0
"""How long it stays open at most: a runtime that works again is found within this, at the price of a probe."""

PROBE_LEASE_S = 15.0
"""How long one probe keeps others away: most first tokens come within it, and a prober that died is not waited for
much longer than a usual period."""

PROBE_LOOK_S = 1.0
"""How soon it is worth asking again while another probes: most probes tell within this."""

KEPT_S = 600.0
"""A breaker that is not closed and of which nothing was heard for so long is forgotten: nobody asks for the runtime."""


class Result(StrEnum):
    """How an attempt went."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


class State(StrEnum):
    """What a breaker does with work."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Scope(StrEnum):
    """Whom a failure speaks of."""

    RUNTIME = "runtime"
    TENANT = "tenant"


AGAINST: dict[Reason, tuple[Scope, str]] = {
    Reason.RUNTIME_UNAVAILABLE: (Scope.RUNTIME, "The runtime itself says that it cannot be reached."),
    Reason.DEPENDENCY_UNAVAILABLE: (Scope.RUNTIME, "Nothing speaks for the runtime: its adapter is gone."),
    Reason.MODEL_UNAVAILABLE: (Scope.RUNTIME, "The model behind it is away or answers with errors of its own."),
    Reason.MODEL_TIMEOUT: (Scope.RUNTIME, "The model behind it is silent; others would wait as long."),
    Reason.MODEL_RESPONSE_INVALID: (Scope.RUNTIME, "The model's answers break off or make no sense."),
    Reason.QUEUE_FULL: (Scope.TENANT, "It has no room for the tenant's run now; others may have theirs in it."),
    Reason.MODEL_RATE_LIMITED: (Scope.TENANT, "The tenant's rate is used up; asking more often makes it worse."),
}
"""The reasons that speak against a runtime, for whom, and why. All others are the request's own doing or ours, or are
mended only by a person (a credential, a quota): such a run fails at once and says so."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is known of one breaker; instants in seconds since the epoch."""

    failures: int = 0
    """Failures in a row while it is closed."""
    tenants: tuple[str, ...] = ()
    """Some of those that they came from, TENANTS_MIN at most."""
    heard: float = 0.0
    """The last report that counted."""
    open_count: int = 0
    """How often it has opened in a row; 0: it is closed."""
    open_time: float = 0.0
    """Since when it has not been closed."""
    probe_time: float = 0.0
    """When the next probe may begin."""
    probe: str = ""
    """The run that probes."""
    probe_until: float = 0.0
    """The end of its lease."""

    def state(self, now: float) -> State:
        """What it does with work now."""
        if not self.open_count:
            return State.CLOSED
        return State.OPEN if now < self.probe_time else State.HALF_OPEN

    def wait_s(self, now: float, run_id: str) -> float:
        """How long until it is worth asking whether a run is let through; 0 if it is now, as the one that probes."""
        if not self.open_count:
            return 0.0
        if now < self.probe_time:
            return self.probe_time - now
        others = self.probe not in ("", run_id)
        return min(PROBE_LOOK_S, max(0.0, self.probe_until - now)) if others else 0.0

    def kept_s(self, now: float) -> float:
        """How long it is worth remembering from now on."""
        kept = KEPT_S if self.open_count else WINDOW_S
        return max(0.0, self.heard + kept - now)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a breaker opens."""

    failures: int
    tenants: int


OF_TENANT = Limits(FAILURES_MAX, 1)
OF_TENANT_WITHOUT_ROOM = Limits(REFUSALS_MAX, 1)
OF_ALL = Limits(FAILURES_OF_ALL_MAX, TENANTS_MIN)


def limits_of(reason: Reason | None, *, of_all: bool) -> Limits:
    """When failures open a breaker, by the reason of the latest."""
    if of_all:
        return OF_ALL
    return OF_TENANT_WITHOUT_ROOM if reason is Reason.QUEUE_FULL else OF_TENANT


def period_s(open_count: int) -> float:
    """How long a breaker stays open that has opened so often in a row."""
    return float(min(PERIOD_MAX_S, PERIOD_FIRST_S * 2 ** min(open_count - 1, 32)))


def failed(breaker: Breaker | None, tenant_id: str, run_id: str, now: float, limits: Limits) -> Breaker:
    """Take in a failure. While it is not closed only the probe's counts: the others began before it opened."""
    known = breaker or Breaker()
    if known.open_count:
        if known.probe != run_id:
            return known
        again = known.open_count + 1
        return replace(known, open_count=again, probe="", probe_until=0.0, probe_time=now + period_s(again), heard=now)
    if now - known.heard > WINDOW_S:
        known = Breaker()
    tenants = known.tenants
    if tenant_id not in tenants and len(tenants) < TENANTS_MIN:
        tenants = (*tenants, tenant_id)
    counted = replace(known, failures=known.failures + 1, tenants=tenants, heard=now)
    if counted.failures < limits.failures or len(tenants) < limits.tenants:
        return counted
    return Breaker(open_count=1, open_time=now, probe_time=now + period_s(1), heard=now)


def succeeded(breaker: Breaker | None, run_id: str) -> Breaker | None:
    """Take in a success. While it is not closed only the probe's counts: what began before proves nothing of now."""
    if breaker is None or not breaker.open_count or breaker.probe == run_id:
        return None
    return breaker


def abandoned(breaker: Breaker | None, run_id: str) -> Breaker | None:
    """Take in that a probe ended without telling anything: the next one may begin at once."""
    if breaker is None or not breaker.probe or breaker.probe != run_id:
        return breaker
    return replace(breaker, probe="", probe_until=0.0)


def probing(breaker: Breaker | None, run_id: str, now: float) -> Breaker | None:
    """Give the probe's lease to a run; None if it cannot have it now. The same run may ask again."""
    if breaker is None or breaker.state(now) is not State.HALF_OPEN:
        return None
    if breaker.probe not in ("", run_id) and now < breaker.probe_until:
        return None
    return replace(breaker, probe=run_id, probe_until=now + PROBE_LEASE_S, heard=now)
