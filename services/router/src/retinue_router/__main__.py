"""How the router's service is assembled; its worker is `python -m retinue_router.worker`."""

import asyncio
from contextlib import AsyncExitStack, suppress

from retinue.router.v1 import (
    allowance_service_pb2,
    allowance_service_pb2_grpc,
    contact_service_pb2,
    contact_service_pb2_grpc,
    context_service_pb2,
    context_service_pb2_grpc,
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    decision_service_pb2,
    decision_service_pb2_grpc,
    memory_service_pb2,
    memory_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from retinue_kit import postgres, process, streams
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.loops import keep
from retinue_kit.sealing import Sealer
from retinue_kit.server import Server, Service
from retinue_kit.streams import Bus
from retinue_kit.watching import Subscriber

from retinue_router.allowance_service import AllowanceServicer
from retinue_router.config import Settings
from retinue_router.context_service import ContextServicer
from retinue_router.dead_letter_service import DeadLetterServicer
from retinue_router.decision_service import DecisionServicer
from retinue_router.domain.load import Bounds
from retinue_router.doorbell import Doorbell
from retinue_router.embedding import ADAPTER, ModelEmbedder
from retinue_router.memory_projection import MemoryProjector
from retinue_router.memory_service import MemoryServicer
from retinue_router.names import Names
from retinue_router.operations.allowances import Allowances
from retinue_router.operations.approvals import Approvals
from retinue_router.operations.contacts import Contacts
from retinue_router.operations.context import Contexts
from retinue_router.operations.dead_letters import DeadLetters
from retinue_router.operations.decisions import Decisions
from retinue_router.operations.events import Logs, Tick
from retinue_router.operations.load import Loads
from retinue_router.operations.memory import Embedder, LexicalEmbedder, Memory
from retinue_router.operations.rooms import Rooms
from retinue_router.operations.runs import Runs
from retinue_router.operations.schedules import Schedules
from retinue_router.operations.webhooks import Webhooks
from retinue_router.ring import Rings
from retinue_router.schedule_service import ScheduleServicer
from retinue_router.service import ContactServicer, RouterServicer
from retinue_router.store.allowances import AllowanceStore
from retinue_router.store.approvals import ApprovalStore
from retinue_router.store.contacts import ContactStore
from retinue_router.store.context import ContextStore
from retinue_router.store.dead_letters import DeadLetterStore
from retinue_router.store.decisions import DecisionStore
from retinue_router.store.events import EventStore
from retinue_router.store.facts import FactStore
from retinue_router.store.guard import require_read_committed
from retinue_router.store.load import LoadStore
from retinue_router.store.runs import RunStore
from retinue_router.store.schedules import ScheduleStore
from retinue_router.store.webhooks import WebhookStore
from retinue_router.webhook_service import WebhookServicer

SWEEP_POOL_SIZE = 2
"""One connection for the gateways' ticks, one for our own and for counting what waits."""

ROUTER = router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name
ALLOWANCES = allowance_service_pb2.DESCRIPTOR.services_by_name["AllowanceService"].full_name
CONTEXTS = context_service_pb2.DESCRIPTOR.services_by_name["ContextService"].full_name
CONTACTS = contact_service_pb2.DESCRIPTOR.services_by_name["ContactService"].full_name
DEAD_LETTERS = dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"].full_name
DECISIONS = decision_service_pb2.DESCRIPTOR.services_by_name["DecisionService"].full_name
MEMORY = memory_service_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name
SCHEDULES = schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"].full_name
WEBHOOKS = webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"].full_name


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
    doorbell = Doorbell(Rings(client), client)
    run_store, event_store = RunStore(pool), EventStore(pool, sweep_pool)
    subscriber = await stack.enter_async_context(Subscriber(blocking, bus, Tick(event_store)))
    bounds = Bounds(settings.tenant_waiting_count, settings.waiting_count, settings.tenant_later_count)
    loads = Loads(LoadStore(sweep_pool), bounds)
    stack.push_async_callback(_stop, keep("count", loads.count_for_ever))
    rooms = Rooms(run_store, loads, SystemClock())
    runs = Runs(run_store, rooms, doorbell)
    router = RouterServicer(
        runs,
        Logs(event_store, run_store, subscriber),
        Approvals(ApprovalStore(pool), doorbell),
        loads,
    )
    contacts = ContactServicer(Contacts(ContactStore(pool), bus, settings.workspaces_dir))
    contexts = ContextServicer(Contexts(ContextStore(pool), bus))
    decisions = DecisionServicer(Decisions(DecisionStore(sweep_pool)))
    fact_store = FactStore(pool)
    projector = MemoryProjector(fact_store, settings.workspaces_dir)
    stack.push_async_callback(projector.flush)
    stack.push_async_callback(_stop, keep("project-memory", projector.project_for_ever))
    memory = MemoryServicer(Memory(fact_store, _embedder(settings, stack), projector))
    dead_letters = DeadLetterServicer(DeadLetters(DeadLetterStore(pool, sweep_pool), runs, rooms, doorbell))
    schedules = ScheduleServicer(Schedules(ScheduleStore(pool)))
    allowances = AllowanceServicer(Allowances(AllowanceStore(pool)))
    names = Names()
    stack.callback(names.close)
    sealer = Sealer.load(settings.sealing_keys_file) if settings.sealing_keys_file else None
    made = Webhooks(WebhookStore(pool), sealer, names, private=settings.webhook_private_targets)
    webhooks = WebhookServicer(made)
    return Server(
        settings.address,
        [
            Service(router_service_pb2_grpc.add_RouterServiceServicer_to_server, router, ROUTER),
            Service(allowance_service_pb2_grpc.add_AllowanceServiceServicer_to_server, allowances, ALLOWANCES),
            Service(contact_service_pb2_grpc.add_ContactServiceServicer_to_server, contacts, CONTACTS),
            Service(context_service_pb2_grpc.add_ContextServiceServicer_to_server, contexts, CONTEXTS),
            Service(decision_service_pb2_grpc.add_DecisionServiceServicer_to_server, decisions, DECISIONS),
            Service(memory_service_pb2_grpc.add_MemoryServiceServicer_to_server, memory, MEMORY),
            Service(dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server, dead_letters, DEAD_LETTERS),
            Service(schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server, schedules, SCHEDULES),
            Service(webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server, webhooks, WEBHOOKS),
        ],
        {"postgres": postgres.Schema(pool, "retinue_router", "router").check, "redis": client.ping},
    )


def _embedder(settings: Settings, stack: AsyncExitStack) -> Embedder:
    if not settings.embeddings:
        return LexicalEmbedder()
    adapter = Peer(ADAPTER, settings.runtime_adapter_address)
    stack.push_async_callback(adapter.close)
    return ModelEmbedder(adapter, SystemClock())


async def _stop(loop: asyncio.Task[None]) -> None:
    loop.cancel()
    with suppress(asyncio.CancelledError):
        await loop


if __name__ == "__main__":
    process.main("router", Settings, assemble)
