"""Webhooks and what was sent to them, as their tenant sees it."""

import asyncpg
from retinue_kit import postgres

from retinue_router.domain.webhooks import Asked
from retinue_router.store.guard import Row, guarding

GET = (
    "select w.webhook_id, w.url, w.kind, w.event_types, w.state, w.create_time from webhooks w"
    " where w.tenant_id = $1 and w.webhook_id = $2"
)
LIST = (
    "select w.webhook_id, w.url, w.kind, w.event_types, w.state, w.create_time from webhooks w"
    " where w.tenant_id = $1 and ($2 = '' or w.webhook_id < $2) order by w.webhook_id desc limit $3"
)
_DELIVERY = (
    "d.delivery_id, d.webhook_id, d.event_type, d.run_id, d.state, d.attempt, d.last_result, d.event_time,"
    " d.due_time, d.end_time"
)
DELIVERIES = (
    f"select {_DELIVERY} from deliveries d"  # noqa: S608
    " where d.tenant_id = $1 and d.webhook_id = $2 and ($3 = '' or d.state = $3) and ($4 = '' or d.delivery_id < $4)"
    " order by d.delivery_id desc limit $5"
)
_CREATE = "select * from create_webhook_2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_OF_KEY = "select * from webhook_of_key_1($1, $2, $3)"
_SET_STATE = (
    "update webhooks w set state = $3, rest_time = null where w.tenant_id = $1 and w.webhook_id = $2"
    " returning w.webhook_id, w.url, w.kind, w.event_types, w.state, w.create_time"
)
_DELETE = "delete from webhooks w where w.tenant_id = $1 and w.webhook_id = $2"
_DELETE_DELIVERIES = "delete from deliveries d where d.tenant_id = $1 and d.webhook_id = $2"
_TEST = (
    "insert into deliveries as d (tenant_id, delivery_id, webhook_id, event_type, data, event_time)"  # noqa: S608
    " select $1, 'dlv_' || replace(uuidv7()::text, '-', ''), w.webhook_id, $3, '{}', clock_timestamp() from webhooks w"
    f" where w.tenant_id = $1 and w.webhook_id = $2 returning {_DELIVERY}"
)
# The number of attempts stays: a delivery that used up its own gets one more, not all of them anew.
_RETRY = (
    "update deliveries d set state = 'pending', due_time = clock_timestamp(), end_time = null"  # noqa: S608
    f" where d.tenant_id = $1 and d.webhook_id = $2 and d.delivery_id = $3 returning {_DELIVERY}"
)


class WebhookStore:
    """Webhooks of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def create(
        self, asked: Asked, webhook_id: str, host: str, event_types: list[str], secret: bytes | None, most: int
    ) -> Row:
        """Make a webhook with a sealed secret; a row of create_webhook_2."""
        key = asked.idempotency_key or None
        with guarding():
            row: Row = await self._pool.fetchrow(
                _CREATE, asked.tenant_id, webhook_id, asked.kind, asked.url, host, event_types, secret, most,
                key, asked.digest() if key else None,
            )  # fmt: skip
        return row

    async def made(self, asked: Asked) -> Row | None:
        """Find what was made under the same key; a row of webhook_of_key_1, None if nothing was."""
        with guarding():
            row: Row | None = await self._pool.fetchrow(_OF_KEY, asked.tenant_id, asked.idempotency_key, asked.digest())
        return row

    async def get(self, tenant_id: str, webhook_id: str) -> Row | None:
        """Read a webhook."""
        return await self._row(GET, tenant_id, webhook_id)

    async def page(self, tenant_id: str, before: str, limit: int) -> list[Row]:
        """List webhooks, newest first."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return list(await connection.fetch(LIST, tenant_id, before, limit))

    async def set_state(self, tenant_id: str, webhook_id: str, state: str) -> Row | None:
        """Switch a webhook on or off; None if it is not there."""
        return await self._row(_SET_STATE, tenant_id, webhook_id, state)

    async def delete(self, tenant_id: str, webhook_id: str) -> bool:
        """Remove a webhook with its deliveries; False if it is not there.

        What a run's end puts in meanwhile is removed by the courier.
        """
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                found = str(await connection.execute(_DELETE, tenant_id, webhook_id)) != "DELETE 0"
                await connection.execute(_DELETE_DELIVERIES, tenant_id, webhook_id)
        return found

    async def test(self, tenant_id: str, webhook_id: str, event_type: str) -> Row | None:
        """Put an event without a run on its way; None if there is no such webhook."""
        return await self._row(_TEST, tenant_id, webhook_id, event_type)

    async def retry(self, tenant_id: str, webhook_id: str, delivery_id: str) -> Row | None:
        """Have a delivery sent once more; None if it is not there."""
        return await self._row(_RETRY, tenant_id, webhook_id, delivery_id)

    async def deliveries(self, tenant_id: str, webhook_id: str, state: str, before: str, limit: int) -> list[Row]:
        """List deliveries of a webhook, newest first, in one state where given."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return list(await connection.fetch(DELIVERIES, tenant_id, webhook_id, state, before, limit))

    async def _row(self, query: str, tenant_id: str, *arguments: object) -> Row | None:
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                row: Row | None = await connection.fetchrow(query, tenant_id, *arguments)
        return row
