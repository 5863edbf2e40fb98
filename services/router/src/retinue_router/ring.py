"""The fair ring in Redis: which log is looked at next, over tenants by weight, and the bell that wakes workers.

Nothing here is the truth: a lost ring costs the time until the sweeper rings again.
"""

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import RedisError
from retinue_kit.errors import RetinueError

CLASS_CHAT = "{r:chat}"
"""Prefix of the ring of messages and tasks; the braces keep its keys on one node of a cluster."""

TICKETS_MAX = 10_000
"""Tickets kept in the bell; each only says that somebody should look, so losing old ones loses nothing."""

ROUNDS_MAX = 10_000
"""Steps of one pop, so that a ring of many tenants at their limits cannot hold Redis up for long."""

SLOT_LEASE_S = 10.0
"""A slot of a tenant's limit that nobody keeps is free again after this."""

LIMIT_DEFAULT = 64
"""Runs at once of a tenant that no worker has heard the limit of yet."""

TELL_AGAIN_S = 60.0
TOLD_MAX = 10_000
"""Tenants whose limits are remembered as told; then all are told again."""


class Ticket(NamedTuple):
    """A log that somebody should look at."""

    tenant_id: str
    log_id: str


class Popped(NamedTuple):
    """What was taken, and whether more waits."""

    ticket: Ticket
    more: bool


class Ring:
    """The ring; every method raises RetinueError(DEPENDENCY_UNAVAILABLE) if Redis does not answer."""

    def __init__(self, client: "redis.asyncio.Redis", prefix: str = CLASS_CHAT) -> None:
        self._redis = client
        self._prefix = prefix
        self._told: dict[str, tuple[tuple[int, float], float]] = {}
        source = resources.files(__package__ or "retinue_router").joinpath("ring.lua").read_text("utf-8")
        self._script = client.register_script(source)

    async def push(self, tenant_id: str, log_id: str) -> None:
        """Put a log into its tenant's queue, once, and ring."""
        await self._run("push", tenant_id, log_id, TICKETS_MAX, time.time(), LIMIT_DEFAULT, SLOT_LEASE_S)

    async def pop(self, lease_s: float = SLOT_LEASE_S) -> Popped | None:
        """Take the fairest waiting log and a slot of its tenant; None if nothing may be taken now."""
        answer = await self._run("pop", time.time(), LIMIT_DEFAULT, lease_s, ROUNDS_MAX)
        if not answer:
            return None
        return Popped(Ticket(answer[0].decode(), answer[1].decode()), bool(answer[2]))

    async def done(self, ticket: Ticket) -> None:
        """Give the slot back."""
        await self._run("done", ticket.tenant_id, ticket.log_id, TICKETS_MAX)

    async def held(self, tickets: Sequence[Ticket], lease_s: float) -> None:
        """Keep the slots of runs that go on."""
        arguments = [part for ticket in tickets for part in ticket]
        await self._run("held", time.time(), lease_s, *arguments)

    async def tell_limits(self, tenant_id: str, concurrent_runs: int, weight: float) -> None:
        """Say how many runs of a tenant may go on at once, and its share; again each minute, in case Redis forgot.

        Without Redis there is no ring whose limits could matter, so trouble is passed over.
        """
        limits, now = (concurrent_runs, weight), time.monotonic()
        told = self._told.get(tenant_id)
        if told is not None and told[0] == limits and now < told[1]:
            return
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told[tenant_id] = (limits, now + TELL_AGAIN_S)
        try:
            await self._run("limits", tenant_id, concurrent_runs, weight)
        except RetinueError:
            del self._told[tenant_id]

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
        return Ticket(tenant_id, log_id) if handed else None

    async def _run(self, operation: str, *arguments: str | float) -> list[bytes]:
        try:
            answer: list[bytes] = await self._script(keys=[self._prefix], args=[operation, *arguments])
        except (RedisError, OSError) as error:
            raise RetinueError.unavailable("redis", private=str(error)) from error
        return answer
