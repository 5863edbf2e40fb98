"""A service's life: settings, telemetry, assembly, signals, drain."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import msgspec
import structlog

from retinue_kit import config, crashing, telemetry
from retinue_kit.metrics import Exposition
from retinue_kit.server import Server

S = TypeVar("S", bound=msgspec.Struct)

DRAIN_GRACE_S = 10.0
"""Time for calls under way when the process is told to stop; orchestrators usually give thirty seconds."""

COLLECT_AFTER = (20_000, 50, 100)
"""Python's collector runs after so many new objects, far less often than by default: almost all that a call makes is
freed by counting. Measured at 32 clients, a turn costs a tenth less."""

METRICS_SETTING = "RETINUE_METRICS_ADDRESS"
"""Where the process tells its numbers, `unix:/path` or `host:port`; nowhere if it is not set."""

EXIT_SETTINGS = 2
log: structlog.stdlib.BoundLogger = structlog.get_logger()

Assemble = Callable[[S, AsyncExitStack], Awaitable[Server]]


def main(name: str, settings: type[S], assemble: Assemble[S], *, grace_s: float = DRAIN_GRACE_S) -> None:
    """Run a service until SIGTERM or SIGINT, then drain it.

    `assemble` builds the server and pushes what is to be closed on the stack, last opened first closed. Exits with 2
    and one line if a setting is wrong, whether the settings' class or `assemble` finds it.
    """
    try:
        loaded = config.load(settings)
        crashing.switch_on()
        provider = telemetry.set_up(name)
        try:
            asyncio.run(_run(name, loaded, assemble, grace_s, os.environ.get(METRICS_SETTING, "")))
        finally:
            provider.shutdown()
    except config.SettingError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_SETTINGS) from None


async def _run(name: str, settings: S, assemble: Assemble[S], grace_s: float, metrics_address: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        server = await assemble(settings, stack)
        exposition = Exposition(metrics_address) if metrics_address else None
        if exposition is not None:
            await exposition.start()
            stack.push_async_callback(exposition.stop)
        await server.start()
        gc.collect()
        gc.freeze()  # what was imported stays for good: no collection needs to look at it again
        gc.set_threshold(*COLLECT_AFTER)
        log.info("serving", address=server.address)
        await stop.wait()
        log.info("draining")
        await server.drain(grace_s)
    log.info("stopped", name=name)
