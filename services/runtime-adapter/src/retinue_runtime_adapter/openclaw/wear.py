"""How a gateway bears its work: how many runs it is given at once, and when another is to take its place."""

from enum import StrEnum

from retinue_runtime_adapter.openclaw.probing import Health

AT_ONCE_FACTOR = 1.5
"""A gateway that takes so many times what it may is ended at once, before the machine does it to somebody else."""

LAG_MAX_S = 300.0
"""A gateway whose event loop lags behind for so long, without one look at which it did not, will not mend itself. Many
times what its worst pauses were seen to last, so that a machine that is only busy has no gateways started on top."""

MIB = 1024 * 1024


class Finding(StrEnum):
    """What a look at an instance can mean."""

    WELL = "well"
    DIED = "died"
    SILENT = "silent"
    MEMORY = "memory"
    LAG = "lag"


_WHY = {
    Finding.MEMORY: "it takes too much memory",
    Finding.LAG: f"its event loop has lagged behind for {LAG_MAX_S / 60:.0f} minutes",
}


class Wear:
    """What looks at a gateway have come to. It has all its slots until one finds it lagging."""

    def __init__(self, slots: int, memory_mib: int) -> None:
        self._slots_max = slots
        self._slots = slots
        self._limit_bytes = memory_mib * MIB
        self._lags_since: float | None = None
        self.worn = Finding.WELL
        """Why another is to take its place; WELL if none is. For good: once it is better, that one may be there."""

    @property
    def why(self) -> str:
        """The same in words; "" if none is."""
        return _WHY.get(self.worn, "")

    def feel(self, health: Health, now: float) -> int:
        """Take in how it answered at `now`, on the monotonic clock; answers how many runs it is given at once.

        One that lags behind is given half of them, and once it does not any more one more at each look: all of them at
        once is what it could not bear.
        """
        if health.answers and not health.lags:
            self._lags_since = None
            self._slots = min(self._slots_max, self._slots + 1)
            return self._slots
        self._slots = max(1, self._slots_max // 2)
        if self._lags_since is None:
            self._lags_since = now
        elif now - self._lags_since >= LAG_MAX_S:
            self._wear_out(Finding.LAG)
        return self._slots

    def weigh(self, memory_bytes: int) -> bool:
        """Take in its memory; answers whether it is too much to wait until its runs are over."""
        if memory_bytes > self._limit_bytes:
            self._wear_out(Finding.MEMORY)
        return memory_bytes > self._limit_bytes * AT_ONCE_FACTOR

    def _wear_out(self, finding: Finding) -> None:
        if self.worn is Finding.WELL:
            self.worn = finding
