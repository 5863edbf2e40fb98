"""The outbox in Postgres, of all tenants: look, claim, record, clear away."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from retinue_router.domain.outbox import Waiting
from retinue_router.store.guard import guarding

LOOK_WEBHOOKS_MAX = 2000
"""Webhooks with something pending that one look goes through: some ten milliseconds. The next goes on behind them."""

CLOSE_ROWS_MAX = 1000
PURGE_ROWS_MAX = 1000
"""Rows that one statement ends or removes: each takes milliseconds, and others get in between."""

WAITING_MAX = 10_000
"""How far pending deliveries are counted; more is told as this."""

_LOOK = "select webhook_id, tenant_id, host, state, is_due from look_for_due_1($1, $2)"
_CLAIM = "select * from claim_deliveries_1($1, $2)"
_END = "select end_attempt_1($1, $2, $3, $4, $5, $6, $7, $8, $9)"
# Materialized: as a part of the join they could be asked anew, and would find more each time.
_DOOMED = (
    "with doomed as materialized (select d.tenant_id, d.delivery_id from deliveries d"  # noqa: S608
    f" where d.webhook_id = any ($1) and d.state = 'pending' limit {CLOSE_ROWS_MAX} for update skip locked)"
)
_OLD = (
    "with doomed as materialized (select d.tenant_id, d.delivery_id from deliveries d"  # noqa: S608
    f" where d.end_time < clock_timestamp() - $1::interval order by d.end_time limit {PURGE_ROWS_MAX}"
    " for update skip locked)"
)
_OF_THEM = "d where x.tenant_id = d.tenant_id and x.delivery_id = d.delivery_id"
_CLOSE = (
    f"{_DOOMED} update deliveries x set state = 'dead', end_time = clock_timestamp(),"  # noqa: S608
    f" last_result = 'the webhook is ' || $2 from doomed {_OF_THEM}"
)
_REMOVE = f"{_DOOMED} delete from deliveries x using doomed {_OF_THEM}"  # noqa: S608
_PURGE = f"{_OLD} delete from deliveries x using doomed {_OF_THEM}"  # noqa: S608
_WAITING = f"select count(*) from (select from deliveries d where d.state = 'pending' limit {WAITING_MAX}) q"  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One attempt of one delivery, taken for a while."""

    tenant_id: str
    delivery_id: str
    webhook_id: str
    contact: str
    token: int
    n: int
    event_type: str
    session_id: str
    run_id: str
    data: str | None
    """JSON; None where it is too large to be sent."""
    event_time: datetime
    attempt: int
    kind: str
    url: str
    secret: bytes | None
    """Sealed."""


class Outbox:
    """What is on its way."""

    def __init__(self, pool: "asyncpg.Pool", lease_s: float, keep_s: float) -> None:
        self._pool = pool
        self._lease = timedelta(seconds=lease_s)
        self._keep = timedelta(seconds=keep_s)

    async def look(self, after: str) -> list[Waiting]:
        """List webhooks that have something pending, by their ids after one."""
        with guarding():
            return [Waiting(*row) for row in await self._pool.fetch(_LOOK, after, LOOK_WEBHOOKS_MAX)]

    async def claim(self, webhooks: Sequence[str]) -> list[Delivery]:
        """Take one delivery of each webhook that has one due and is active."""
        with guarding():
            rows = await self._pool.fetch(_CLAIM, webhooks, self._lease)
        return [Delivery(**row) for row in rows]

    async def end(
        self, delivery: Delivery, state: str, result: str, delay_s: float, rest_s: float, *, gone: bool
    ) -> bool:
        """Record what became of an attempt; False if that is another's to say by now."""
        delay, rest = timedelta(seconds=delay_s), timedelta(seconds=rest_s) if rest_s else None
        with guarding():
            ended: bool = await self._pool.fetchval(
                _END, delivery.tenant_id, delivery.delivery_id, delivery.webhook_id, delivery.attempt, state, result,
                delay, rest, gone,
            )  # fmt: skip
        return ended

    async def close(self, webhooks: Sequence[str], state: str) -> None:
        """End what waits for webhooks that are off or gone; what waits for removed ones is removed, too."""
        with guarding():
            if state == "removed":
                await self._pool.execute(_REMOVE, webhooks)
            else:
                await self._pool.execute(_CLOSE, webhooks, state)

    async def purge(self) -> bool:
        """Remove some of what ended long ago; True if there may be more."""
        with guarding():
            return str(await self._pool.execute(_PURGE, self._keep)) == f"DELETE {PURGE_ROWS_MAX}"

    async def count_waiting(self) -> int:
        """Count what is pending."""
        with guarding():
            return int(await self._pool.fetchval(_WAITING))
