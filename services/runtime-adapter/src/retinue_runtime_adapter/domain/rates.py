"""How often a tenant may do what costs everybody."""

from collections import OrderedDict, deque

TENANTS_MAX = 10_000
"""Tenants that are remembered, the one that did it longest ago forgotten first; far more than are served at once."""


class Rate:
    """So many times within a window, for each tenant. What is refused is not counted."""

    def __init__(self, count_max: int, window_s: float) -> None:
        self._count_max = count_max
        self._window_s = window_s
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, tenant_id: str, now: float) -> float:
        """Count one at `now`, in seconds of a clock that never goes back; answers 0.

        Where that would be too many, answers in how many seconds it would not be.
        """
        times = self._times.get(tenant_id, deque())
        while times and times[0] + self._window_s <= now:
            times.popleft()
        if len(times) >= self._count_max:
            return times[0] + self._window_s - now
        times.append(now)
        self._times[tenant_id] = times
        self._times.move_to_end(tenant_id)
        if len(self._times) > TENANTS_MAX:
            self._times.popitem(last=False)
        return 0.0
