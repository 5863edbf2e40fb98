"""OpenClaw as a runtime: an attempt finds its place, opens a session, follows its run. Read `ports.py` first.

A run in a gateway outlives the stream that asked for it: where a worker is lost, the run's next attempt joins it and is
told everything from the beginning.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial

import structlog
from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest, ReattachRequest, Runtime
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import deadlines, telemetry
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.adapter import Adapter, Batches
from retinue_runtime_adapter.crash_points import Point
from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.models import Catalogue
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.answer import ended, failed, repeated
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.wire import counted, parameters, read_checkpoint
from retinue_runtime_adapter.openclaw import words
from retinue_runtime_adapter.openclaw.permits import RunIdentity, identity
from retinue_runtime_adapter.openclaw.ports import Isolation, Meter, ModelProxy, Place, Pool, RunCall
from retinue_runtime_adapter.openclaw.sessions import Line, Sessions
from retinue_runtime_adapter.openclaw.turn import RunTurn
from retinue_runtime_adapter.tools.ports import Box

NAME = "openclaw"

RUN_TIME_S = 600.0
"""Time for an attempt whose request names none."""

OUTPUT_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes for an attempt whose request names no limit: a long book chapter."""

PLACE_WAIT_S = 60.0
"""Time for an instance, an agent and a free slot. A gateway begins within twenty seconds on a busy machine; who waits
for longer than this does better in the queue."""

ABORT_TIMEOUT_S = 5.0
"""Time for a gateway to stop a run: it takes a twentieth of a second."""

FAILURES_MAX = 10_000
"""Runs whose failed attempts are counted; one that is forgotten hears of its former failure again."""

SESSIONS = "sessions"
"""Under this name a place keeps what its OpenClaw sessions were told."""

_OURS = (Reason.RUN_TERMINAL, Reason.RUN_TIMEOUT, Reason.OUTPUT_TOO_LARGE)
"""Ends that we have made ourselves; in every other case a model's trouble says more than the gateway's words of it."""

RUNS_MAX = 4_096
"""Runs that are remembered at once; more than all gateways together can hold."""

Runs = dict[tuple[str, str, str], RunIdentity]
"""Runs under way by instance, agent and session key."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Run:
    """A run under way, or just over: everything it told, for whoever follows it."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.told: list[RuntimeEvent] = []
        self.over = False
        self.followers = 0
        self.leaving: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.token = 0
        """Of the latest attempt that follows it: tools are called under it."""
        self.who: tuple[str, str, str] | None = None
        """Where it goes on: instance, agent and session key."""
        self._more = asyncio.Event()

    def tell(self, events: Sequence[RuntimeEvent], *, last: bool = False) -> None:
        """Add what happened; nothing is added behind the end."""
        if self.over or not events:
            return
        self.told.extend(events)
        self.over = last
        self._more.set()

    async def follow(self) -> AsyncIterator[list[RuntimeEvent]]:
        """Yield everything from the beginning to the end, each batch as large as it has become meanwhile."""
        read = 0
        while True:
            if read < len(self.told):
                events, read = self.told[read:], len(self.told)
                yield events
            elif self.over:
                return
            else:
                self._more.clear()
                await self._more.wait()


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
    ) -> None:
        """`active` is kept up to date with the runs under way in gateways: who asks for tools is looked up there.

        `box` is where tools run, if agents have any.
        """
        self.name = NAME
        self._pool = pool
        self._proxy = proxy
        self._catalogue = catalogue
        self._active = active
        self._orphan_s = orphan_s
        self._version = version
        self._box = box
        self._runs: dict[tuple[str, str], Run] = {}
        self._failures: OrderedDict[tuple[str, str], int] = OrderedDict()

    def describe(self) -> Runtime:
        available, detail = self._pool.status()
        return Runtime(
            name=self.name,
            available=available,
            detail=detail,
            models=self._catalogue.names(),
            reattach=True,
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
        run = self._runs.get(key)
        if run is None and len(self._runs) >= RUNS_MAX:
            crowded = Trouble(Reason.RUNTIME_UNAVAILABLE, "Too many runs are under way.", retry_after_s=1.0)
            yield [failed(crowded, pb.RuntimeUsage())]
            return
        run = run or self._begin(key, request)
        run.token = max(run.token, request.fencing_token)
        if run.who is not None:
            self._active[run.who] = identity(request, NAME, run.token)
        async for events in self._follow(key, run):
            yield events

    async def reattach(self, request: ReattachRequest) -> Batches:
        key = (request.tenant_id, request.run_id)
        run = self._runs.get(key)
        if run is None:
            raise RetinueError(Reason.RUN_NOT_FOUND, "No attempt of this run is under way here.")
        async for events in self._follow(key, run):
            yield events

    def _begin(self, key: tuple[str, str], request: InvokeRequest) -> Run:
        attempt = Attempt(deadlines.timeout_s(request.run_time.ToMilliseconds() / 1000 or RUN_TIME_S))
        run = self._runs[key] = Run(attempt)
        # It takes this call's trace and tenant with it, and not its end.
        run.task = asyncio.create_task(self._execute(key, run, request), name="openclaw-run")
        return run

    async def _follow(self, key: tuple[str, str], run: Run) -> AsyncIterator[list[RuntimeEvent]]:
        run.followers += 1
        if run.leaving is not None:
            run.leaving.cancel()
            run.leaving = None
        try:
            async for events in run.follow():
                yield events
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
        work = _Work(request, run)
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

    def _fail(self, key: tuple[str, str], work: "_Work", trouble: Trouble) -> None:
        """End a run badly: its gateway would tell the same end to whoever asks with the same id again."""
        self._failures[key] = self._failures.pop(key, 0) + 1
        if len(self._failures) > FAILURES_MAX:
            self._failures.popitem(last=False)
        if work.meter.trouble is not None and trouble.reason not in _OURS:
            trouble = work.meter.trouble
        work.run.tell([failed(trouble, work.used())], last=True)

    async def _turn(self, work: "_Work", place: Place) -> None:
        request, run = work.request, work.run
        context: list[Line] = [(line.role, line.text) for line in request.context]
        sessions: Sessions = place.sessions.setdefault(SESSIONS, Sessions(place.agent_id, request.tenant_id))
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
        ) as work.meter:
            await self._fence(request)
            reach(Point.CALLING)
            who = place.instance_id, place.agent_id, session.key
            run.who = who
            self._active[who] = identity(request, NAME, run.token)
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
        if self._box is None or request.attempt == 1 or not request.tools:
            return
        try:
            await self._box.fence(identity(request, NAME, request.fencing_token).scope)
        except RetinueError as error:
            if error.reason is Reason.STALE_FENCING_TOKEN:
                raise
            # Without a box nothing runs; and the first call of this attempt does the same.
            log.info("a session was not fenced", run_id=request.run_id, detail=error.private or error.message)

    async def _follow_frames(self, work: "_Work", place: Place, call: RunCall) -> None:
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


async def _stop(work: "_Work", place: Place, call: RunCall, *, settle: bool) -> None:
    """Stop what goes on in the gateway, and see it settle, so that no tool of it meets the next attempt."""
    with suppress(Trouble, RetinueError, TimeoutError, StopAsyncIteration):
        async with asyncio.timeout(ABORT_TIMEOUT_S):
            if await place.gateway.abort(call.session_key, call.run_id) and settle:
                async with aclosing(place.gateway.run(call)) as frames:  # joined again: the wait that ended closed it
                    while not work.turn.over:
                        work.turn.feed(await anext(frames))


class _Work:
    """What one run has come to."""

    def __init__(self, request: InvokeRequest, run: Run) -> None:
        self.request = request
        self.run = run
        self.turn = RunTurn(
            reasoning=request.reasoning, size_max_bytes=request.output_size_bytes or OUTPUT_SIZE_MAX_BYTES
        )
        self.meter = Meter()
        self.usage: pb.RuntimeUsage | None = None
        self._reasoning_bytes = 0

    def reason(self, text: str) -> None:
        """Tell reasoning, which the model's endpoint is heard to say."""
        self._reasoning_bytes += len(text.encode())
        if self._reasoning_bytes <= (self.request.output_size_bytes or OUTPUT_SIZE_MAX_BYTES):
            self.run.tell([RuntimeEvent(reasoning_delta=pb.ReasoningDelta(text=text))])
        else:
            self.run.attempt.abort(Trouble(Reason.OUTPUT_TOO_LARGE, "The run produced more than a run may."))

    def used(self) -> pb.RuntimeUsage:
        """What was used: as it was paid, which our endpoint has seen, else as the gateway says."""
        meter = self.meter
        if not meter.calls and self.usage is not None:
            return self.usage
        return pb.RuntimeUsage(
            input_tokens=counted(meter.input_tokens),
            output_tokens=counted(meter.output_tokens),
            model=meter.model,
            cost_micros=meter.cost_micros,
        )
