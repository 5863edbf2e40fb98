"""What is being executed: how much at once, and why it is ended before its end."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.ports import Box, Exit, Limits, Outcome, Piece, Work
from retinue_sandbox.quota import LOOK_S, QUICK_MS, Quota

RETRY_AFTER_S = 5.0
"""When a place may have come free."""

ENDED_CODE = 137
"""As of a process that was killed."""


def _future() -> "asyncio.Future[Outcome | None]":
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False, slots=True)
class Running:
    """An execution under way."""

    token: int
    box: Box
    began: float
    stop: "asyncio.Future[Outcome | None]" = field(default_factory=_future)
    """Why it is to end: CANCELLED, DISK, or None where its caller was overtaken."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, why: Outcome | None) -> None:
        """Tell it to end; the first cause holds."""
        if not self.stop.done():
            self.stop.set_result(why)


class Runner:
    """Runs things in boxes."""

    def __init__(self, quota: Quota, tenant_executions_max: int, clock: Clock) -> None:
        self._quota = quota
        self._most = tenant_executions_max
        self._clock = clock
        self._counts: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant_id: str) -> Iterator[None]:
        """Take one of the tenant's places to execute for the block. Raises QUOTA_EXCEEDED if none is free."""
        if self._counts[tenant_id] >= self._most:
            raise RetinueError(
                Reason.QUOTA_EXCEEDED, "Too much runs at once.", retry_after_s=RETRY_AFTER_S, quota="executions"
            )
        self._counts[tenant_id] += 1
        try:
            yield
        finally:
            self._counts[tenant_id] -= 1
            if not self._counts[tenant_id]:
                del self._counts[tenant_id]

    async def run(
        self, running: Running, tenant_id: str, work: Work, limits: Limits
    ) -> AsyncGenerator[Piece | Exit, None]:
        """Run something until it ends, or is to end, or the tenant's files become too many. Raises what the box raises,
        and STALE_FENCING_TOKEN.
        """
        async with aclosing(running.box.run(work, limits)) as items:
            while True:
                step = asyncio.ensure_future(anext(items))
                try:
                    problem = await self._wait(running, step, tenant_id)
                finally:
                    await _end(step)
                if running.stop.done():
                    if not step.cancelled():
                        step.exception()  # of no interest any more, and not to be warned of
                    break
                item = step.result()
                if isinstance(item, Exit):
                    yield await self._judged(item, tenant_id)
                    return
                yield item
        outcome = running.stop.result()
        if outcome is None:
            raise RetinueError(Reason.STALE_FENCING_TOKEN, "Another attempt of this session has begun since.")
        spent_ms = int((self._clock.monotonic() - running.began) * 1000)
        yield Exit(outcome, ENDED_CODE, spent_ms, message=problem or "It was ended with its session.")

    async def _wait(self, running: Running, step: "asyncio.Future[Piece | Exit]", tenant_id: str) -> str:
        """Wait for what comes next, or until it is to end; answers what is too much of the tenant's files, if that is
        why.
        """
        while True:
            await asyncio.wait((step, running.stop), timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if step.done() or running.stop.done():
                return ""
            problem = await self._quota.look(tenant_id)
            if problem:
                running.end(Outcome.DISK)
                return problem

    async def _judged(self, end: Exit, tenant_id: str) -> Exit:
        """Say that it ended for having written too much, if it did."""
        if end.duration_ms < LOOK_S * 1000:
            self._quota.look_soon(tenant_id)
        if end.duration_ms < QUICK_MS:
            return end
        problem = await self._quota.look(tenant_id)
        if problem and end.outcome in (Outcome.EXITED, Outcome.SIGNALLED):
            return replace(end, outcome=Outcome.DISK, message=problem)
        return end


async def _end(step: "asyncio.Future[Piece | Exit]") -> None:
    """Cancel a step and wait until it has cleaned up, however often this is cancelled meanwhile: boxes bound that."""
    interrupted: BaseException | None = None
    step.cancel()
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted
