"""Which gateway serves a tenant. Read `place` first.

A shared gateway serves many tenants, each by an agent of its own; a cell one tenant for good. Some of both are there
before anybody needs them. A tenant stays where it is as long as that serves well, for its conversations are warm there.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from retinue.runtime_adapter.v1.instance_service_pb2 import Instance
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.loops import keep

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.rates import Rate
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import metrics
from retinue_runtime_adapter.openclaw.fleet import Fleet, unavailable
from retinue_runtime_adapter.openclaw.gateway_config import Policies
from retinue_runtime_adapter.openclaw.instance import Connect, GatewayInstance, LostError, Probe
from retinue_runtime_adapter.openclaw.ports import Backend, Isolation, Load, ModelProxy, Place, Pool
from retinue_runtime_adapter.openclaw.probing import Prober
from retinue_runtime_adapter.openclaw.seats import Seat
from retinue_runtime_adapter.openclaw.wear import Finding

LOOK_S = 2.0
"""Seconds between two looks at every instance: a dead one is replaced that much later at most."""

PLACES_MAX = 3
"""Instances tried for one run: two may be lost while it waits; then something is wrong that a queue bears better."""

CELL_KEPT_S = 60.0
"""A cell that had a run within this time is not ended for another tenant: it would only be taken back."""

NO_CELL_MIN_S = 1.0
NO_CELL_MAX_S = 5.0
"""Who finds all cells in use is told so at once, and to come back when the longest idle one may give way; sooner than
that if it is far off, for a cell may be given back at any time and policy may know of another runtime."""

SEATS_MAX = 200
"""Tenants of one shared gateway. The longest idle agent gives way; each takes some MiB, and tens while it is active."""

SEAT_KEPT_S = 30.0
"""An agent that had a run within this time does not give way."""

RETURNS_MAX = 3
RETURNS_WINDOW_S = 600.0
"""How often within which time a tenant may give its instance back. Its next message has a gateway started or an agent
made, some fifteen seconds of two cores: more often, and one tenant could keep a machine busy for nothing."""

INSTANCES_MAX = 1_000
"""Instances that are listed."""

_LOST = {
    Finding.DIED: "The gateway has ended.",
    Finding.SILENT: "The gateway did not answer any more.",
    Finding.MEMORY: "The gateway took too much memory.",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class InstancePool(Pool):
    """Keeps instances running from `start` to `close`."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        proxy: ModelProxy,
        policies: Policies,
        clock: Clock,
        *,
        connect: Connect,
        version: str,
        probe: Probe | None = None,
    ) -> None:
        """`connect` makes a gateway's connection, `probe` looks at one; the usual probe is HTTP."""
        self._settings = settings
        self._clock = clock
        self._version = version
        self._prober = Prober()
        self._probe = probe or self._prober
        self._assigned: dict[str, GatewayInstance] = {}
        self._returns = Rate(RETURNS_MAX, RETURNS_WINDOW_S)
        self._is_closed = False
        self._alarm = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

        def make(isolation: Isolation, tenant_id: str) -> GatewayInstance:
            return GatewayInstance(
                isolation=isolation,
                tenant_id=tenant_id,
                settings=settings,
                backend=backend,
                proxy=proxy,
                policies=policies,
                connect=connect,
                clock=clock,
            )

        self._fleet = Fleet(settings, backend, clock, make)

    # --- its life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to keep instances running. Answers at once; `status` tells how far it is."""
        self._fleet.refill()
        self._loops = [keep("openclaw-refill", self._refill_for_ever), keep("openclaw-watch", self._watch_for_ever)]

    async def close(self) -> None:
        """End all instances. Idempotent."""
        self._is_closed = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._fleet.close()
        await self._prober.close()

    # --- what there is ----------------------------------------------------------------------------------------------

    def status(self) -> tuple[bool, str]:
        if self._is_closed:
            return False, "shutting down"
        ready = [instance for instance in self._fleet.open() if instance.is_ready]
        shared = sum(instance.isolation is Isolation.SHARED for instance in ready)
        cells_only = not self._settings.openclaw_shared_count and self._fleet.is_prepared
        if shared or (cells_only and not self._fleet.why_not):
            cells = len(ready) - shared
            return True, f"openclaw {self._version}, {_many(shared, 'shared gateway')}, {_many(cells, 'cell')}"
        if not self._fleet.is_prepared and not self._settings.openclaw_shared_count:
            return False, self._fleet.why_not or "looking for what instances need"
        return False, self._fleet.why_not or "starting the first gateway"

    def instances(self) -> list[Instance]:
        return [instance.describe(version=self._version) for instance in self._fleet.all()[:INSTANCES_MAX]]

    def instance_of(self, tenant_id: str) -> Instance:
        return self._instance_of(tenant_id).describe(version=self._version, tenant_id=tenant_id)

    def _instance_of(self, tenant_id: str) -> GatewayInstance:
        instance = self._assigned.get(tenant_id)
        if instance is None or not instance.is_open:
            raise RetinueError(Reason.INSTANCE_NOT_FOUND, "The tenant has no instance.")
        return instance

    def tenant_of(self, instance_id: str, agent_id: str) -> str:
        """Say whose an agent is; "" for one that is nobody's."""
        instance = self._fleet.get(instance_id)
        seats = instance.seats.of_tenant.values() if instance is not None else ()
        return next((seat.tenant_id for seat in seats if seat.agent_id == agent_id), "")

    def load(self) -> Load:
        ready = [instance for instance in self._fleet.open() if instance.is_ready]
        return Load(
            sum(instance.admission.slots for instance in ready),
            sum(instance.admission.running for instance in ready),
            sum(instance.waiting for instance in self._fleet.open()),
        )

    def present(self, tenant_id: str) -> Place | None:
        instance = self._assigned.get(tenant_id)
        return instance.place_of(tenant_id) if instance is not None and instance.is_ready else None

    async def create(self, tenant_id: str, isolation: Isolation) -> Instance:
        try:
            self._assign(tenant_id, isolation)
        except Trouble as trouble:
            raise trouble.error from None
        return self.instance_of(tenant_id)

    async def delete(self, tenant_id: str) -> None:
        instance = self._instance_of(tenant_id)
        wait_s = self._returns.take(tenant_id, self._clock.monotonic())
        if wait_s:
            text = f"An instance may be given back {RETURNS_MAX} times within {RETURNS_WINDOW_S / 60:.0f} minutes."
            raise RetinueError(Reason.QUOTA_EXCEEDED, text, retry_after_s=wait_s, quota="instance_returns")
        self._leave(tenant_id, instance, at_once=True)

    # --- a run's place ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def place(self, tenant_id: str, isolation: Isolation, *, wait_s: float) -> AsyncIterator[Place]:
        if not self._settings.openclaw_shared_count:
            isolation = Isolation.CELL  # there is nothing else here
        try:
            instance, seat, place = await self._find_place(tenant_id, isolation, wait_s)
        finally:
            self._fleet.count()
        try:
            yield place
        except BaseException:
            self._alarm.set()  # it may be the gateway's end
            raise
        finally:
            instance.leave(seat)
            self._fleet.count()

    async def _find_place(
        self, tenant_id: str, isolation: Isolation, wait_s: float
    ) -> tuple[GatewayInstance, Seat, Place]:
        begun = self._clock.monotonic()
        is_new = tenant_id not in self._assigned
        trouble = unavailable("The runtime's instances were lost.")
        try:
            async with asyncio.timeout(wait_s):
                for _ in range(PLACES_MAX):
                    instance, seat = self._assign(tenant_id, isolation)
                    try:
                        place = await instance.enter(seat)
                    except LostError as lost:
                        trouble = lost.trouble
                        continue
                    if is_new:
                        metrics.claim_seconds.observe(self._clock.monotonic() - begun)
                    return instance, seat, place
        except TimeoutError:
            raise unavailable(f"The runtime had no free place in time: {self.status()[1]}.") from None
        raise trouble

    def _assign(self, tenant_id: str, isolation: Isolation) -> tuple[GatewayInstance, Seat]:
        """Choose an instance for a tenant, or keep the one it has. Raises Trouble."""
        if self._is_closed:
            raise unavailable("The runtime is shutting down.")
        current = self._assigned.get(tenant_id)
        if current is not None and not current.is_open:
            current = None
        instance = self._cell(tenant_id, current) if isolation is Isolation.CELL else self._shared(current)
        if current is not None and instance is not current:
            self._leave(tenant_id, current, at_once=False)
        self._assigned[tenant_id] = instance
        seat, is_made = instance.claim(tenant_id)
        if is_made or (instance is not current and not instance.is_ready):
            metrics.cold_starts.labels(isolation.value).inc()
        self._fleet.kick.set()
        return instance, seat

    def _shared(self, current: GatewayInstance | None) -> GatewayInstance:
        """Keep to a gateway that serves well, else find the one with the fewest tenants."""
        if self._settings.openclaw_shared_count:
            self._fleet.refill()
        found = self._fleet.open(Isolation.SHARED)
        if not found:
            raise self._none()
        if current in found and (not current.is_worn or all(one.is_worn or not one.is_ready for one in found)):
            return current
        best = min(found, key=lambda one: (one.is_worn, not one.is_ready, len(one.seats.of_tenant)))
        if best is not current and len(best.seats.of_tenant) >= SEATS_MAX:
            idle = best.seats.idle(self._clock.monotonic() - SEAT_KEPT_S)
            if not idle:
                raise unavailable("The runtime serves as many tenants as it can.")
            self._leave(idle[0], best, at_once=True)
        return best

    def _cell(self, tenant_id: str, current: GatewayInstance | None) -> GatewayInstance:
        """Keep to the tenant's cell, else take a free one, else begin one, even in the place of a long idle one."""
        cells = self._fleet.open(Isolation.CELL)
        if current in cells:
            return current
        free = [cell for cell in cells if cell.is_free_cell and not cell.is_worn]
        if free:
            return max(free, key=lambda cell: cell.is_ready)
        if self._fleet.wait_s:
            raise self._none()
        if len(cells) >= self._settings.openclaw_cell_count_max:
            idle = [cell for cell in cells if not cell.pins]
            oldest = min(idle, key=lambda cell: cell.used_at, default=None)
            left_s = oldest.used_at + CELL_KEPT_S - self._clock.monotonic() if oldest is not None else CELL_KEPT_S
            if oldest is None or left_s > 0:
                retry_after_s = min(max(left_s, NO_CELL_MIN_S), NO_CELL_MAX_S)
                raise unavailable("All cells are in use.", retry_after_s=retry_after_s)
            self._give_up(oldest, "The cell was idle.")
        return self._fleet.begin(Isolation.CELL, tenant_id)

    def _leave(self, tenant_id: str, instance: GatewayInstance, *, at_once: bool) -> None:
        """Take a tenant off an instance. A cell without its tenant is of no use to anybody."""
        if self._assigned.get(tenant_id) is instance:
            del self._assigned[tenant_id]
        if instance.isolation is Isolation.SHARED:
            instance.seats.release(tenant_id, at_once=at_once)
        elif at_once or not instance.pins:
            self._give_up(instance, "The tenant's cell was ended.")
        # else the watch ends it once its runs are over, as it is nobody's any more

    def _give_up(self, instance: GatewayInstance, why: str, detail: str = "", *, is_loss: bool = False) -> None:
        self._fleet.give_up(instance, unavailable(why), detail, is_loss=is_loss)
        for tenant_id in [tenant_id for tenant_id, one in self._assigned.items() if one is instance]:
            del self._assigned[tenant_id]

    def _none(self) -> Trouble:
        return unavailable(
            f"The runtime is not ready: {self.status()[1]}.", retry_after_s=max(self._fleet.wait_s, LOOK_S)
        )

    # --- watching ---------------------------------------------------------------------------------------------------

    async def _refill_for_ever(self) -> None:
        while True:
            self._fleet.refill()
            if not self._settings.openclaw_shared_count:
                await self._fleet.prepare()  # else the first one's beginning does
            await _wait(self._fleet.kick)

    async def _watch_for_ever(self) -> None:
        while True:
            await _wait(self._alarm)
            await self.watch()

    async def watch(self) -> None:
        """Look at every instance once: give up what is lost, end what is not needed, and tell the numbers."""
        instances = self._fleet.open()
        findings = await asyncio.gather(*(instance.look(self._probe) for instance in instances), return_exceptions=True)
        for instance, finding in zip(instances, findings, strict=True):
            if isinstance(finding, BaseException):
                log.warning("an instance could not be looked at", instance_id=instance.instance_id, detail=str(finding))
            elif finding is not Finding.WELL and instance.is_open:
                metrics.restarts.labels(finding.value).inc()
                log.warning("gateway given up", instance_id=instance.instance_id, detail=instance.detail)
                self._give_up(instance, _LOST[finding], instance.detail, is_loss=True)
        for instance in self._fleet.open():
            self._tidy(instance)
        self._assigned = {tenant_id: one for tenant_id, one in self._assigned.items() if one.is_open}
        self._fleet.forget_failed()
        self._fleet.count()
        self._fleet.kick.set()

    def _tidy(self, instance: GatewayInstance) -> None:
        """End an instance, or take agents off it, that nobody needs any more."""
        before = self._clock.monotonic() - self._settings.openclaw_idle_s
        if instance.isolation is Isolation.CELL:
            is_left = self._assigned.get(instance.tenant_id) is not instance
            is_idle = bool(instance.tenant_id) and (is_left or instance.used_at < before)
            if not instance.pins and is_idle:
                self._give_up(instance, "The cell was not needed any more.")
            elif not instance.pins and instance.is_worn:
                self._replace(instance)
            return
        for tenant_id in instance.seats.idle(before):
            self._leave(tenant_id, instance, at_once=True)
        if instance.is_worn and not instance.pins:
            others = [one for one in self._fleet.open(Isolation.SHARED) if one.is_ready and not one.is_worn]
            if others:
                self._replace(instance)

    def _replace(self, instance: GatewayInstance) -> None:
        metrics.restarts.labels(instance.worn.value).inc()
        self._give_up(instance, "The gateway is replaced.")


async def _wait(event: asyncio.Event) -> None:
    """Wait until there is something to do, or it is time to look."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LOOK_S):
            await event.wait()
    event.clear()


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
