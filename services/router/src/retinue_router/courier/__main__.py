"""Assembles a courier: the outbox, the keys, the loops."""

import asyncio
from contextlib import AsyncExitStack

from retinue_kit import postgres, process
from retinue_kit.clock import SystemClock
from retinue_kit.loops import keep
from retinue_kit.sealing import Sealer
from retinue_kit.server import Server

from retinue_router.courier.config import Settings
from retinue_router.courier.dispatcher import Dispatcher
from retinue_router.courier.outbox import Outbox
from retinue_router.courier.sender import Sender
from retinue_router.names import Names

POOL_SIZE = 4
"""Connections for 64 attempts: each holds one for a millisecond at its end."""

DRAIN_S = 5.0
"""Time for attempts under way when the process is told to stop: most receivers answer well within it."""


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Connect, start the loops; they stop after the attempts under way have drained."""
    sealer = Sealer.load(settings.sealing_keys_file)
    pool = await postgres.connect(settings.postgres_dsn, max_size=POOL_SIZE)
    stack.push_async_callback(pool.close)
    names = Names()
    stack.callback(names.close)
    sender = await stack.enter_async_context(Sender(names, private=settings.webhook_private_targets))
    outbox = Outbox(pool, settings.delivery_lease_s, settings.delivery_keep_s)
    dispatcher = Dispatcher(outbox, sender, sealer, SystemClock())
    working = keep("deliver", dispatcher.work_for_ever)
    clearing = keep("clear", dispatcher.clear_for_ever)

    async def stop() -> None:
        working.cancel()
        clearing.cancel()
        await asyncio.gather(working, clearing, return_exceptions=True)
        await dispatcher.drain(DRAIN_S)

    stack.push_async_callback(stop)
    return Server(settings.address, [], {"postgres": lambda: postgres.ping(pool)})


if __name__ == "__main__":
    process.main("courier", Settings, assemble)
