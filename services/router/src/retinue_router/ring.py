"""The fair ring in Redis: which log is looked at next, over tenants by weight, and the bell that wakes workers.

Nothing here is the truth: a lost ring costs the time until the sweeper rings again.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import RedisError
from retinue_kit.errors import RetinueError

from retinue_router.domain.queues import QueueClass, class_of

TICKETS_MAX = 10_000
"""Tickets kept in the bell; each only says that somebody should look, so more of them say nothing more."""

ROUNDS_MAX = 10_000
"""Steps of one pop, so that a ring of many tenants at their limits cannot hold Redis up for long."""

SLOT_LEASE_S = 10.0
"""A slot of a tenant's limit that nobody keeps is free again after this."""

LIMIT_DEFAULT = 64
"""Runs at once of a tenant that no worker has heard the limit of yet."""

WEIGHT_MIN, WEIGHT_MAX = 0.1, 100.0
"""Weights count within these. With less, one pop might look at every tenant more often than ten times; with more, one
tenant's turn would take longer than the runs that others wait behind."""

TASK_PART = 4
"""A tenant may have one task at once for so many chats, on top of them: workers have slots in the same proportion."""

TELL_AGAIN_S = 60.0
"""Limits are told again after this, in case Redis went back to an older state of itself."""

TOLD_MAX = 10_000
"""Tenants whose limits are remembered, so that a Redis that was emptied hears them again; those told last are kept."""

TOLD_AT_ONCE = 500
RESTORED_MAX = 3
"""Times that a pop restores what an emptied Redis lost; more within one pop is a Redis that forgets all the time."""


class Ticket(NamedTuple):
    """A log that somebody should look at."""

    tenant_id: str
    log_id: str


class Popped(NamedTuple):
    """What was taken, whether more waits, and whether a slot was taken with it: else it is that of a run under way."""

    ticket: Ticket
    more: bool
    made: bool


class _Limits(NamedTuple):
    concurrent_runs: int
    weight: float


class Ring:
    """The ring of one class; every method raises RetinueError(DEPENDENCY_UNAVAILABLE) if Redis does not answer."""

    def __init__(self, client: "redis.asyncio.Redis", queue: QueueClass = QueueClass.CHAT) -> None:
        self._redis = client
        self._prefix = f"{{r:{queue}}}"  # the braces keep its keys on one node of a cluster
        self._part = 1 if queue is QueueClass.CHAT else TASK_PART
        self._told: OrderedDict[str, tuple[_Limits, float]] = OrderedDict()
        self._taken: set[Ticket] = set()
        self._life = ""
        self._keeping = asyncio.Lock()
        source = resources.files(__package__ or "retinue_router").joinpath("ring.lua").read_text("utf-8")
        self._script = client.register_script(source)

    async def push(self, tenant_id: str, log_id: str) -> None:
        """Put a log into its tenant's queue, once, and ring."""
        await self._run("push", tenant_id, log_id, TICKETS_MAX, time.time(), self._limit(LIMIT_DEFAULT), SLOT_LEASE_S)

    async def push_all(self, tickets: Sequence[Ticket]) -> None:
        """Put logs into their tenants' queues, each once, and ring for those that were not in one."""
        await self._run("sweep", TICKETS_MAX, *(part for ticket in tickets for part in ticket))

    async def pop(self, lease_s: float = SLOT_LEASE_S) -> Popped | None:
        """Take the fairest waiting log and a slot of its tenant; None if nothing may be taken now.

        A ring that was emptied since is told limits and slots first, so that nobody is given more than his share of it.
        """
        for _ in range(RESTORED_MAX):
            answer = await self._run(
                "pop", time.time(), self._limit(LIMIT_DEFAULT), lease_s, ROUNDS_MAX, self._life, secrets.token_hex(8),
                TICKETS_MAX,
            )  # fmt: skip
            if not answer:
                return None
            if len(answer) == 1:
                await self._restore(answer[0].decode())
                continue
            ticket = Ticket(answer[0].decode(), answer[1].decode())
            if answer[3]:
                self._taken.add(ticket)
            return Popped(ticket, bool(answer[2]), bool(answer[3]))
        return None

    async def done(self, ticket: Ticket) -> None:
        """Give the slot back, behind what is being said of slots that are kept: it may name this one still."""
        self._taken.discard(ticket)
        async with self._keeping:
            pass
        await self._run("done", ticket.tenant_id, ticket.log_id, TICKETS_MAX)

    async def held(self, tickets: Sequence[Ticket], lease_s: float) -> None:
        """Keep the slots of runs that go on."""
        arguments = [part for ticket in tickets for part in ticket]
        async with self._keeping:
            await self._run("held", time.time(), lease_s, *arguments)

    async def tell_limits(self, tenant_id: str, concurrent_runs: int, weight: float) -> None:
        """Say how many runs of a tenant may go on at once, and its share; again each minute.

        Without Redis there is no ring whose limits could matter, so trouble is passed over.
        """
        limits, now = _Limits(concurrent_runs, min(max(weight, WEIGHT_MIN), WEIGHT_MAX)), time.monotonic()
        told = self._told.get(tenant_id)
        if told is not None and told[0] == limits and now < told[1]:
            return
        self._told[tenant_id] = (limits, now + TELL_AGAIN_S)
        self._told.move_to_end(tenant_id)
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
        try:
            await self._run("limits", *self._told_as(tenant_id))
        except RetinueError:
            self._told[tenant_id] = (limits, now)

    async def waiting(self) -> bool:
        """Whether any log waits in the ring."""
        try:
            return bool(await self._redis.exists(f"{self._prefix}:ring", f"{self._prefix}:bell"))
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error

    async def wait_for_bell(self, blocking: "redis.asyncio.Redis", timeout_s: int) -> Ticket | None:
        """Block until somebody rings, at most this long; `blocking` is a client made for it.

        Answers the log that was handed over with the ticket, None where the ring is to be asked.
        """
        try:
            answer: Any = await blocking.brpop([f"{self._prefix}:bell"], timeout=timeout_s)
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        tenant_id, handed, log_id = answer[1].decode().partition("|") if answer else ("", "", "")
        if not handed:
            return None
        ticket = Ticket(tenant_id, log_id)
        self._taken.add(ticket)
        return ticket

    async def _restore(self, life: str) -> None:
        tenants = list(self._told)
        for start in range(0, len(tenants), TOLD_AT_ONCE):
            part = tenants[start : start + TOLD_AT_ONCE]
            await self._run("limits", *(word for tenant_id in part for word in self._told_as(tenant_id)))
        if self._taken:
            await self.held(list(self._taken), SLOT_LEASE_S)
        self._life = life

    def _told_as(self, tenant_id: str) -> tuple[str, int, float]:
        limits, _ = self._told[tenant_id]
        return tenant_id, self._limit(limits.concurrent_runs), limits.weight

    def _limit(self, concurrent_runs: int) -> int:
        return max(1, concurrent_runs // self._part)

    async def _run(self, operation: str, *arguments: str | float) -> list[bytes]:
        try:
            answer: list[bytes] = await self._script(keys=[self._prefix], args=[operation, *arguments])
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        return answer


class Rings:
    """The rings of all classes, as those use them who have a log at hand; raises what Ring raises."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self._rings = {queue: Ring(client, queue) for queue in QueueClass}

    def of(self, queue: QueueClass) -> Ring:
        """Name the ring of a class."""
        return self._rings[queue]

    async def push(self, tenant_id: str, log_id: str) -> None:
        """Put a log into its tenant's queue of its class, once, and ring."""
        await self._rings[class_of(log_id)].push(tenant_id, log_id)

    async def push_all(self, tickets: Sequence[Ticket]) -> None:
        """Put logs into their tenants' queues of their classes, each once, and ring."""
        for ring, mine in self._by_class(tickets):
            await ring.push_all(mine)

    async def held(self, tickets: Collection[Ticket], lease_s: float) -> None:
        """Keep the slots of runs that go on; those of a class are looked up when its turn comes."""
        for ring, mine in self._by_class(tickets):
            await ring.held(mine, lease_s)

    async def tell_limits(self, ticket: Ticket, concurrent_runs: int, weight: float) -> None:
        """Say to the ring of a log how many runs of its tenant may go on at once, and its share."""
        await self._rings[class_of(ticket.log_id)].tell_limits(ticket.tenant_id, concurrent_runs, weight)

    def _by_class(self, tickets: Collection[Ticket]) -> Iterator[tuple[Ring, list[Ticket]]]:
        for queue, ring in self._rings.items():
            mine = [ticket for ticket in tickets if class_of(ticket.log_id) is queue]
            if mine:
                yield ring, mine
