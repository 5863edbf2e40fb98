"""Boxes made ahead: a tenant that needs one after the other finds the next one ready.

Nothing has run in a spare. It is given to the tenant that it was made for alone, and only for exactly the profile that
it was made for; what has run something is never given to anybody again. One is kept ready only for who needed two boxes
shortly after one another, and not for long.
"""

import asyncio
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass

import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import RetinueError

from retinue_sandbox import metrics
from retinue_sandbox.ports import Backend, Box, Profile, Workspace, Workspaces

SPARE_TTL_S = 15.0
"""How long a spare waits to be needed. Whoever needs a second box within this time gets a spare beside it."""

SPARES_TENANT_MAX = 2
"""Spares of one tenant: it has as many kinds of boxes as it has grants, and most use one."""

WANTED_MAX = 1024
"""Kinds of which it is remembered when one was last needed, the latest ones."""

REST_S = 0.01
"""Before a spare is begun: what the tenant's box was needed for is to have the machine to itself for its first moments,
which for most commands are all there is."""

Kind = tuple[str, Profile]
"""Whose box, and which."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Spare:
    """A box that is there or about to be."""

    making: "asyncio.Task[Box]"
    hurry: asyncio.Event
    since: float


class Spares:
    """Makes boxes, some of them ahead. `reap` it now and then, and `close` it."""

    def __init__(self, backend: Backend, workspaces: Workspaces, spares_max: int, clock: Clock) -> None:
        self._backend, self._workspaces, self._spares_max, self._clock = backend, workspaces, spares_max, clock
        self._spares: OrderedDict[Kind, _Spare] = OrderedDict()
        """The one begun longest ago first, which is the one needed longest ago."""
        self._wanted: OrderedDict[Kind, float] = OrderedDict()
        """When one of a kind was last needed."""
        self._ending: set[asyncio.Task[None]] = set()

    async def take(self, tenant_id: str, profile: Profile) -> Box:
        """Answer a box in which nothing has run, which is the caller's from now on. Raises as Backend.open does."""
        kind = (tenant_id, profile)
        box = await self._ready(kind)
        metrics.boxes_taken.labels("made" if box is None else "spare").inc()
        if box is None:
            box = await self._make(kind)
        self._keep_one(kind)
        return box

    async def reap(self) -> None:
        """End the spares that nobody has come for, and those that have ended by themselves."""
        since = self._clock.monotonic() - SPARE_TTL_S
        for kind, spare in list(self._spares.items()):
            if spare.since <= since or _failed(spare):
                self._end(kind)
        while self._wanted and next(iter(self._wanted.values())) <= since:
            self._wanted.popitem(last=False)
        await self._ended()

    async def close(self) -> None:
        """End every spare."""
        for kind in list(self._spares):
            self._end(kind)
        await self._ended()

    @property
    def count(self) -> int:
        """Spares that are there or about to be."""
        return len(self._spares)

    async def _ready(self, kind: Kind) -> Box | None:
        """Take the spare of a kind, waiting for one that is being made; None without one that is any good."""
        spare = self._take_out(kind)
        if spare is None:
            return None
        spare.hurry.set()
        try:
            box = await asyncio.shield(spare.making)
        except asyncio.CancelledError:
            self._let_go(spare)
            raise
        except Exception:  # whoever asks may have more luck, or hear of it
            return None
        if box.lost.is_set():
            self._let_go(spare)
            return None
        return box

    def _keep_one(self, kind: Kind) -> None:
        """Have a spare made, if another box of this kind was needed shortly before."""
        now = self._clock.monotonic()
        before = self._wanted.pop(kind, None)
        self._wanted[kind] = now
        if len(self._wanted) > WANTED_MAX:
            self._wanted.popitem(last=False)
        if before is None or now - before > SPARE_TTL_S or kind in self._spares or self._spares_max == 0:
            return
        own = [other for other in self._spares if other[0] == kind[0]]
        if len(own) >= SPARES_TENANT_MAX:
            self._end(own[0])
        if len(self._spares) >= self._spares_max:
            self._end(next(iter(self._spares)))
        hurry = asyncio.Event()
        self._spares[kind] = _Spare(asyncio.create_task(self._make_ahead(kind, hurry), name="spare box"), hurry, now)
        metrics.spare_boxes.set(len(self._spares))

    async def _make_ahead(self, kind: Kind, hurry: asyncio.Event) -> Box:
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_S):
                await hurry.wait()
        return await self._make(kind)

    async def _make(self, kind: Kind) -> Box:
        tenant_id, profile = kind
        workspace = await self._workspace(tenant_id)
        try:
            return await self._backend.open(workspace, profile)
        finally:
            os.close(workspace.fd)

    async def _workspace(self, tenant_id: str) -> Workspace:
        """Open the tenant's files; where whoever wants them leaves meanwhile, they are closed again."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._workspaces.open, tenant_id))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    def _take_out(self, kind: Kind) -> _Spare | None:
        spare = self._spares.pop(kind, None)
        metrics.spare_boxes.set(len(self._spares))
        return spare

    def _end(self, kind: Kind) -> None:
        spare = self._take_out(kind)
        if spare is not None:
            self._let_go(spare)

    def _let_go(self, spare: _Spare) -> None:
        """End a spare, behind whoever asks."""
        spare.making.cancel()  # without effect on one that is there
        task = asyncio.create_task(_close_box(spare.making), name="spare box's end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _ended(self) -> None:
        await asyncio.gather(*self._ending, return_exceptions=True)


def _failed(spare: _Spare) -> bool:
    making = spare.making
    return making.done() and (making.cancelled() or making.exception() is not None or making.result().lost.is_set())


async def _close_box(making: "asyncio.Task[Box]") -> None:
    await asyncio.wait([making])
    if making.cancelled():
        return
    error = making.exception()
    if error is None:
        await making.result().close()
    elif not isinstance(error, RetinueError):
        log.error("a spare box broke", error=repr(error))


def _close(opening: "asyncio.Future[Workspace]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result().fd)
