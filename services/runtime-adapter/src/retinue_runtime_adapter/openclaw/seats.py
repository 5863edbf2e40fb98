"""The agents of one gateway: one a tenant, and a few that were made and warmed up before their tenant comes.

An agent is never a second tenant's. All changes of a gateway's configuration are made here, one after the other.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.ids import new_id

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import keys, metrics
from retinue_runtime_adapter.openclaw.gateway_config import Agent, Policy, agents_patch, removal_patch, renewal_patch
from retinue_runtime_adapter.openclaw.ports import Gateway, ModelProxy, RunCall
from retinue_runtime_adapter.openclaw.preparing import Preparing

BATCH_MAX = 16
"""Agents added by one change of the configuration: each change costs about the same, however many it adds."""

PATCH_TRIES_MAX = 3
"""Tries of a change: someone else may have changed the configuration in between, though nobody should."""

PATCH_TIMEOUT_S = 60.0
"""For one request that changes the configuration; 0.5 s on an idle gateway, some seconds on a busy one."""

WARM_TIMEOUT_S = 30.0
"""For an agent's first turn; 2 to 5 s. Others wait for theirs meanwhile."""

STOP_TIMEOUT_S = 5.0
"""To stop one that took too long, so that it does not go on beside the next one."""

CREDENTIAL_AGE_MAX_S = 3600.0
"""A credential for the model endpoint is replaced once it is so old, and with it all that are half as old: one change
of the configuration costs about the same, however many it changes."""

RENEW_AGAIN_S = 60.0
"""Pause after a gateway did not take new credentials; the old ones are good until it has."""

WARM_TEXT = "Hello."

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Seat:
    """An agent, and the tenant whose it is; "" while it waits for one."""

    agent_id: str
    holder: str
    """For whom its credential was made: the tenant, or a name of its own until there is one."""
    tenant_id: str = ""
    sessions: dict[str, Any] = field(default_factory=dict)
    pins: int = 0
    """Runs in it, and runs that wait."""
    used_at: float = 0.0
    renewed_at: float = 0.0
    """When its credential was made."""
    is_warm: bool = False
    is_leaving: bool = False
    is_gone: bool = False
    trouble: Trouble | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it can take a run, or never will: then `trouble` says why."""
    warming: bool = False
    is_made: bool = False
    """Whether its gateway knows it."""


class Seats:
    """Agents of one gateway. What must be asked of it is done in `serve` and `warm_up`, loops that its owner runs."""

    def __init__(
        self, instance_id: str, proxy: ModelProxy, proxy_url: str, policy: Policy, clock: Clock, spare_count: int
    ) -> None:
        """`spare_count` agents are kept for tenants to come; `proxy_url` is the model endpoint as gateways see it."""
        self._instance_id = instance_id
        self._proxy = proxy
        self._proxy_url = proxy_url
        self._policy = policy
        self._clock = clock
        self.spare_count = spare_count
        self.of_tenant: dict[str, Seat] = {}
        self._spare: list[Seat] = []
        self._wanted: deque[Seat] = deque()
        self._unwanted: deque[Seat] = deque()
        self._kick = asyncio.Event()
        self._kick_warm = asyncio.Event()
        self._first_turns = asyncio.Lock()
        self._hash = ""
        self._renew_at = 0.0
        self._preparing = Preparing(clock)
        self._is_making = False
        self._closed: Trouble | None = None
        self.is_busy: Callable[[], bool] = lambda: False
        """Whether tenants wait for this gateway."""

    # --- who sits where ---------------------------------------------------------------------------------------------

    def first(self, tenant_id: str) -> list[Agent]:
        """Make the seats that a gateway has from its beginning: the tenant's if it is for one, else spare ones."""
        seats = [self._seat(tenant_id)] if tenant_id else [self._seat("") for _ in range(self.spare_count)]
        for seat in seats:
            if tenant_id:
                self.of_tenant[tenant_id] = seat
            else:
                self._spare.append(seat)
        return [self._agent(seat) for seat in seats]

    def opened(self) -> None:
        """The gateway serves: those that it has from its beginning are ready."""
        for seat in [*self.of_tenant.values(), *self._spare]:
            if seat not in self._wanted:
                seat.is_made = True
                seat.ready.set()
        self.nudge()

    @property
    def warm_count(self) -> int:
        """Agents that have had their first turn and wait for a tenant."""
        return sum(seat.is_warm and not seat.warming for seat in self._spare)

    def claim(self, tenant_id: str) -> tuple[Seat, bool]:
        """Find a tenant's seat, or give it one; answers also whether one has to be made. Await `ready` before use."""
        seat = self.of_tenant.get(tenant_id)
        if seat is not None:
            seat.is_leaving = False
            return seat, False
        made = not self._spare
        if made:
            seat = self._seat(tenant_id)
            self._wanted.append(seat)
            if self._closed is not None:
                self._fail(seat, self._closed)
        else:
            self._spare.sort(key=lambda spare: (not spare.is_warm, not spare.warming))
            seat = self._spare.pop(0)
            seat.tenant_id = tenant_id
            if not seat.warming:  # else its credential is handed over when that is done
                self._hand_over(seat)
        seat.used_at = self._preparing.stir()
        self.of_tenant[tenant_id] = seat
        self.nudge()
        return seat, made

    def release(self, tenant_id: str, *, at_once: bool) -> bool:
        """Take a tenant's agent off, at once or when its runs are over. False if there is none."""
        seat = self.of_tenant.get(tenant_id)
        if seat is None:
            return False
        if seat.pins and not at_once:
            seat.is_leaving = True
        else:
            self._take_off(seat)
        return True

    def pin(self, seat: Seat) -> None:
        """A run is to go there."""
        seat.pins += 1

    def unpin(self, seat: Seat) -> None:
        """A run in it is over, or waits no more."""
        seat.pins -= 1
        seat.used_at = self._preparing.stir()
        if seat.is_leaving and not seat.pins and not seat.is_gone:
            self._take_off(seat)

    def idle(self, since: float) -> list[str]:
        """Tenants whose agents had no run since then, the longest idle one first."""
        found = [seat for seat in self.of_tenant.values() if not seat.pins and seat.used_at < since]
        return [seat.tenant_id for seat in sorted(found, key=lambda seat: seat.used_at)]

    def close(self, trouble: Trouble) -> None:
        """The gateway is lost: whoever waits is told so."""
        self._closed = trouble
        for seat in [*self.of_tenant.values(), *self._spare]:
            seat.is_gone = True
            if seat.trouble is None:
                self._fail(seat, trouble)
        self._wanted.clear()
        self._unwanted.clear()

    def _seat(self, tenant_id: str) -> Seat:
        seat = Seat(keys.agent_id(new_id("ten")), tenant_id or new_id("spare"), tenant_id)
        seat.used_at = seat.renewed_at = self._clock.monotonic()
        return seat

    def _agent(self, seat: Seat) -> Agent:
        return Agent(seat.agent_id, self._proxy_url, self._proxy.credential(self._instance_id, seat.holder))

    def _hand_over(self, seat: Seat) -> None:
        if seat.holder != seat.tenant_id:
            self._proxy.assign(self._instance_id, seat.holder, seat.tenant_id)
            seat.holder = seat.tenant_id

    def _take_off(self, seat: Seat) -> None:
        self.of_tenant.pop(seat.tenant_id, None)
        seat.is_gone = True
        self._proxy.forget(self._instance_id, seat.holder)
        if seat in self._wanted:
            self._wanted.remove(seat)
        elif seat.trouble is None:
            self._unwanted.append(seat)
        if not seat.ready.is_set():
            self._fail(seat, Trouble(Reason.RUNTIME_UNAVAILABLE, "The tenant's agent is taken off.", retry_after_s=1.0))
        self._kick.set()

    def _fail(self, seat: Seat, trouble: Trouble) -> None:
        seat.trouble = trouble
        seat.ready.set()

    # --- what is asked of the gateway -------------------------------------------------------------------------------

    async def serve(self, gateway: Gateway) -> None:
        """Make seats that are wanted, take off those that are not, renew old ones, keep some in advance. For ever."""
        while True:
            await self._kick.wait()
            self._kick.clear()
            while self._wanted or self._unwanted:
                if self._wanted:
                    await self._make(
                        gateway, [self._wanted.popleft() for _ in range(min(BATCH_MAX, len(self._wanted)))]
                    )
                else:
                    await self._remove(gateway, self._unwanted.popleft())
            await self._renew(gateway)
            missing = self.spare_count - len(self._spare)
            if missing > 0 and self._may_prepare():
                seats = [self._seat("") for _ in range(min(missing, BATCH_MAX))]
                if await self._make(gateway, seats):
                    self._spare += seats
                    self._kick_warm.set()

    async def warm_up(self, gateway: Gateway) -> None:
        """Let agents have their first turn before anybody speaks to them, one after the other. For ever."""
        while True:
            await self._kick_warm.wait()
            self._kick_warm.clear()
            while (cold := self._next_cold()) is not None:
                await self.warm(gateway, cold)
                if cold in self._spare:
                    self._preparing.prepared()

    async def warm(self, gateway: Gateway, seat: Seat) -> None:
        """Let an agent have its first turn, if it had none. First turns side by side take a gateway many times as long
        as one after the other (measured: ten in half a minute, or none in a whole one).
        """
        if seat.is_warm:
            return
        async with self._first_turns:
            if not seat.is_warm and not seat.is_gone:
                await self._warm(gateway, seat)

    def nudge(self) -> None:
        """Look again whether there is something to be done in advance."""
        self._kick.set()
        self._kick_warm.set()

    def _next_cold(self) -> Seat | None:
        """Whose first turn is next, if it is time: those of tenants who have come, then of those to come."""
        theirs = [] if self.is_busy() else [seat for seat in self.of_tenant.values() if self._is_cold(seat)]
        spare = [seat for seat in self._spare if self._is_cold(seat)]
        cold = theirs or (spare if self._may_prepare() else [])
        return cold[0] if cold else None

    def _may_prepare(self) -> bool:
        """Whether something for tenants to come may be made now: one thing at a time, when it is time for it."""
        is_time = self._preparing.is_time(
            missing=self.spare_count - self.warm_count,
            warm_count=self.warm_count,
            is_used=any(seat.pins for seat in self.of_tenant.values()),
            is_busy=self.is_busy(),
        )
        return is_time and not self._is_making and not self._first_turns.locked()

    @staticmethod
    def _is_cold(seat: Seat) -> bool:
        return not seat.is_warm and not seat.pins and seat.ready.is_set() and seat.trouble is None

    async def _make(self, gateway: Gateway, seats: list[Seat]) -> bool:
        agents = [self._agent(seat) for seat in seats]
        self._is_making = True
        try:
            await self._patch(gateway, agents_patch(agents, self._policy))
        except BaseException as error:
            log.warning("agents were not made", instance_id=self._instance_id, count=len(seats), detail=str(error))
            trouble = Trouble(
                Reason.RUNTIME_UNAVAILABLE, "The runtime could not make the tenant's agent.", retry_after_s=1.0
            )
            for seat in seats:
                self._proxy.forget(self._instance_id, seat.holder)
                if self.of_tenant.get(seat.tenant_id) is seat:
                    del self.of_tenant[seat.tenant_id]
                seat.is_gone = True
                self._fail(seat, trouble)
            if not isinstance(error, Trouble | RetinueError):
                raise
            return False
        finally:
            self._is_making = False
        for seat in seats:
            if seat.is_gone and seat not in self._unwanted:  # taken off meanwhile
                self._unwanted.append(seat)
            seat.is_made = True
            seat.ready.set()
        return True

    async def _renew(self, gateway: Gateway) -> None:
        """Replace credentials that are old. Runs go on: what they hold is good until they end."""
        now = self._clock.monotonic()
        made = [seat for seat in [*self.of_tenant.values(), *self._spare] if seat.is_made]
        oldest = min((seat.renewed_at for seat in made), default=now)
        if now < max(oldest + CREDENTIAL_AGE_MAX_S, self._renew_at):
            return
        old = [seat for seat in made if now - seat.renewed_at >= CREDENTIAL_AGE_MAX_S / 2]
        agents = [
            Agent(seat.agent_id, self._proxy_url, self._proxy.renew(self._instance_id, seat.holder)) for seat in old
        ]
        try:
            await self._patch(gateway, renewal_patch(agents))
        except (Trouble, RetinueError) as error:
            self._renew_at = now + RENEW_AGAIN_S
            log.warning("credentials were not renewed", instance_id=self._instance_id, detail=str(error))
            return
        for seat in old:
            if not seat.is_gone:
                self._proxy.renewed(self._instance_id, seat.holder)
                seat.renewed_at = now
                metrics.credentials_renewed.inc()

    async def _warm(self, gateway: Gateway, seat: Seat) -> None:
        """Let an agent have its first turn, which takes seconds. Its tenant, should it come meanwhile, waits for it."""
        holder = seat.holder
        seat.warming = seat.is_warm = True  # once is enough, even if it goes wrong
        if not seat.tenant_id:
            seat.ready.clear()
        call = RunCall(
            run_id=new_id("warm"),
            agent_id=seat.agent_id,
            session_key=keys.warm_key(seat.agent_id),
            text=WARM_TEXT,
            system="",
            time_s=WARM_TIMEOUT_S,
        )
        try:
            with self._proxy.warm(self._instance_id, holder):
                async with asyncio.timeout(WARM_TIMEOUT_S):
                    async for _frame in gateway.run(call):
                        pass
        except (Trouble, RetinueError, TimeoutError) as error:
            log.warning("an agent was not warmed up", instance_id=self._instance_id, detail=str(error))
            with suppress(Trouble, RetinueError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await gateway.abort(call.session_key, call.run_id)
        finally:
            seat.warming = False
            if seat.tenant_id and not seat.is_gone:
                self._hand_over(seat)
            seat.ready.set()

    async def _remove(self, gateway: Gateway, seat: Seat) -> None:
        """Delete an agent with all its files. What fails here is left to the end of the instance."""
        try:
            await gateway.request(
                "agents.delete", {"agentId": seat.agent_id, "deleteFiles": True}, timeout_s=PATCH_TIMEOUT_S
            )
            self._hash = ""
            await self._patch(gateway, *removal_patch(seat.agent_id))
        except (Trouble, RetinueError) as error:
            log.warning("an agent was not taken off", instance_id=self._instance_id, detail=str(error))

    async def _patch(self, gateway: Gateway, patch: dict[str, Any], replaced: Sequence[str] = ()) -> None:
        """Change the configuration. Raises Trouble."""
        params: dict[str, Any] = {"raw": json.dumps(patch)}
        if replaced:
            params["replacePaths"] = list(replaced)
        for tries_left in reversed(range(PATCH_TRIES_MAX)):
            try:
                if not self._hash:
                    found = await gateway.request("config.get", {}, timeout_s=PATCH_TIMEOUT_S)
                    self._hash = str(found.get("hash") or "")
                params["baseHash"], self._hash = self._hash, ""
                answer = await gateway.request("config.patch", params, timeout_s=PATCH_TIMEOUT_S)
                self._hash = str(answer.get("hash") or "")
                return
            except (Trouble, RetinueError):
                if not tries_left:
                    raise
