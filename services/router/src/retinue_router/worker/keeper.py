"""Keeps the leases that this process holds, and hears of wishes that runs stop."""

import asyncio
from dataclasses import dataclass, field

import redis.asyncio
import structlog
from redis.exceptions import RedisError
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError
from retinue_kit.metrics import counter

from retinue_router.crash_points import Point
from retinue_router.ring import Rings, Ticket
from retinue_router.worker.leases import LeaseStore, Renewed

MARGIN_S = 0.2
"""A lease is taken for over this much before its end, so that a slow clock starts nothing that it may not."""

RECONNECT_S = 0.5
leases_lost = counter("leases_lost", "Leases that this worker believed in and that had gone to another.")
log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Lease:
    """A lease in use: the task that executes under it can be interrupted from outside."""

    ticket: Ticket
    token: int
    valid_until: float
    task: "asyncio.Task[object]"
    wish: str | None = None
    lost: bool = False
    released: bool = False
    """Whether it is to be given back at once, since the process ends."""
    interruptible: bool = field(default=False)
    interrupted: bool = False

    def interrupt(self) -> None:
        """Stop what is going on under the lease, once, if it can be stopped just now."""
        if self.interruptible and not self.interrupted:
            self.interrupted = True
            self.task.cancel()


class Keeper:
    """Renews all leases of this process together, and at once where somebody pokes."""

    def __init__(self, store: LeaseStore, rings: Rings, clock: Clock, lease_s: float) -> None:
        self._store = store
        self._rings = rings
        self._clock = clock
        self._lease_s = lease_s
        self._leases: dict[Ticket, Lease] = {}
        self._releasing = False

    def add(self, ticket: Ticket, token: int, asked_at: float) -> Lease:
        """Take charge of a lease whose grant was asked for at this (monotonic) time by the current task.

        Of two of one log the higher token counts: the other went to it, also where this process holds both.
        """
        task = asyncio.current_task()
        assert task is not None
        lease = Lease(ticket, token, asked_at + self._lease_s - MARGIN_S, task, released=self._releasing)
        other = self._leases.get(ticket)
        if other is not None and other.token > token:
            self.lose(lease)
            return lease
        self._leases[ticket] = lease
        if other is not None:
            self.lose(other)
            other.interrupt()
        return lease

    def remove(self, lease: Lease) -> None:
        """Let go of a lease that was given back or lost."""
        if self._leases.get(lease.ticket) is lease:
            del self._leases[lease.ticket]

    def lose(self, lease: Lease) -> None:
        """Take note that a lease has gone to another, whether a renewal found it or a write that was refused."""
        if not lease.lost:
            lease.lost = True
            leases_lost.inc()
            log.warning("lease lost", tenant_id=lease.ticket.tenant_id, log_id=lease.ticket.log_id)

    def release_all(self) -> None:
        """Interrupt what goes on under every lease, now and from now on, so that others go on with it at once."""
        self._releasing = True
        for lease in list(self._leases.values()):
            lease.released = True
            lease.interrupt()

    @property
    def count(self) -> int:
        """Leases in use."""
        return len(self._leases)

    def is_valid(self, lease: Lease) -> bool:
        """Whether the lease surely still holds, so that something new may begin under it."""
        return not lease.lost and self._clock.monotonic() < lease.valid_until

    async def confirm(self, lease: Lease) -> bool:
        """Ask Postgres whether a lease still holds, and prolong it. One that was given back does not."""
        holding = await self._renew([lease])
        return lease in holding and not lease.lost

    async def renew_for_ever(self, every_s: float) -> None:
        """Renew all leases again and again; trouble with Postgres is waited out."""
        while True:
            await asyncio.sleep(every_s)
            leases = list(self._leases.values())
            if not leases:
                continue
            try:
                await self._renew(leases)
            except RetinueError as error:
                log.warning("leases not renewed", count=len(leases), detail=error.private)

    async def keep_slots_for_ever(self, every_s: float) -> None:
        """Keep the slots of the leases in the ring; apart from renewals, which must not wait for a Redis that hangs."""
        while True:
            await asyncio.sleep(every_s)
            if not self._leases:
                continue
            try:
                await self._rings.held(self._leases.keys(), self._lease_s * 2)
            except RetinueError as error:
                log.info("slots not kept", detail=error.private)

    async def _renew(self, leases: list[Lease]) -> list[Lease]:
        """Prolong leases; answers those that hold."""
        asked_at = self._clock.monotonic()
        reach(Point.RENEWING)
        found = {(r.ticket, r.token): r for r in await self._store.renew([(le.ticket, le.token) for le in leases])}
        reach(Point.RENEWED)
        holding = []
        for lease in leases:
            renewed: Renewed | None = found.get((lease.ticket, lease.token))
            if renewed is not None:
                holding.append(lease)
                lease.valid_until = asked_at + self._lease_s - MARGIN_S
                if renewed.wish and not lease.wish:
                    lease.wish = renewed.wish
                    lease.interrupt()
            elif self._leases.get(lease.ticket) is lease and not lease.lost:
                # Given back in the meantime, or taken by another: only the former may happen quietly.
                self.lose(lease)
                lease.interrupt()
        return holding

    async def hear_pokes_for_ever(self, blocking: "redis.asyncio.Redis", boot: str) -> None:
        """Look at once at a lease that somebody pokes; without Redis the next renewal finds the wish."""
        while True:
            try:
                async with blocking.pubsub() as pubsub:
                    await pubsub.subscribe(f"w:{boot}")
                    async for message in pubsub.listen():
                        if message["type"] == "message":
                            await self._hear(message["data"].decode())
            except (RedisError, OSError) as error:
                log.info("poke channel lost", detail=str(error)[:200])
                await asyncio.sleep(RECONNECT_S)

    async def _hear(self, text: str) -> None:
        tenant_id, _, log_id = text.partition(" ")
        lease = self._leases.get(Ticket(tenant_id, log_id))
        if lease is None:
            return
        try:
            await self._renew([lease])
        except RetinueError as error:
            log.info("poke not followed", detail=error.private)
