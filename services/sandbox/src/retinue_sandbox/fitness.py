"""Whether boxes hold on this machine: where it was not found that they do, nothing is executed."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.loops import keep

from retinue_sandbox import metrics
from retinue_sandbox.ports import CHECK_TIMEOUT_S, Backend, Check

AGAIN_AFTER_S = 30.0
"""Where boxes do not hold it is tried again so soon: somebody may be mending it."""

LOOKS_MAX = 2
"""A machine that is very busy for a moment is looked at once more, before nothing is executed for AGAIN_AFTER_S."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Fitness:
    """The self-test's findings, made anew from time to time once `start` was called."""

    def __init__(self, backend: Backend, interval_s: float) -> None:
        self.checks: Sequence[Check] = (Check("self_test", False, "it has not ended yet"),)
        self._backend = backend
        self._interval_s = interval_s
        self._first = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to test."""
        self._loop = keep("self-test", self._test_for_ever)

    async def close(self) -> None:
        """Stop testing."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    @property
    def failed(self) -> Check | None:
        """The first required check that does not hold; None if boxes hold."""
        return _failed(self.checks)

    async def found(self) -> Sequence[Check]:
        """Wait for the first findings; answers the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._first.wait()
        return self.checks

    async def require(self) -> None:
        """Wait for the first findings. Raises SANDBOX_UNAVAILABLE (metadata.check) unless boxes hold."""
        await self.found()
        failed = self.failed
        if failed is not None:
            message = f"No box holds on this machine ({failed.name}), and nothing is executed outside of one."
            raise RetinueError(Reason.SANDBOX_UNAVAILABLE, message, private=failed.detail, check=failed.name)

    async def look(self) -> None:
        """Test, and once more if boxes do not seem to hold."""
        for _ in range(LOOKS_MAX):
            checks = await self._checks()
            failed = _failed(checks)
            if failed is None:
                break
        self.checks = checks
        metrics.available.set(failed is None)
        if failed is None:
            log.info("boxes hold", backend=self._backend.name)
        else:
            log.error("nothing is executed", check=failed.name, detail=failed.detail, remedy=failed.remedy)
        self._first.set()

    async def _checks(self) -> Sequence[Check]:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                checks: Sequence[Check] = await self._backend.check()
        except TimeoutError:
            checks = [Check("self_test", False, f"it took longer than {CHECK_TIMEOUT_S:g} s")]
        except Exception as error:  # a backend that breaks is one that does not hold
            log.exception("the self-test broke")
            checks = [Check("self_test", False, f"it broke: {type(error).__name__}")]
        return checks or [Check("self_test", False, "it looked at nothing")]

    async def _test_for_ever(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s if self.failed is None else min(AGAIN_AFTER_S, self._interval_s))


def _failed(checks: Sequence[Check]) -> Check | None:
    return next((check for check in checks if check.required and not check.ok), None)
