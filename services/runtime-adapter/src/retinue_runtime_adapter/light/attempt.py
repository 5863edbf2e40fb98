"""An attempt under way: how long it may take, and whether it was told to stop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.troubles import Trouble

T = TypeVar("T")


class Attempt:
    """Bounds each wait: by its own timeout, by the end of the attempt's time, and by an abort.

    Only waits are bounded, never the whole: a timeout that struck while the caller holds a batch would cancel the
    caller's own work instead of ending the stream with its event.
    """

    def __init__(self, time_s: float) -> None:
        self._end = asyncio.get_running_loop().time() + time_s
        self._scope: asyncio.Timeout | None = None
        self._aborted: Trouble | None = None

    def abort(self, trouble: Trouble | None = None) -> None:
        """End the present wait, or the next one, with a trouble; the first one counts, and none is an abort."""
        self._aborted = self._aborted or trouble or troubles.aborted()
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(0)

    def remaining_s(self) -> float:
        """Time that is left; 0 if it is over."""
        return max(0.0, self._end - asyncio.get_running_loop().time())

    async def wait(self, step: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Wait for a step. Raises Trouble: aborted, RUN_TIMEOUT, or MODEL_TIMEOUT if the step took too long."""
        if self._aborted:
            raise self._aborted
        own_end = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(min(own_end, self._end)) as self._scope:
                return await step()
        except TimeoutError:
            if self._aborted:
                raise self._aborted from None
            if self._scope is not None and self._scope.expired() and self._end <= own_end:
                raise Trouble(Reason.RUN_TIMEOUT, "The time for the run is over.") from None
            raise Trouble(Reason.MODEL_TIMEOUT, "The model did not answer in time.") from None
        finally:
            self._scope = None
