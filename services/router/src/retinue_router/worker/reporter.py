"""Tells policy how runtimes did, beside the runs: failures, probes, and successes of what failed lately."""

import asyncio
from collections import OrderedDict

import structlog
from retinue.policy.v1.breaker_pb2 import Outcome
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_router.worker.clients import Policy

WAITING_MAX = 2_000
"""Outcomes that wait for policy; beyond, the oldest are dropped. Breakers then open or close a little later."""

BATCH_MAX = 500
"""Outcomes in one call, as the contract says."""

PAUSE_S = 0.25
"""Successes wait so long for others; failures and probes are told at once."""

AGAIN_S = 0.5
"""Pause before a policy that does not answer is told again."""

SUSPECT_S = 60.0
"""After a failure that was seen here successes are told for so long: as long as policy counts it."""

SUSPECTS_MAX = 2_000
"""Tenants with a runtime that failed here lately; the oldest is forgotten first, and policy says it by itself soon."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Reporter:
    """Collects outcomes in order. Nothing that waits for an answer calls it; what is lost does no harm."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._waiting: list[Outcome] = []
        self._suspects: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()

    def succeeded(self, tenant_id: str, runtime: str, run_id: str, *, probed: bool, watched: bool) -> None:
        """Say that a runtime works; passed over where nobody doubts it."""
        until = self._suspects.get((tenant_id, runtime))
        if not probed and not watched and (until is None or self._clock.monotonic() > until):
            return
        last = self._waiting[-1] if self._waiting else None
        if not probed and last is not None and (last.tenant_id, last.runtime, last.result) == (
            tenant_id, runtime, "succeeded",
        ):  # fmt: skip
            return
        self._add(Outcome(tenant_id=tenant_id, runtime=runtime, run_id=run_id, result="succeeded"))
        if probed:
            self._hurry.set()

    def failed(self, tenant_id: str, runtime: str, run_id: str, reason: Reason | None) -> None:
        """Say that an attempt failed; policy knows which reasons speak against the runtime."""
        key = (tenant_id, runtime)
        self._suspects[key] = self._clock.monotonic() + SUSPECT_S
        self._suspects.move_to_end(key)
        if len(self._suspects) > SUSPECTS_MAX:
            self._suspects.popitem(last=False)
        self._add(
            Outcome(
                tenant_id=tenant_id,
                runtime=runtime,
                run_id=run_id,
                result="failed",
                reason=str(reason or ""),
            )
        )
        self._hurry.set()

    def abandoned(self, tenant_id: str, runtime: str, run_id: str) -> None:
        """Say that a probe ended without finding anything out."""
        self._add(Outcome(tenant_id=tenant_id, runtime=runtime, run_id=run_id, result="abandoned"))
        self._hurry.set()

    def _add(self, outcome: Outcome) -> None:
        self._waiting.append(outcome)
        if len(self._waiting) > WAITING_MAX:
            del self._waiting[0]
        self._wake.set()

    async def report_for_ever(self) -> None:
        """Tell what there is, again and again; one call at a time keeps the order."""
        while True:
            await self._wake.wait()
            if not self._hurry.is_set():
                try:
                    async with asyncio.timeout(PAUSE_S):
                        await self._hurry.wait()
                except TimeoutError:
                    pass
            self._wake.clear()
            self._hurry.clear()
            if not await self.flush():
                self._wake.set()
                await asyncio.sleep(AGAIN_S)

    async def flush(self) -> bool:
        """Tell what there is; False if policy does not answer, so that it is to be told again."""
        while self._waiting:
            batch = self._waiting[:BATCH_MAX]
            try:
                await self._policy.report(batch)
            except RetinueError as error:
                log.info("outcomes not told", count=len(self._waiting), detail=error.private)
                if error.reason in (Reason.DEPENDENCY_UNAVAILABLE, Reason.DRAINING):
                    return False
            told = {id(outcome) for outcome in batch}
            self._waiting = [outcome for outcome in self._waiting if id(outcome) not in told]
        return True
