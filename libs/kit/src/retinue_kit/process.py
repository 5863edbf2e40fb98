"""A service's life: settings, telemetry, assembly, signals, drain."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import TypeVar

import msgspec
import structlog

from retinue_kit import config, crashing, metrics, telemetry
from retinue_kit.server import Server

S = TypeVar("S", bound=msgspec.Struct)

DRAIN_GRACE_S = 10.0
"""Time for calls under way when the process is told to stop; orchestrators usually give thirty seconds."""

COLLECT_AFTER = (20_000, 50, 100)
"""Python's collector runs after so many new objects, far less often than by default: almost all that a call makes is
freed by counting. Measured at 32 clients, a turn costs a tenth less."""

HURRY_S = 1.0
"""Told again after this, a process is to leave at once. Before it, it is the same wish twice: programs that run others
signal both the process and its group."""

EXIT_SETTINGS = 2
_hurry: ContextVar[asyncio.Event] = ContextVar("hurry")
log: structlog.stdlib.BoundLogger = structlog.get_logger()

Assemble = Callable[[S, AsyncExitStack], Awaitable[Server]]


def hurry() -> asyncio.Event:
    """Answer what is set once this process was told to stop again: what takes long is to be given up then.

    To be asked for while the process is assembled; elsewhere, as in tests, nobody sets it.
    """
    return _hurry.get(asyncio.Event())


def main(name: str, settings: type[S], assemble: Assemble[S], *, grace_s: float = DRAIN_GRACE_S) -> None:
    """Run a service until SIGTERM or SIGINT, then drain it; either signal again sets what `hurry` answers.

    `assemble` builds the server and pushes what is to be closed on the stack, last opened first closed. Exits with 2
    and one line if a setting is wrong, whether the settings' class or `assemble` finds it.
    """
    try:
        loaded = config.load(settings)
        crashing.switch_on()
        provider = telemetry.set_up(name)
        try:
            asyncio.run(_run(name, loaded, assemble, grace_s, os.environ.get(metrics.SETTING, "")))
        finally:
            provider.shutdown()
    except config.SettingError as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_SETTINGS) from None


async def _run(name: str, settings: S, assemble: Assemble[S], grace_s: float, metrics_address: str) -> None:
    stop, stop_time, hurry = asyncio.Event(), 0.0, asyncio.Event()
    _hurry.set(hurry)
    loop = asyncio.get_running_loop()

    def told() -> None:
        nonlocal stop_time
        if not stop.is_set():
            stop_time = loop.time()
            stop.set()
        elif loop.time() - stop_time > HURRY_S:
            hurry.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    async with AsyncExitStack() as stack:
        server = await assemble(settings, stack)
        exposition = metrics.Exposition(metrics_address) if metrics_address else None
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
