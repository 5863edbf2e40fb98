"""OpenClaw as a runtime: an attempt finds its place, opens a session, follows its run. Read `ports.py` first.

A run in a gateway outlives the stream that asked for it: where a worker is lost, the run's next attempt joins it and is
told everything from the beginning. Before its first call that may change something a run pauses until that is recorded;
one that is lost later ends there, since nobody could tell its model what was done (`under_way.py`).
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial

import structlog
from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import (
    ContextMessage,
    ExportContextRequest,
    ImportContextRequest,
    InvokeRequest,
    ReattachRequest,
    Runtime,
)
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import deadlines, telemetry
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.adapter import Adapter, Batches
from retinue_runtime_adapter.crash_points import Point
from retinue_runtime_adapter.domain import troubles, windows
from retinue_runtime_adapter.domain.models import Catalogue
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.answer import ended, failed, repeated
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.wire import parameters, read_checkpoint
from retinue_runtime_adapter.openclaw import contexts, words
from retinue_runtime_adapter.openclaw.permits import RunIdentity, identity
from retinue_runtime_adapter.openclaw.ports import Isolation, ModelProxy, Place, Pool, RunCall
from retinue_runtime_adapter.openclaw.sessions import Line
from retinue_runtime_adapter.openclaw.under_way import Run, read_begun
from retinue_runtime_adapter.openclaw.work import Work
from retinue_runtime_adapter.tools.ports import Box

NAME = "openclaw"

RUN_TIME_S = 600.0
"""Time for an attempt whose request names none."""

PLACE_WAIT_S = 60.0
"""Time for an instance, an agent and a free slot. A gateway begins within twenty seconds on a busy machine; who waits
for longer than this does better in the queue."""

ABORT_TIMEOUT_S = 5.0
"""Time for a gateway to stop a run: it takes a twentieth of a second."""

FAILURES_MAX = 10_000
"""Runs whose failed attempts are counted; one that is forgotten hears of its former failure again."""

_OURS = (Reason.RUN_TERMINAL, Reason.RUN_TIMEOUT, Reason.OUTPUT_TOO_LARGE)
"""Ends that we have made ourselves; in every other case a model's trouble says more than the gateway's words of it."""

RUNS_MAX = 4_096
"""Runs that are remembered at once; more than all gateways together can hold."""

Runs = dict[tuple[str, str, str], RunIdentity]
"""Runs under way by instance, agent and session key."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class OpenClawAdapter(Adapter):
    """Drives OpenClaw's gateways. Troubles are told in the mesh's own words, whichever side they come from."""

    def __init__(
        self,
        pool: Pool,
        proxy: ModelProxy,
        catalogue: Catalogue,
        active: Runs,
        *,
        orphan_s: float,
        version: str,
        box: Box | None = None,
        window_min_tokens: int = 0,
    ) -> None:
        """`active` is kept up to date with the runs under way in gateways: who asks for tools is looked up there.

        `box` is where tools run, if agents have any; `window_min_tokens` what a model must read to be called.
        """
        self.name = NAME
        self._pool = pool
        self._proxy = proxy
        self._catalogue = catalogue
        self._active = active
        self._orphan_s = orphan_s
        self._version = version
        self._box = box
        self._window_min_tokens = window_min_tokens
        self._runs: dict[tuple[str, str], Run] = {}
        self._failures: OrderedDict[tuple[str, str], int] = OrderedDict()

    def describe(self) -> Runtime:
        available, detail = self._pool.status()
        load = self._pool.load()
        return Runtime(
            name=self.name,
            available=available,
            detail=detail + windows.said_of(self._catalogue, self._window_min_tokens),
            models=self._catalogue.names(),
            window_tokens=self._catalogue.windows(),
            slot_count=load.slots,
            busy_count=load.running,
            waiting_count=load.waiting,
            reattach=True,
            holds_context=True,
            reasoning=True,
            tools=self._box is not None,
            version=self._version,
        )

    def abort(self, tenant_id: str, run_id: str) -> bool:
        run = self._runs.get((tenant_id, run_id))
        if run is None or run.over:
            return False
        run.attempt.abort()
        return True

    async def close(self) -> None:
        tasks = [run.task for run in self._runs.values() if run.task is not None and not run.over]
        for run in self._runs.values():
            run.attempt.abort()
            if run.leaving is not None:
                run.leaving.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=ABORT_TIMEOUT_S)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def invoke(self, request: InvokeRequest) -> Batches:
        done = read_checkpoint(request.checkpoint, self.name)
        if done is not None:
            yield repeated(done, request.checkpoint)
            return
        key = (request.tenant_id, request.run_id)
        run, begun = self._runs.get(key), read_begun(request.checkpoint, self.name)
        if run is None and begun is not None:
            yield [failed(await self._lost(request), pb.RuntimeUsage())]
            return
        if run is None and len(self._runs) >= RUNS_MAX:
            crowded = Trouble(Reason.RUNTIME_UNAVAILABLE, "Too many runs are under way.", retry_after_s=1.0)
            yield [failed(crowded, pb.RuntimeUsage())]
            return
        run = run or self._begin(key, request)
        goes_on = begun is not None and run.token == request.fencing_token
        run.token = max(run.token, request.fencing_token)
        if begun is not None:
            run.recorded()
        if run.who is not None:
            self._active[run.who] = identity(request, NAME, run.token, self._catalogue, self._active[run.who])
        async for events in self._follow(key, run, behind_pause=goes_on):
            yield events

    async def reattach(self, request: ReattachRequest) -> Batches:
        key = (request.tenant_id, request.run_id)
        run = self._runs.get(key)
        if run is None:
            raise RetinueError(Reason.RUN_NOT_FOUND, "No attempt of this run is under way here.")
        async for events in self._follow(key, run):
            yield events

    async def export_context(self, request: ExportContextRequest) -> Sequence[ContextMessage]:
        return await contexts.export(self._pool.present(request.tenant_id), request)

    async def import_context(self, request: ImportContextRequest) -> Sequence[str]:
        place = self._pool.present(request.tenant_id)
        if place is None:
            text = "The tenant has no instance of this runtime yet; CreateInstance makes one."
            raise RetinueError(Reason.INSTANCE_NOT_FOUND, text)
        return contexts.take(place, request)

    def _begin(self, key: tuple[str, str], request: InvokeRequest) -> Run:
        attempt = Attempt(deadlines.timeout_s(request.run_time.ToMilliseconds() / 1000 or RUN_TIME_S))
        run = self._runs[key] = Run(attempt)
        # It takes this call's trace and tenant with it, and not its end.
        run.task = asyncio.create_task(self._execute(key, run, request), name="openclaw-run")
        return run

    async def _lost(self, request: InvokeRequest) -> Trouble:
        """A run that has begun calls is not here any more: have what may be left of it refused, and say so."""
        try:
            await self._fence(request)
        except RetinueError as error:
            return Trouble(error.reason, error.message)
        return troubles.after_calls(Trouble(Reason.RUNTIME_UNAVAILABLE, "The runtime has lost the run."))

    async def _follow(
        self, key: tuple[str, str], run: Run, *, behind_pause: bool = False
    ) -> AsyncIterator[list[RuntimeEvent]]:
        run.followers += 1
        if run.leaving is not None:
            run.leaving.cancel()
            run.leaving = None
        try:
            pauses = False
            async for events in run.follow(behind_pause=behind_pause):
                pauses = events[-1].HasField("paused")
                yield events
            if not pauses:
                self._forget(key, run)
        finally:
            run.followers -= 1
            if not run.followers and self._runs.get(key) is run:
                run.leaving = asyncio.get_running_loop().call_later(self._orphan_s, self._orphaned, key, run)

    def _orphaned(self, key: tuple[str, str], run: Run) -> None:
        """Nobody came back for it: what goes on costs money, and what is over is of no use any more."""
        if not run.followers:
            run.attempt.abort()
            self._forget(key, run)

    def _forget(self, key: tuple[str, str], run: Run) -> None:
        if self._runs.get(key) is run:
            del self._runs[key]

    async def _execute(self, key: tuple[str, str], run: Run, request: InvokeRequest) -> None:
        """Execute a run to its end, whatever happens."""
        work = Work(request, run)
        try:
            with telemetry.span("openclaw.run") as span:
                async with AsyncExitStack() as stack:
                    isolation = Isolation(request.isolation or Isolation.SHARED)
                    place_scope = self._pool.place(request.tenant_id, isolation, wait_s=PLACE_WAIT_S)
                    entering = partial(stack.enter_async_context, place_scope)
                    place = await run.attempt.wait(entering, PLACE_WAIT_S + ABORT_TIMEOUT_S)
                    span.set_attribute("instance.id", place.instance_id)
                    span.set_attribute("runtime.isolation", isolation.value)
                    await self._turn(work, place)
        except Trouble as trouble:
            self._fail(key, work, trouble)
        except RetinueError as error:
            self._fail(key, work, Trouble(error.reason, error.message, retry_after_s=error.retry_after_s))
        except Exception:
            log.exception("an attempt broke", run_id=request.run_id)
            self._fail(key, work, Trouble(Reason.INTERNAL, "Something went wrong inside; the trace id leads to it."))
        finally:
            if not run.over:  # this task itself is cancelled
                self._fail(key, work, troubles.aborted())
            if not run.followers and run.leaving is None:
                self._forget(key, run)

    def _fail(self, key: tuple[str, str], work: Work, trouble: Trouble) -> None:
        """End a run badly: its gateway would tell the same end to whoever asks with the same id again."""
        self._failures[key] = self._failures.pop(key, 0) + 1
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)
        if work.meter.trouble is not None and trouble.reason not in _OURS:
            trouble = work.meter.trouble
        if work.run.begun and trouble.retryable:
            trouble = troubles.after_calls(trouble)
        work.run.tell([failed(trouble, work.used())], last=True)

    async def _turn(self, work: Work, place: Place) -> None:
        request, run = work.request, work.run
        context: list[Line] = [(line.role, line.text) for line in request.context]
        sessions = contexts.sessions_of(place, request.tenant_id)
        session = sessions.open(request.session_id, request.contact, context)
        # A trace of its own: clients choose theirs, and two runs under one could not be told apart. Model calls are in
        # the run's trace all the same: our endpoint, which makes them, knows it.
        leg = secrets.token_hex(16)
        failures = self._failures.get((request.tenant_id, request.run_id), 0)
        call = RunCall(
            run_id=f"{request.run_id}.{failures}" if failures else request.run_id,
            agent_id=place.agent_id,
            session_key=session.key,
            text=words.enclose(request.text),
            system=request.persona,
            time_s=run.attempt.remaining_s(),
            traceparent=f"00-{leg}-{secrets.token_hex(8)}-01",
        )
        with self._proxy.run(
            instance_id=place.instance_id,
            tenant_id=request.tenant_id,
            run_id=request.run_id,
            trace_id=leg,
            model=request.model,
            parameters=parameters(request.parameters),
            on_reasoning=work.reason if request.reasoning else None,
            before=session.before,
            tools=list(request.tools),
            preface=request.preface,
            on_overflow=work.overflow,
        ) as work.meter:
            await self._fence(request)
            reach(Point.CALLING)
            who = place.instance_id, place.agent_id, session.key
            run.who = who
            self._active[who] = identity(request, NAME, run.token, self._catalogue, record=work.record)
            try:
                await self._follow_frames(work, place, call)
            finally:
                run.who = None
                del self._active[who]
        events, used, trouble = work.turn.end()
        place.report(trouble is None or trouble.reason is not Reason.RUNTIME_UNAVAILABLE or bool(work.meter.calls))
        work.usage = used
        run.tell(events)
        if trouble is not None:
            if trouble.reason is Reason.RUNTIME_UNAVAILABLE and work.meter.calls:
                raise Trouble(trouble.reason, str(trouble))  # without a time, as below
            raise trouble
        texts = [event.message_completed.text for event in run.told if event.HasField("message_completed")]
        cards = [event.card for event in run.told if event.HasField("card")]
        sessions.said(request.session_id, session, [("user", request.text), *(("assistant", text) for text in texts)])
        run.tell(ended(NAME, texts, cards, work.used()), last=True)

    async def _fence(self, request: InvokeRequest) -> None:
        """Have calls of former attempts refused: theirs may be a gateway that this process knows nothing of."""
        if self._box is None or not request.tools or (request.attempt == 1 and not request.checkpoint):
            return
        try:
            await self._box.fence(identity(request, NAME, request.fencing_token, self._catalogue).scope)
        except RetinueError as error:
            if error.reason is Reason.STALE_FENCING_TOKEN:
                raise
            # Without a box nothing runs; and the first call of this attempt does the same.
            log.info("a session was not fenced", run_id=request.run_id, detail=error.private or error.message)

    async def _follow_frames(self, work: Work, place: Place, call: RunCall) -> None:
        attempt, turn = work.run.attempt, work.turn
        async with aclosing(place.gateway.run(call)) as frames:
            try:
                while not turn.over:
                    frame = await attempt.wait(partial(anext, frames), attempt.remaining_s())
                    reach(Point.CALLED)
                    work.run.tell(turn.feed(frame))
            except StopAsyncIteration:
                raise troubles.invalid("The gateway's run has no end.") from None
            except Trouble as trouble:
                await _stop(work, place, call, settle=trouble.reason in _OURS)
                if trouble.reason is Reason.RUNTIME_UNAVAILABLE:
                    # Without a time: it had begun, and a run that does this to its gateway must not do so for ever.
                    raise Trouble(trouble.reason, str(trouble)) from None
                raise
            except asyncio.CancelledError:
                await _stop(work, place, call, settle=True)
                raise


async def _stop(work: Work, place: Place, call: RunCall, *, settle: bool) -> None:
    """Stop what goes on in the gateway, and see it settle, so that no tool of it meets the next attempt."""
    with suppress(Trouble, RetinueError, TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(ABORT_TIMEOUT_S):
            if await place.gateway.abort(call.session_key, call.run_id) and settle:
                async with aclosing(place.gateway.run(call)) as frames:  # joined again: the wait that ended closed it
                    while not work.turn.over:
                        work.turn.feed(await anext(frames))
