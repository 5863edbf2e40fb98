"""Assembles a worker: stores, ring, bus, neighbours, and the loops that it lives on."""

import asyncio
from contextlib import AsyncExitStack

from retinue_kit import ids, postgres, process, streams
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server
from retinue_kit.streams import Bus

from retinue_router.ring import Ring
from retinue_router.worker.clients import Directory, Policy, Runtimes
from retinue_router.worker.config import Settings
from retinue_router.worker.keeper import Keeper
from retinue_router.worker.leases import LeaseStore
from retinue_router.worker.projection import Projector
from retinue_router.worker.puller import Puller, Sweeper
from retinue_router.worker.runner import Parts, Runner

POOL_SIZE = 12
"""Connections for 64 slots: a turn holds one for three statements of half a millisecond."""


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
        )
    }
    for peer in peers.values():
        stack.push_async_callback(peer.close)
    clock, boot = SystemClock(), ids.new_id("wrk")
    ring, store = Ring(client), LeaseStore(pool, settings.lease_s)
    keeper = Keeper(store, ring, clock, settings.lease_s)
    projector = Projector(pool, settings.workspaces_dir)
    runner = Runner(
        Parts(
            store, ring, Bus(client), keeper, Policy(peers["policy"]), Directory(peers["directory"], clock),
            Runtimes(peers["runtime-adapter"]), projector, clock,
        ),
        boot,
    )  # fmt: skip
    sweeper = Sweeper(sweep_pool, ring)
    puller = Puller(runner, ring, sweeper, blocking, settings.slots)
    loops = [
        asyncio.create_task(loop)
        for loop in (
            keeper.renew_for_ever(settings.renew_s),
            keeper.hear_pokes_for_ever(blocking, boot),
            projector.project_for_ever(),
            sweeper.sweep_for_ever(),
        )
    ]
    pulling = asyncio.create_task(puller.pull_for_ever())

    async def stop() -> None:
        runner.draining = True
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        await puller.drain(settings.drain_s)
        await projector.flush()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    stack.push_async_callback(stop)
    return Server(settings.address, [], {"postgres": lambda: postgres.ping(pool), "redis": client.ping})


if __name__ == "__main__":
    process.main("worker", Settings, assemble)
