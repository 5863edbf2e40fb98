"""One gateway from its beginning to its end: its process, its connection, its agents and who may run in it."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from retinue.runtime_adapter.v1 import instance_service_pb2 as pb
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.ids import new_id
from retinue_kit.loops import keep

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw.admission import Admission, full
from retinue_runtime_adapter.openclaw.gateway_config import Policies, openclaw_json
from retinue_runtime_adapter.openclaw.ports import Backend, Gateway, InstanceSpec, Isolation, ModelProxy, Place, Process
from retinue_runtime_adapter.openclaw.probing import Health
from retinue_runtime_adapter.openclaw.seats import Seat, Seats
from retinue_runtime_adapter.openclaw.wear import AT_ONCE_FACTOR, MIB, Finding, Wear

SPARE_COUNT = 2
"""Agents that a shared gateway keeps warm for tenants to come. Each takes some tens of MiB; a first turn seconds."""

START_TIMEOUT_S = 300.0
"""From the beginning of a process to its first answer: 6 s on an idle machine; 180 s were too little on two cores with
twenty others at work, and who is given up then begins from nothing."""

ALIVE_POLL_S = 0.5
"""How soon it is noticed that a process ended while it should have begun."""

UNBEGUN_MAX = 5
"""Runs in a row that a gateway could not begin: its own files have been seen locked for good."""

SILENCE_MAX_S = 90.0
"""A gateway that does not answer for so long hangs. Its event loop was seen to stand still for 76 s and to recover."""

TOKEN_BYTES = 32

TENANTS_TOLD_MAX = 100
"""Tenants that are named of one instance."""

MEASURE_S = 10.0
"""Seconds between two measurements of memory: each looks at every process of the machine."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Connection(Gateway, Protocol):
    """A gateway's connection, which its maker opens."""

    async def start(self, timeout_s: float) -> None:
        """Wait until the gateway serves. Raises Trouble."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether there will be no connection any more."""
        ...


Connect = Callable[[str, str], Connection]
"""Makes a connection of an address and a token."""

Probe = Callable[[str], Awaitable[Health]]
"""Looks at the gateway at an address."""


class State(StrEnum):
    """How far an instance is."""

    PENDING = "pending"
    READY = "ready"
    ERROR = "error"


class LostError(Exception):
    """The instance is gone, or the agent is: another place may serve."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


class GatewayInstance:
    """A gateway. Begun once, ended once; an ended one is only looked at."""

    def __init__(
        self,
        *,
        isolation: Isolation,
        tenant_id: str,
        settings: Settings,
        backend: Backend,
        proxy: ModelProxy,
        policies: Policies,
        connect: Connect,
        clock: Clock,
    ) -> None:
        """`tenant_id` is whose cell it is to be from its beginning, or ""."""
        self.instance_id = new_id("ins")
        self.isolation = isolation
        self.tenant_id = tenant_id
        """Whose cell it is, for good; "" for a shared gateway, and for a cell that waits for its tenant."""
        self.state = State.PENDING
        self.detail = "waits to be started"
        self.memory_bytes = 0
        self.began_at = clock.monotonic()
        self._settings = settings
        self._backend = backend
        self._proxy = proxy
        self._policies = policies
        self._policy = policies.of(self.instance_id)
        self._connect = connect
        self._clock = clock
        self._token = secrets.token_urlsafe(TOKEN_BYTES)
        self._proxy_url = settings.openclaw_proxy_url or proxy.base_url
        spare_count = 0 if tenant_id else SPARE_COUNT if isolation is Isolation.SHARED else 1
        self.seats = Seats(self.instance_id, proxy, self._proxy_url, self._policy, clock, spare_count)
        self._first = self.seats.first(tenant_id)
        self.admission = Admission(settings.openclaw_run_count, settings.openclaw_waiting_count)
        self.seats.is_busy = self._is_busy
        self._wear = Wear(settings.openclaw_run_count, settings.openclaw_memory_mib)
        self._created = clock.now()
        self._used: float | None = None
        self._heard_at = 0.0
        self._over: Trouble | None = None
        self._unbegun_count = 0
        self._measured_at = 0.0
        self._starting = asyncio.Lock()
        self._opened = asyncio.Event()
        self._process: Process | None = None
        self._gateway: Connection | None = None
        self._loops: list[asyncio.Task[None]] = []

    def _is_busy(self) -> bool:
        return self.admission.is_full or any(
            seat.pins and not (seat.ready.is_set() and seat.is_warm) for seat in self.seats.of_tenant.values()
        )

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it serves, or is about to."""
        return self.state is not State.ERROR

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return self.state is State.READY

    @property
    def worn(self) -> Finding:
        """Why another is to take its place once its runs are over; WELL if none is."""
        return self._wear.worn

    @property
    def is_worn(self) -> bool:
        """Whether another is to take its place."""
        return self.worn is not Finding.WELL

    @property
    def is_free_cell(self) -> bool:
        """Whether it is a cell that waits for its tenant."""
        return self.isolation is Isolation.CELL and self.is_open and not self.tenant_id

    @property
    def process(self) -> Process | None:
        """What the backend began."""
        return self._process

    @property
    def pins(self) -> int:
        """Runs in it, and runs that wait."""
        return sum(seat.pins for seat in self.seats.of_tenant.values())

    @property
    def waiting(self) -> int:
        """Runs that wait, for whatever reason."""
        return max(0, self.pins - self.admission.running)  # a run in an agent that was taken off has no pin

    @property
    def used_at(self) -> float:
        """When it was last of use, on the monotonic clock."""
        return max((seat.used_at for seat in self.seats.of_tenant.values()), default=self.began_at)

    def describe(self, *, version: str, tenant_id: str = "") -> pb.Instance:
        """Tell of it; of one tenant's part alone if one is named."""
        tenants = [tenant_id] if tenant_id else sorted(self.seats.of_tenant)
        state, detail = self.state, self.detail
        seat = self.seats.of_tenant.get(tenant_id)
        if tenant_id and self.is_ready and (seat is None or not seat.ready.is_set()):
            state, detail = State.PENDING, "the agent is made"
        elif self.is_ready and not tenant_id:
            detail = f"{detail}, {self.seats.warm_count} warm agents wait for tenants"
        return pb.Instance(
            instance_id=self.instance_id,
            runtime="openclaw",
            isolation=self.isolation.value,
            state=state.value,
            detail=detail,
            tenant_ids=tenants[:TENANTS_TOLD_MAX],
            tenant_count=len(tenants),
            memory_bytes=self.memory_bytes,
            running_count=self.admission.running,
            waiting_count=self.waiting,
            create_time=_time(self._created),
            use_time=_time(self._used) if self._used is not None else None,
            version=version,
            backend=self._backend.name,
        )

    # --- its life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin it and wait until it serves. Raises Trouble or RetinueError; then it has to be ended."""
        async with self._starting:
            await self._start()

    async def _start(self) -> None:
        if self._over is not None:
            raise self._over
        self.detail = "starting"
        spec = InstanceSpec(
            instance_id=self.instance_id,
            isolation=self.isolation,
            folder=str(Path(self._settings.openclaw_state_dir).absolute() / self.instance_id),
            config=self._config,
            heap_mib=self._settings.openclaw_heap_mib,
            memory_mib=int(self._settings.openclaw_memory_mib * AT_ONCE_FACTOR),
        )
        process = self._process = await self._backend.begin(spec)
        self._gateway = self._connect(process.address, self._token)
        starting = asyncio.create_task(self._gateway.start(START_TIMEOUT_S))
        try:
            while not starting.done():
                await asyncio.wait([starting], timeout=ALIVE_POLL_S)
                if self._over is not None:
                    raise self._over
                if not await self._backend.is_alive(process):
                    raise Trouble(
                        Reason.RUNTIME_UNAVAILABLE, f"A gateway did not start: {process.why_over}{process.last_words}"
                    )
            starting.result()
        finally:
            starting.cancel()
            with suppress(asyncio.CancelledError, Trouble, RetinueError):
                await starting
        self._heard_at = self._clock.monotonic()
        self.state, self.detail = State.READY, "serves"
        self._loops = [
            keep("openclaw-seats", self.seats.serve, self._gateway),
            keep("openclaw-warm-up", self.seats.warm_up, self._gateway),
        ]
        self.seats.opened()
        self._opened.set()

    def _config(self, _host: str, port: int) -> bytes:
        return openclaw_json(
            port=port, token=self._token, proxy_base_url=self._proxy_url, policy=self._policy, agents=self._first
        )

    def lose(self, trouble: Trouble, detail: str = "") -> None:
        """Serve no more: whoever waits is told so, and what goes on is lost. `end` has to follow.

        `detail` is for operators, if they may know more.
        """
        self.state, self.detail = State.ERROR, detail or str(trouble)
        self._over = trouble
        for loop in self._loops:
            loop.cancel()
        self.seats.close(trouble)
        self.admission.close(trouble)
        self._opened.set()

    async def end(self, grace_s: float) -> None:
        """End its process and all that belongs to it; what fails is logged."""
        self._proxy.forget(self.instance_id)
        self._policies.forget(self.instance_id)
        await asyncio.gather(*self._loops, return_exceptions=True)
        async with self._starting:  # which notices soon that it is over
            await self._end(grace_s)

    async def _end(self, grace_s: float) -> None:
        try:
            if self._gateway is not None:
                await self._gateway.close()
        except Exception:
            log.exception("a connection was not closed", instance_id=self.instance_id)
        try:
            if self._process is not None:
                await self._backend.end(self._process, grace_s)
        except Exception:
            log.exception("an instance was not ended", instance_id=self.instance_id)
        self.memory_bytes = 0

    # --- runs -------------------------------------------------------------------------------------------------------

    def claim(self, tenant_id: str) -> tuple[Seat, bool]:
        """Make the tenant one of its tenants; answers whether its agent has to be made."""
        if self.isolation is Isolation.CELL:
            if self.tenant_id not in ("", tenant_id):
                raise AssertionError("a cell was about to be given to a second tenant")
            self.tenant_id = tenant_id
            self.seats.spare_count = 0
        return self.seats.claim(tenant_id)

    async def enter(self, seat: Seat) -> Place:
        """Wait until a run may begin in a seat; `leave` follows. Raises LostError, or Trouble of a full queue."""
        if self.waiting >= self._settings.openclaw_waiting_count + self._settings.openclaw_run_count:
            raise full()
        self.seats.pin(seat)
        try:
            await self._opened.wait()
            if self._over is not None:
                raise LostError(self._over)
            await seat.ready.wait()
            if seat.trouble is not None:
                raise LostError(seat.trouble)
            assert self._gateway is not None
            await self.seats.warm(self._gateway, seat)
            await self.admission.enter(seat.tenant_id)
        except BaseException as error:
            self.seats.unpin(seat)
            if isinstance(error, Trouble) and error is self._over:
                raise LostError(error) from None
            raise
        if self._over is not None or seat.is_gone or self._gateway is None or self._gateway.is_lost:
            self.leave(seat)
            raise LostError(self._over or Trouble(Reason.RUNTIME_UNAVAILABLE, "The agent was taken off."))
        self._used = self._clock.now()
        return Place(self.instance_id, seat.agent_id, self._gateway, seat.sessions, self._report)

    def place_of(self, tenant_id: str) -> Place | None:
        """Where a tenant is served, without a slot; None where its agent is not there yet, or not any more."""
        seat, gateway = self.seats.of_tenant.get(tenant_id), self._gateway
        if seat is None or not seat.ready.is_set() or seat.trouble is not None or gateway is None or gateway.is_lost:
            return None
        return Place(self.instance_id, seat.agent_id, gateway, seat.sessions, self._report)

    def _report(self, begun: bool) -> None:
        self._unbegun_count = 0 if begun else self._unbegun_count + 1

    def leave(self, seat: Seat) -> None:
        """A run is over."""
        self.admission.leave()
        self.seats.unpin(seat)
        if not self.admission.is_full:
            self.seats.nudge()

    # --- watching ---------------------------------------------------------------------------------------------------

    async def look(self, probe: Probe) -> Finding:
        """See how it is, and admit accordingly."""
        process = self._process
        if process is None or not self.is_ready:
            return Finding.WELL
        if not await self._backend.is_alive(process):
            self.detail = process.why_over
            return Finding.DIED
        if self._gateway is not None and self._gateway.is_lost:
            self.detail = "its connection is lost for good"
            return Finding.SILENT
        if self._unbegun_count >= UNBEGUN_MAX:
            self.detail = f"it has not begun {self._unbegun_count} runs in a row"
            return Finding.SILENT
        health = await probe(process.address)
        now = self._clock.monotonic()
        if health.answers:
            self._heard_at = now
        elif now - self._heard_at > SILENCE_MAX_S:
            self.detail = f"it has not answered for {now - self._heard_at:.0f} s"
            return Finding.SILENT
        self.admission.resize(self._wear.feel(health, now))
        if now - self._measured_at >= MEASURE_S or not self.memory_bytes:
            self._measured_at = now
            self.memory_bytes = await self._backend.memory_bytes(process)
        if self._wear.weigh(self.memory_bytes):
            self.detail = f"it took {self.memory_bytes // MIB} MiB of memory"
            return Finding.MEMORY
        self.detail = f"to be replaced, {self._wear.why}" if self.is_worn else "serves"
        self.seats.nudge()
        return Finding.WELL


def _time(at: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(at * 1e9))
    return stamp
