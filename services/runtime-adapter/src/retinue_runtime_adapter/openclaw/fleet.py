"""The gateways that there are: begun within bounds, begun again after a pause when that fails, ended as a whole."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import metrics
from retinue_runtime_adapter.openclaw.instance import GatewayInstance
from retinue_runtime_adapter.openclaw.ports import Backend, Isolation

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 60.0
"""Pause after a gateway did not start, doubled each time: what hinders it may pass by itself, and trying costs both
processors of a small machine."""

CORES_PER_START = 4
"""A start keeps two cores busy for its time; two at once on two cores take twice as long, each."""

ERROR_KEPT_S = 60.0
"""How long an instance that failed is still listed, so that an operator may read why."""

ERRORS_KEPT_MAX = 20
"""How many of them."""

GRACE_S = 0.0
"""Time for an instance to end by itself: none. Its folder goes with it, so that there is nothing to be written down."""

Make = Callable[[Isolation, str], GatewayInstance]
"""Makes an instance, of its isolation and whose cell it is to be from its beginning ("" for nobody's)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def unavailable(what: str, retry_after_s: float = 2.0) -> Trouble:
    """Say that a run cannot be taken for the moment."""
    return Trouble(Reason.RUNTIME_UNAVAILABLE, what, retry_after_s=retry_after_s)


class Fleet:
    """Begins, keeps and ends instances."""

    def __init__(self, settings: Settings, backend: Backend, clock: Clock, make: Make) -> None:
        self._settings = settings
        self._backend = backend
        self._clock = clock
        self._make = make
        self._instances: dict[str, GatewayInstance] = {}
        self._failed_at: dict[str, float] = {}
        self._starts = asyncio.Semaphore(max(1, (os.cpu_count() or 1) // CORES_PER_START))
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._retry_at = 0.0
        self._preparing = asyncio.Lock()
        self._is_closed = False
        self.is_prepared = False
        """Whether instances can be begun here."""
        self.why_not = ""
        """Why the last one was not begun; "" after one that was."""
        self.kick = asyncio.Event()
        """Set when something may be missing."""

    # --- what there is ----------------------------------------------------------------------------------------------

    def all(self) -> list[GatewayInstance]:
        """Every instance, oldest first, those that failed a moment ago too."""
        return list(self._instances.values())

    def get(self, instance_id: str) -> GatewayInstance | None:
        """Find an instance."""
        return self._instances.get(instance_id)

    def open(self, isolation: Isolation | None = None) -> list[GatewayInstance]:
        """Those that serve, or are about to."""
        return [one for one in self._instances.values() if one.is_open and isolation in (None, one.isolation)]

    @property
    def wait_s(self) -> float:
        """Seconds until another beginning may be tried; 0 if one may be now."""
        return max(0.0, self._retry_at - self._clock.monotonic())

    # --- beginning and ending ---------------------------------------------------------------------------------------

    def refill(self) -> None:
        """Begin what is missing, unless the last beginning has just failed."""
        if self.wait_s or self._is_closed:
            return
        shared = [one for one in self.open(Isolation.SHARED) if not one.is_worn]
        for _ in range(self._settings.openclaw_shared_count - len(shared)):
            self.begin(Isolation.SHARED)
        cells = self.open(Isolation.CELL)
        free = sum(cell.is_free_cell and not cell.is_worn for cell in cells)
        room = self._settings.openclaw_cell_count_max - len(cells)
        for _ in range(min(self._settings.openclaw_warm_cell_count - free, room)):
            self.begin(Isolation.CELL)

    async def prepare(self) -> None:
        """Find out whether instances can be begun here, if nobody did and the last try is long enough ago."""
        if not self.wait_s:
            try:
                await self._prepare()
            except RetinueError as error:
                self._failed(error.message)

    async def _prepare(self) -> None:
        async with self._preparing:
            if not self.is_prepared:
                await self._backend.prepare()
                self.is_prepared = True
                self._failures, self.why_not = 0, ""

    def begin(self, isolation: Isolation, tenant_id: str = "") -> GatewayInstance:
        """Begin an instance in the background; how many is the caller's to bound."""
        instance = self._make(isolation, tenant_id)
        self._instances[instance.instance_id] = instance
        self._spawn(self._start(instance))
        return instance

    async def _start(self, instance: GatewayInstance) -> None:
        async with self._starts:
            begun = self._clock.monotonic()
            try:
                await self._prepare()
                await instance.start()
            except (Trouble, RetinueError) as error:
                self._not_started(instance, str(error))
                return
            except Exception:
                log.exception("a start broke", instance_id=instance.instance_id)
                self._not_started(instance, "A gateway was not started.")
                return
        took_s = self._clock.monotonic() - begun
        self._failures, self.why_not = 0, ""
        metrics.start_seconds.observe(took_s)
        log.info("gateway serves", instance_id=instance.instance_id, seconds=round(took_s, 1))

    def _not_started(self, instance: GatewayInstance, why: str) -> None:
        if instance.is_open:  # else somebody wanted it to end
            metrics.restarts.labels("start").inc()
            self._failed(why)
            self.give_up(instance, unavailable("A gateway did not start."), why)

    def _failed(self, why: str) -> None:
        """Remember why nothing could be begun, and when to try again."""
        self._failures += 1
        pause_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** (min(self._failures, 10) - 1))
        self._retry_at = self._clock.monotonic() + pause_s
        self.why_not = why.rstrip(".")
        log.warning("no gateway could be started", detail=why, failures=self._failures, again_s=pause_s)

    def give_up(self, instance: GatewayInstance, trouble: Trouble, detail: str = "", *, is_loss: bool = True) -> None:
        """Serve nobody there any more, and end it in the background. `detail` is for operators alone.

        A loss is listed for a while; what is ended because nobody needs it is not.
        """
        instance.lose(trouble, detail)
        if is_loss:
            self._failed_at[instance.instance_id] = self._clock.monotonic()
        else:
            self._instances.pop(instance.instance_id, None)
        self._spawn(instance.end(GRACE_S))
        self.kick.set()

    def forget_failed(self) -> None:
        """List those no more that failed long ago, or that are many."""
        before = self._clock.monotonic() - ERROR_KEPT_S
        for number, (instance_id, failed_at) in enumerate(reversed(list(self._failed_at.items()))):
            if failed_at < before or number >= ERRORS_KEPT_MAX:
                del self._failed_at[instance_id]
                self._instances.pop(instance_id, None)

    async def close(self) -> None:
        """End all. Idempotent."""
        self._is_closed = True
        for instance in self.open():
            self.give_up(instance, unavailable("The runtime is shutting down."))
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._backend.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count(self) -> None:
        """Tell the numbers."""
        everything = self.all()
        counts = {(isolation.value, state): 0 for isolation in Isolation for state in metrics.STATES}
        for one in everything:
            counts[one.isolation.value, "free" if one.is_free_cell and one.is_ready else one.state.value] += 1
        for (isolation, state), number in counts.items():
            metrics.instances.labels(isolation, state).set(number)
        metrics.runs_waiting.set(sum(one.waiting for one in everything))
        metrics.runs_admitted.set(sum(one.admission.running for one in everything))
        metrics.memory_sum.set(sum(one.memory_bytes for one in everything))
        metrics.memory_max.set(max((one.memory_bytes for one in everything), default=0))
