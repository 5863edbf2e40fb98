"""Loops that a process lives on: one that breaks is told of and begins again, instead of being missed in silence."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from retinue_kit.metrics import loops_broken

AGAIN_AFTER_S = 1.0
"""Pause before a broken loop begins again: what breaks it may go on for long."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def keep(name: str, work: Callable[..., Awaitable[None]], *arguments: object) -> "asyncio.Task[None]":
    """Start a loop that ends only by being cancelled; whatever it raises is logged, counted, and it begins again."""
    return asyncio.create_task(_keep(name, work, arguments), name=name)


async def _keep(name: str, work: Callable[..., Awaitable[None]], arguments: tuple[object, ...]) -> None:
    while True:
        try:
            await work(*arguments)
            log.error("a loop ended by itself; it begins again", loop=name)
        except Exception:  # a bug here or a neighbour's: work that nobody does any more would be worse
            log.exception("a loop broke; it begins again", loop=name)
        loops_broken.labels(name).inc()
        await asyncio.sleep(AGAIN_AFTER_S)
