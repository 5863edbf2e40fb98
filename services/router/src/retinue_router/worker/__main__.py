"""Assembles a worker: stores, ring, bus, neighbours, and the loops that it lives on."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

from retinue_kit import ids, postgres, process, streams
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.loops import keep
from retinue_kit.server import Server
from retinue_kit.streams import Bus

from retinue_router.domain.queues import QueueClass
from retinue_router.doorbell import Doorbell
from retinue_router.ring import Rings
from retinue_router.store.load import LoadStore
from retinue_router.store.runs import Room
from retinue_router.store.schedules import ScheduleStore
from retinue_router.worker.clients import Directory, Policy, Portability, Runtimes
from retinue_router.worker.config import Settings
from retinue_router.worker.extraction import Extractor
from retinue_router.worker.keeper import Keeper
from retinue_router.worker.leases import LeaseStore
from retinue_router.worker.projection import Projector
from retinue_router.worker.puller import Puller
from retinue_router.worker.remains import Remains
from retinue_router.worker.reporter import Reporter
from retinue_router.worker.runner import Parts, Runner
from retinue_router.worker.scheduler import Scheduler, WholeRoom
from retinue_router.worker.sweeper import Sweeper

EXTRACT_LAST_S = 2.0
"""For what was said last to be asked to be read for facts, when the process stops."""

POOL_SIZE = 12
"""Connections for all slots: a turn holds one for three statements of half a millisecond."""


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Connect, start the loops; they stop after the runs under way have drained."""
    pool = await postgres.connect(settings.postgres_dsn, max_size=POOL_SIZE)
    stack.push_async_callback(pool.close)
    sweep_pool = await postgres.connect(settings.sweep_dsn, max_size=1)
    stack.push_async_callback(sweep_pool.close)
    client = streams.connect(settings.redis_url)
    blocking = streams.connect(settings.redis_url, blocking=True)
    stack.push_async_callback(client.aclose)
    stack.push_async_callback(blocking.aclose)
    peers = {
        name: Peer(name, address)
        for name, address in (
            ("policy", settings.policy_address),
            ("directory", settings.directory_address),
            ("runtime-adapter", settings.runtime_adapter_address),
            ("portability", settings.portability_address),
        )
        if address
    }
    for peer in peers.values():
        stack.push_async_callback(peer.close)
    clock, boot, hurry = SystemClock(), ids.new_id("wrk"), process.hurry()
    rings, store = Rings(client), LeaseStore(pool, settings.lease_s)
    bus = Bus(client)
    remains = Remains(bus)
    keeper = Keeper(store, rings, clock, settings.lease_s)
    policy = Policy(peers["policy"])
    reporter = Reporter(policy, clock)
    projector = Projector(pool, settings.workspaces_dir)
    room = Room(settings.tenant_waiting_count, settings.tenant_later_count)
    whole = WholeRoom(LoadStore(sweep_pool), settings.waiting_count)
    doorbell = Doorbell(rings, client)
    extractor = Extractor(pool, doorbell, room, whole, settings.memory_extract_every)
    runner = Runner(
        Parts(
            store, rings, bus, remains, keeper, policy, Directory(peers["directory"], clock),
            Runtimes(peers["runtime-adapter"]), Portability(peers.get("portability")), reporter, projector,
            extractor, clock, settings.put_back_s,
        ),
        boot,
    )  # fmt: skip
    sweeper = Sweeper(sweep_pool, rings)
    scheduler = Scheduler(sweep_pool, ScheduleStore(pool), doorbell, room, whole)
    pullers = [
        Puller(queue, runner, rings, sweeper, blocking, clock, slots)
        for queue, slots in ((QueueClass.CHAT, settings.slots), (QueueClass.TASK, settings.task_slots))
    ]
    schema = postgres.Schema(pool, "retinue_router", "router")

    loops = [
        keep("renew", keeper.renew_for_ever, settings.renew_s),
        keep("keep-slots", keeper.keep_slots_for_ever, settings.renew_s),
        keep("hear-pokes", keeper.hear_pokes_for_ever, blocking, boot),
        keep("project", projector.project_for_ever),
        keep("extract", extractor.look_for_ever),
        keep("tell-remains", remains.tell_for_ever),
        keep("report", reporter.report_for_ever),
        keep("sweep", _behind, schema, sweeper.sweep_for_ever),
        keep("fire", _behind, schema, scheduler.fire_for_ever),
    ]
    pulling = [keep("pull", _behind, schema, puller.pull_for_ever) for puller in pullers]

    async def stop() -> None:
        runner.draining = True
        for loop in pulling:
            loop.cancel()
        await asyncio.gather(*pulling, return_exceptions=True)
        draining = asyncio.create_task(_drain(pullers, settings.drain_s))
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait([draining, hurried], return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        hurried.cancel()
        keeper.release_all()
        await asyncio.gather(*(puller.leave() for puller in pullers))
        await projector.flush()
        with suppress(TimeoutError):  # what is not looked at now is at the session's next message
            async with asyncio.timeout(EXTRACT_LAST_S):
                await extractor.flush()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await reporter.flush()

    stack.push_async_callback(stop)
    return Server(settings.address, [], {"postgres": schema.check, "redis": client.ping})


async def _behind(schema: postgres.Schema, work: Callable[[], Awaitable[None]]) -> None:
    # An attempt that could not be ended by the functions of an older schema would be lost, and cost its run.
    await schema.wait()
    await work()


async def _drain(pullers: list[Puller], grace_s: float) -> None:
    await asyncio.gather(*(puller.drain(grace_s) for puller in pullers))


if __name__ == "__main__":
    process.main("worker", Settings, assemble)
