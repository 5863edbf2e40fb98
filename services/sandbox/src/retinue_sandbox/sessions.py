"""Which box a session has, for how long, and what runs in it.

A session has one box at a time, made when it is first needed and ended once nothing has run in it for a while. Under a
higher fencing token everything that runs under lower ones ends first.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import structlog
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.loops import keep

from retinue_sandbox import metrics
from retinue_sandbox.crash_points import Point
from retinue_sandbox.fencing import Fences, Key
from retinue_sandbox.ports import (
    Backend,
    Box,
    Exit,
    Isolation,
    Limits,
    Outcome,
    Piece,
    Profile,
    Work,
    Workspaces,
)
from retinue_sandbox.quota import Quota
from retinue_sandbox.running import Runner, Running
from retinue_sandbox.spares import Spares

EVICT_IDLE_S = 5.0
"""Where there are as many boxes as may be, the one that has been idle longest gives way, if it was for so long."""

QUIET_S = 2.0
"""For the end of what was told to end; then the box ends under it."""

REAP_S = 5.0
"""How often idle boxes are looked for, at most."""

RETRY_AFTER_S = 5.0
"""When a box may have become idle."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much there may be at once."""

    idle_s: float = 120.0
    boxes_max: int = 256
    tenant_boxes_max: int = 32
    tenant_executions_max: int = 8
    spare_boxes_max: int = 16
    """Beside the others; see spares.py."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is."""

    tenant_id: str
    session_id: str
    fencing_token: int

    @property
    def key(self) -> Key:
        """The session."""
        return (self.tenant_id, self.session_id)


@dataclass(eq=False, slots=True)
class _Session:
    """A session that has a box, or is about to."""

    key: Key
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    box: Box | None = None
    profile: Profile = field(default_factory=Profile)
    token: int = 0
    users: int = 0
    """Calls that are at it now."""
    idle_since: float = 0.0
    running: set[Running] = field(default_factory=set)


class Sessions:
    """All sessions of this process. Make it in the event loop's thread, `start` it, and `close` it."""

    def __init__(self, backend: Backend, workspaces: Workspaces, bounds: Bounds, clock: Clock) -> None:
        self._backend = backend
        self._spares = Spares(backend, workspaces, bounds.spare_boxes_max, clock)
        self._bounds = bounds
        self._clock = clock
        self._fences = Fences()
        self._quota = Quota(workspaces, backend)
        self._sessions: dict[Key, _Session] = {}
        self._boxes: Counter[str] = Counter()
        self._ending: dict[asyncio.Task[None], str] = {}
        """Boxes of ended one-shots that are not gone yet, with whose they are."""
        self._runner = Runner(self._quota, bounds.tenant_executions_max, clock)
        self._reaper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def start(self) -> None:
        """Begin to end idle boxes."""
        self._reaper = keep("boxes", self._reap_for_ever)

    @property
    def count(self) -> int:
        """Sessions that have a box."""
        return sum(session.box is not None for session in self._sessions.values())

    def fence(self, tenant_id: str, session_id: str, fencing_token: int) -> None:
        """Serve no lower token of a session from now on, and begin to end what runs under one. Raises
        STALE_FENCING_TOKEN for a token that is itself lower than one seen before. Safe to call from any thread.
        """
        key = (tenant_id, session_id)
        self._fences.admit(key, fencing_token)
        if self._thread == threading.get_ident():
            self._overtake(key, fencing_token)
        else:
            self._loop.call_soon_threadsafe(self._overtake, key, fencing_token)

    async def open(self, caller: Caller, profile: Profile) -> tuple[Isolation, bool]:
        """Make sure of a session's box; answers its wall, and whether it was there already. What ran under a lower
        token has ended. Raises RetinueError as OpenSession says.
        """
        self.fence(*caller.key, caller.fencing_token)
        self._check_isolation(profile)
        with self._joined(caller.key) as session:
            box, reused = await self._box(session, caller, profile)
            return box.isolation, reused

    async def close_session(self, caller: Caller) -> bool:
        """End a session's box with all that runs in it; says whether there was one."""
        self.fence(*caller.key, caller.fencing_token)
        with self._joined(caller.key) as session:
            async with session.lock:
                for running in session.running:
                    running.end(Outcome.CANCELLED)
                await self._quiet(session.running)
                return await self._drop(session, "closed")

    async def run(
        self, caller: Caller, profile: Profile, work: Work, limits: Limits, *, one_shot: bool = False
    ) -> AsyncGenerator[Piece | Exit, None]:
        """Run something in the session's box, or in one of its own; ends with an Exit. Raises RetinueError as Exec
        says. Closing it kills what it has begun.
        """
        self.fence(*caller.key, caller.fencing_token)
        self._check_isolation(profile)
        await self._quota.require(caller.tenant_id)
        with self._runner.place(caller.tenant_id), self._joined(caller.key) as session:
            async with self._box_for(session, caller, profile, one_shot) as box:
                reach(Point.EXEC_STARTING)
                running = Running(caller.fencing_token, box, self._clock.monotonic())
                session.running.add(running)
                try:
                    async with aclosing(self._runner.run(running, caller.tenant_id, work, limits)) as items:
                        async for item in items:
                            if isinstance(item, Exit):  # whoever waits for it need not wait for the end to be read
                                running.ended.set()
                            yield item
                finally:
                    session.running.discard(running)
                    running.ended.set()

    async def close(self) -> None:
        """End every box."""
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait([self._reaper])
        for session in self._sessions.values():
            for running in session.running:
                running.end(Outcome.CANCELLED)
        await asyncio.gather(*(self._end(session, "drain") for session in list(self._sessions.values())))
        await asyncio.gather(*self._ending, self._spares.close(), return_exceptions=True)
        await self._quota.close()

    def _overtake(self, key: Key, token: int) -> None:
        session = self._sessions.get(key)
        for running in session.running if session else ():
            if running.token < token:
                running.end(None)

    # Boxes.

    def _check_isolation(self, profile: Profile) -> None:
        there = self._backend.isolation
        if there is None or not there.at_least(profile.min_isolation):
            message = f"A box of {profile.min_isolation} isolation is asked for, and there is none."
            raise RetinueError(Reason.POLICY_DENIED, message, isolation=str(there or ""))

    @contextmanager
    def _joined(self, key: Key) -> Iterator[_Session]:
        """Hold on to a session for the block: its box is not idle."""
        session = self._sessions.setdefault(key, _Session(key))
        session.users += 1
        try:
            yield session
        finally:
            session.users -= 1
            session.idle_since = self._clock.monotonic()
            if session.users == 0 and session.box is None and self._sessions.get(key) is session:
                del self._sessions[key]

    @asynccontextmanager
    async def _box_for(self, session: _Session, caller: Caller, profile: Profile, one_shot: bool) -> AsyncIterator[Box]:
        if not one_shot:
            box, _ = await self._box(session, caller, profile)
            yield box
            return
        box = await self._open(caller.tenant_id, profile)
        try:
            self._fences.check(caller.key, caller.fencing_token)
            yield box
        finally:
            await self._shut_behind(caller.tenant_id, box)

    async def _box(self, session: _Session, caller: Caller, profile: Profile) -> tuple[Box, bool]:
        """Answer the session's box, and whether it was there already."""
        async with session.lock:
            # What ran under a lower token was told to end when this one was seen.
            await self._quiet(one for one in session.running if one.token < caller.fencing_token)
            if session.box is not None and session.box.lost.is_set():
                await self._drop(session, "lost")
            # What is no longer granted ends with the box that has it.
            if session.box is not None and session.profile != profile:
                if session.running:
                    message = "The session's box is of another kind, and something runs in it; try again."
                    raise RetinueError(Reason.QUEUE_FULL, message, retry_after_s=RETRY_AFTER_S)
                await self._drop(session, "replaced")
            self._fences.check(caller.key, caller.fencing_token)  # another may have come while this one waited
            reused = session.box is not None
            if session.box is None:
                session.box = await self._open(caller.tenant_id, profile)
                session.profile = profile
            session.token = max(session.token, caller.fencing_token)
            self._fences.check(caller.key, caller.fencing_token)
            return session.box, reused

    async def _quiet(self, running: Iterable[Running]) -> None:
        """Wait until executions that were told to end have; whoever does not read their output cannot hold it up."""
        waiting = list(running)
        try:
            async with asyncio.timeout(QUIET_S):
                for one in waiting:
                    await one.ended.wait()
        except TimeoutError:
            await asyncio.gather(*(one.box.close() for one in waiting if not one.ended.is_set()))

    async def _open(self, tenant_id: str, profile: Profile) -> Box:
        await self._make_room(tenant_id)
        self._boxes[tenant_id] += 1  # before it is there, so that what opens meanwhile counts it
        try:
            reach(Point.SESSION_OPENING)
            began = self._clock.monotonic()
            box = await self._spares.take(tenant_id, profile)
            metrics.box_open_seconds.observe(self._clock.monotonic() - began)
            metrics.boxes.inc()
            reach(Point.SESSION_OPENED)
        except BaseException:
            self._count_out(tenant_id)
            raise
        return box

    async def _make_room(self, tenant_id: str) -> None:
        """Raise QUEUE_FULL if there are too many boxes and none is idle."""
        bounds = self._bounds
        for most, tenants in ((bounds.tenant_boxes_max, {tenant_id}), (bounds.boxes_max, set(self._boxes))):
            # Others may open one while this waits for an end, so it is looked at again.
            while sum(self._boxes[tenant] for tenant in tenants) >= most:
                now = self._clock.monotonic()
                idle = [one for one in self._idle(now - EVICT_IDLE_S) if one.key[0] in tenants]
                if ending := [task for task, tenant in self._ending.items() if tenant in tenants]:
                    await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
                    continue
                if not idle:
                    message = "Too many sessions have a box at the moment; try again."
                    raise RetinueError(Reason.QUEUE_FULL, message, retry_after_s=RETRY_AFTER_S)
                await self._end(min(idle, key=lambda session: session.idle_since), "idle")

    def _idle(self, since: float) -> list[_Session]:
        return [one for one in self._sessions.values() if one.users == 0 and one.idle_since <= since]

    async def _end(self, session: _Session, cause: str) -> None:
        """End a session's box, unless somebody uses it by now."""
        async with session.lock:
            if cause == "drain":
                await self._quiet(session.running)
            elif session.users:
                return
            await self._drop(session, cause)
        if session.users == 0 and self._sessions.get(session.key) is session:
            del self._sessions[session.key]

    async def _drop(self, session: _Session, cause: str) -> bool:
        """End a session's box; its lock is held."""
        box, session.box = session.box, None
        if box is not None:
            await asyncio.shield(self._shut(session.key[0], box, cause))
        return box is not None

    async def _shut(self, tenant_id: str, box: Box, cause: str) -> None:
        try:
            await box.close()
        finally:
            self._count_out(tenant_id)
            metrics.boxes.dec()
            metrics.boxes_ended.labels(cause).inc()

    async def _shut_behind(self, tenant_id: str, box: Box) -> None:
        """Kill what is in a one-shot's box; it goes behind the answer, and counts until it is gone."""
        ending = asyncio.create_task(self._shut(tenant_id, box, "one_shot"), name="one-shot's end")
        self._ending[ending] = tenant_id
        ending.add_done_callback(self._ending.pop)
        await box.lost.wait()

    def _count_out(self, tenant_id: str) -> None:
        self._boxes[tenant_id] -= 1
        if not self._boxes[tenant_id]:
            del self._boxes[tenant_id]

    async def _reap_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(REAP_S, self._bounds.idle_s / 4))
            now = self._clock.monotonic()
            lost = [one for one in self._idle(now) if one.box is not None and one.box.lost.is_set()]
            for session in [*lost, *self._idle(now - self._bounds.idle_s)]:
                await self._end(session, "lost" if session in lost else "idle")
            await self._spares.reap()
