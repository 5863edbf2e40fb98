"""An outbox with what belongs to it, for tests of the courier: webhooks, keys, couriers on demand."""

from contextlib import asynccontextmanager

from retinue_kit import postgres
from retinue_kit.clock import SystemClock
from retinue_kit.sealing import Sealer
from retinue_router.courier.dispatcher import Dispatcher
from retinue_router.courier.outbox import Outbox
from retinue_router.courier.sender import Sender
from retinue_router.domain.webhooks import Asked
from retinue_router.names import Names
from retinue_router.operations.webhooks import Webhooks
from retinue_router.store.webhooks import WebhookStore

TENANT = "ten_a"


def asked(url, kind="standard", types=(), secret="", key=""):
    """Ask for a webhook."""
    return Asked(tenant_id=TENANT, url=url, kind=kind, event_types=types, secret=secret, idempotency_key=key)


class FakeNames(Names):
    """Answers what a test says: each host's addresses, as long as there are any."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    async def addresses(self, host, port):
        return self.found.pop(host)


class Post:
    """An outbox with what belongs to it: webhooks, keys, couriers on demand."""

    def __init__(self, core, database, keys):
        self.core, self.database, self.keys = core, database, keys
        self.sealer = Sealer.load(keys)
        self.webhooks = Webhooks(WebhookStore(core.pool), self.sealer, Names(), private=True)

    async def make(self, url, kind="standard", types=(), secret="", key=""):
        row, secret = await self.webhooks.create(asked(url, kind, types, secret, key))
        return row["webhook_id"], secret

    async def happen(self, contact="anna", **other):
        """Have a run succeed; answers it."""
        await self.core.submit(contact=contact, **other)
        held = await self.core.claim(f"log_{contact}")
        await self.core.finish(held, log=f"log_{contact}")
        return held

    @asynccontextmanager
    async def courier(self, *, private=True, names=None, timeout_s=5.0, sealer=None, lease_s=30.0, keep_s=3600.0):
        pool = await postgres.connect(self.database.dsn("retinue_courier"), max_size=4)
        try:
            async with Sender(names or Names(), private=private, timeout_s=timeout_s) as sender:
                outbox = Outbox(pool, lease_s, keep_s)
                made = Dispatcher(outbox, sender, sealer or self.sealer, SystemClock(), lambda: 0.5)
                made.outbox = outbox
                yield made
                await made.drain(5)
        finally:
            await pool.close()

    async def round(self, **settings):
        """One courier, one look, and what comes of it."""
        async with self.courier(**settings) as courier:
            begun = await courier.look()
            await courier.drain(30)
        return begun

    async def rows(self):
        return await self.core.seen("select * from router.deliveries order by delivery_id")

    async def row(self):
        (row,) = await self.rows()
        return row

    async def hasten(self):
        """Let what is pending be due now."""
        await self.core.admin.execute(
            "update router.deliveries set due_time = clock_timestamp() where state = 'pending'"
        )
        await self.core.admin.execute("update router.webhooks set rest_time = null")
