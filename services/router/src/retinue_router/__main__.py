"""How the router's service is assembled; its worker is `python -m retinue_router.worker`."""

from contextlib import AsyncExitStack

from retinue.router.v1 import contact_service_pb2, contact_service_pb2_grpc, router_service_pb2, router_service_pb2_grpc
from retinue_kit import postgres, process, streams
from retinue_kit.server import Server, Service
from retinue_kit.streams import Bus
from retinue_kit.watching import Subscriber

from retinue_router.config import Settings
from retinue_router.doorbell import Doorbell
from retinue_router.operations.approvals import Approvals
from retinue_router.operations.contacts import Contacts
from retinue_router.operations.events import Logs, Tick
from retinue_router.operations.runs import Runs
from retinue_router.ring import Ring
from retinue_router.service import ContactServicer, RouterServicer
from retinue_router.store.approvals import ApprovalStore
from retinue_router.store.contacts import ContactStore
from retinue_router.store.events import EventStore
from retinue_router.store.guard import require_read_committed
from retinue_router.store.runs import RunStore

SWEEP_POOL_SIZE = 2
"""One connection for the gateways' ticks and one for our own."""

ROUTER = router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
CONTACTS = contact_service_pb2.DESCRIPTOR.services_by_name["ContactService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Bring the schema up to date where that is asked for, connect, and build the server."""
    if settings.migrate_dsn:
        await postgres.migrate(settings.migrate_dsn, "retinue_router", "router")
    pool = await postgres.connect(settings.postgres_dsn, max_size=settings.pool_size)
    stack.push_async_callback(pool.close)
    await require_read_committed(pool)
    sweep_pool = await postgres.connect(settings.sweep_dsn, max_size=SWEEP_POOL_SIZE)
    stack.push_async_callback(sweep_pool.close)
    client = streams.connect(settings.redis_url)
    stack.push_async_callback(client.aclose)
    blocking = streams.connect(settings.redis_url, blocking=True)
    stack.push_async_callback(blocking.aclose)

    bus = Bus(client)
    doorbell = Doorbell(Ring(client), client)
    run_store, event_store = RunStore(pool), EventStore(pool, sweep_pool)
    subscriber = await stack.enter_async_context(Subscriber(blocking, bus, Tick(event_store)))
    router = RouterServicer(
        Runs(run_store, doorbell),
        Logs(event_store, run_store, subscriber),
        Approvals(ApprovalStore(pool), doorbell),
    )
    contacts = ContactServicer(Contacts(ContactStore(pool), bus, settings.workspaces_dir))
    return Server(
        settings.address,
        [
            Service(router_service_pb2_grpc.add_RouterServiceServicer_to_server, router, ROUTER),
            Service(contact_service_pb2_grpc.add_ContactServiceServicer_to_server, contacts, CONTACTS),
        ],
        {"postgres": lambda: postgres.ping(pool), "redis": client.ping},
    )


if __name__ == "__main__":
    process.main("router", Settings, assemble)
