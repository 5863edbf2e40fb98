"""One attempt of one run: decide, invoke, tell, until it ends, parks, is asked to stop or loses its lease."""

import asyncio
from contextlib import aclosing

import msgspec
import structlog
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.portability.v1 import portability_service_pb2 as portability_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import Failed, Paused
from retinue_kit import telemetry, wire
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router.crash_points import Point
from retinue_router.domain.context import COMPACTED
from retinue_router.encoding import plain
from retinue_router.ring import Rings, Ticket
from retinue_router.worker.clients import (
    RUNTIME_ADAPTER,
    Agent,
    Directory,
    Policy,
    Portability,
    Runtimes,
    duration,
    patiently,
)
from retinue_router.worker.course import Course
from retinue_router.worker.given import Given, as_carried, as_claimed, compacted, invocation, room_in, target_of
from retinue_router.worker.keeper import Keeper, Lease
from retinue_router.worker.leases import ATTEMPTS_MAX, Allowed, Held, LeaseStore
from retinue_router.worker.measure import Measure
from retinue_router.worker.outcome import Outcome, not_yet_s, storable, usage_of
from retinue_router.worker.reporter import Reporter
from retinue_router.worker.teller import Teller, lost

CHAT = "chat"
"""The kind of a run that belongs to a conversation."""

PAUSES_MAX = 200
"""Pauses of one attempt: several for each of the twenty steps that a runtime makes in a run. More is one that goes on
and on."""

TIME_LEFT_MIN_S = 0.001
"""No time at all would be read as the runtime's own limit."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Attempt:
    """Executes one attempt. `run` answers its outcome, which the caller commits."""

    def __init__(
        self,
        ticket: Ticket,
        held: Held,
        lease: Lease,
        teller: Teller,
        keeper: Keeper,
        store: LeaseStore,
        rings: Rings,
        policy: Policy,
        directory: Directory,
        runtimes: Runtimes,
        portability: Portability,
        reporter: Reporter,
        clock: Clock,
    ) -> None:
        self._ticket = ticket
        self._held = held
        self._lease = lease
        self._teller = teller
        self._keeper = keeper
        self._store = store
        self._rings = rings
        self._policy = policy
        self._directory = directory
        self._runtimes = runtimes
        self._portability = portability
        self._reporter = reporter
        self._clock = clock
        self._course = Course(ticket, held, teller, store, clock)
        self.agent = Agent("", "")
        self._decided: policy_pb.Decision | None = None
        self._asked = False
        """Whether the runtime may have heard of the run."""
        self._begun = False
        """Whether the runtime has taken the run up: not until its adapter says so, since a call that meets an adapter
        as it stops is lost like one that was under way."""
        self._said = False
        """Whether the runtime has said anything but its end."""
        self._over = False
        """Whether it has said its end."""
        self._probing = False

    @property
    def outcome(self) -> Outcome:
        """What became of it so far."""
        return self._course.outcome

    @property
    def decision(self) -> bytes | None:
        """What policy decided, as it is stored; None until then."""
        return self._course.decision

    @property
    def attempts_max(self) -> int:
        """Attempts that the run may have: what policy says, within what a lost lease counts to."""
        return min(self._decided.limits.attempt_count or ATTEMPTS_MAX, ATTEMPTS_MAX) if self._decided else ATTEMPTS_MAX

    async def run(self) -> Outcome:
        """Execute until the end. A wish to stop ends it as cancelled, a release as queued; a lost lease raises
        STALE_FENCING_TOKEN.
        """
        out = self.outcome
        try:
            self._lease.interruptible = True
            if self._lease.wish or self._lease.lost or self._lease.released:
                self._lease.interrupt()
                await asyncio.sleep(0)
            await self._execute()
        except asyncio.CancelledError:
            if not self._lease.interrupted:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            if self._lease.lost:
                raise lost() from None
            if self._lease.wish:
                out.state, out.error = "cancelled", None
            elif out.state != "succeeded" and out.error is None:
                out.state = "queued"
        except RetinueError as error:
            if error.reason is Reason.STALE_FENCING_TOKEN:
                raise
            out.fail(error, decided=self._decided is not None, begun=self._begun, said=self._said)
            log.info("attempt failed", run_id=self._held.run_id, reason=str(error.reason), detail=error.private)
            # Trouble of our own stores, or with a bundle, says nothing of the runtime.
            if error.metadata.get("dependency", RUNTIME_ADAPTER if self._asked else "") == RUNTIME_ADAPTER:
                self._report_failure(error.reason)
        except Exception:
            # A bug of ours: the run ends with it now, instead of once its leases have run out three times.
            log.exception("attempt broke", run_id=self._held.run_id)
            broken = RetinueError(Reason.INTERNAL, "Something went wrong inside; the trace id leads to it.")
            out.fail(broken, decided=True, begun=True, said=True)
            out.retryable = False
        finally:
            self._lease.interruptible = False
            if self._probing and self._decided is not None:
                self._reporter.abandoned(self._ticket.tenant_id, self._decided.runtime, self._held.run_id)
            await self._absorb()
        await self._stop_runtime()
        return out

    async def _stop_runtime(self) -> None:
        """Stop what may go on by itself when nobody listens, for the next attempt to join, where there will be none."""
        decided = self._decided
        if decided is not None and self._asked and not self._over and self.outcome.is_final:
            await self._runtimes.abort(self._ticket.tenant_id, self._held.run_id, decided.runtime)

    def _report_failure(self, reason: Reason | None) -> None:
        decided = self._decided
        if decided is not None:
            self._probing = False
            self._reporter.failed(self._ticket.tenant_id, decided.runtime, self._held.run_id, reason)

    def _report_success(self) -> None:
        decided, probed = self._decided, self._probing
        if decided is not None:
            self._probing = False
            self._reporter.succeeded(
                self._ticket.tenant_id, decided.runtime, self._held.run_id, probed=probed, watched=decided.watched
            )

    async def _absorb(self) -> None:
        """Take in an interruption that came too late to stop anything, so that it cannot hit the commit."""
        task = asyncio.current_task()
        if self._lease.interrupted and task is not None and task.cancelling():
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                task.uncancel()

    async def _execute(self) -> None:
        held = self._held
        with telemetry.span("route_decision") as span:
            # Side by side: asked behind the decision, the query was time until the first token of each run with tools.
            decided, allowed = await asyncio.gather(self._decide(), self._allowed(), return_exceptions=True)
            if isinstance(decided, BaseException):
                raise decided
            decision = decided
            span.set_attribute("selected_agent", decision.runtime)
            span.set_attribute("decision.rule", decision.rules[-1].rule if decision.rules else "")
        reach(Point.DECIDED)
        self._decided, self._probing = decision, decision.probes
        if held.attempt <= 1 and not held.checkpoint:
            reason = decision.rules[-1].reason if decision.rules else ""
            data = {"attempt": held.attempt, "runtime": decision.runtime, "reason": reason}
            self._teller.tell("run.started", data, recorded=True)
        given = await self._given(decision)
        await self._rings.tell_limits(self._ticket, decision.limits.concurrent_run_count, decision.limits.weight)
        if not decision.tools:
            allowed = []  # and what became of the query does not matter
        elif isinstance(allowed, BaseException):
            raise allowed
        if not self._keeper.is_valid(self._lease) and not await self._keeper.confirm(self._lease):
            raise lost()
        request = invocation(self._ticket, held, self.agent, decision, given, allowed)
        request.checkpoint = self._course.state
        await self._runtimes.ready()
        self._asked = True
        reach(Point.INVOKING)
        with telemetry.span("agent_processing", runtime=decision.runtime) as span:
            await self._drive(request)
            span.set_attribute("response.length", len(self.outcome.output))
        await self._compact()

    async def _allowed(self) -> list[Allowed]:
        return await patiently(lambda: self._store.allowed(self._ticket.tenant_id), self._clock)

    async def _tool_runtime(self) -> str:
        """The runtime under which the run has called tools, which goes on with it. None begins without a checkpoint."""
        held, tenant_id = self._held, self._ticket.tenant_id
        if not held.checkpoint:
            return ""
        return await patiently(lambda: self._store.tool_runtime(tenant_id, held.run_id), self._clock)

    async def _decide(self) -> policy_pb.Decision:
        held, tenant_id = self._held, self._ticket.tenant_id
        self.agent, bound = await asyncio.gather(
            patiently(lambda: self._directory.agent(tenant_id), self._clock), self._tool_runtime()
        )
        request = policy_pb.DecideRequest(
            tenant_id=tenant_id,
            run_id=held.run_id,
            kind=held.kind,
            requested_runtime=held.input.runtime,
            session_runtime=bound or held.runtime,
            attempt=held.attempt,
            agent_id=self.agent.agent_id,
            tool_transaction_open=bool(bound),
        )
        if bound:
            request.session_runtime_age.CopyFrom(duration(0.0))
        elif held.runtime_age_s is not None:
            request.session_runtime_age.CopyFrom(duration(max(0.0, held.runtime_age_s)))
        decision = await patiently(lambda: self._policy.decide(request), self._clock)
        self._decide_on(decision)
        return decision

    def _decide_on(self, decision: policy_pb.Decision, given: Given | None = None) -> None:
        """Keep the decision, to be stored with the run: what it was made on, and how the context came over."""
        kept: dict[str, object] = {
            "runtime": decision.runtime,
            "model": decision.model,
            "isolation": decision.isolation,
            "switches_runtime": decision.switches_runtime,
            "rules": [{"rule": r.rule, "effect": r.effect, "reason": r.reason} for r in decision.rules],
        }
        if decision.HasField("snapshot"):
            kept["snapshot"] = plain(decision.snapshot, "snapshot")
        if given is not None:
            kept |= {"bundle": given.bundle, "losses": given.losses}
        self._course.decision = msgspec.json.encode(kept)

    async def _given(self, decision: policy_pb.Decision) -> Given:
        """What the runtime is told of what was said before. Another one than the session's is told it by a bundle, or
        does not begin.
        """
        held, bundle = self._held, Given("", [])
        if not decision.switches_runtime:
            return as_claimed(held)
        if held.kind == CHAT:
            request = portability_pb.CarryContextRequest(
                tenant_id=self._ticket.tenant_id,
                session_id=held.session_id,
                contact=held.contact,
                run_id=held.run_id,
                target=target_of(decision),
            )
            with telemetry.span("carry_context", runtime=decision.runtime):
                bundle = as_carried(held, await patiently(lambda: self._portability.carry(request), self._clock))
        switched = {"from": held.runtime, "to": decision.runtime, "bundle": bundle.bundle, "losses": bundle.losses}
        self._decide_on(decision, bundle)
        self._course.begin_anew()
        self._teller.tell("runtime.switched", switched, recorded=True)
        if bundle.lasting is not None:
            self._teller.tell(COMPACTED, storable(compacted(bundle.lasting)), recorded=True)
        return bundle if held.kind == CHAT else as_claimed(held)

    async def _compact(self) -> None:
        """Sum up the older part of a session whose conversation does not fit the model, and have the run go on with it.

        Nothing was said yet, so that nothing is said twice. Where there is nothing to sum up the run fails as it is.
        """
        held, out, decision = self._held, self.outcome, self._decided
        overflowed = out.state == "failed" and out.reason is Reason.MODEL_CONTEXT_OVERFLOW
        if not overflowed or self._said or held.kind != CHAT or held.attempt >= self.attempts_max or decision is None:
            return
        request = portability_pb.SummarizeSessionRequest(
            tenant_id=self._ticket.tenant_id,
            session_id=held.session_id,
            contact=held.contact,
            run_id=held.run_id,
            token_budget=room_in(target_of(decision).window_tokens),
            model=decision.model,
        )
        try:
            with telemetry.span("compact"):
                summary = await patiently(lambda: self._portability.summarize(request), self._clock)
        except RetinueError as error:
            log.info("not compacted", run_id=held.run_id, reason=str(error.reason), detail=error.private)
            return
        await self._course.compact(compacted(summary))
        out.again = True

    async def _drive(self, request: adapter_pb.InvokeRequest) -> None:
        """Invoke the runtime until it has said its end. What it plans at a pause is recorded before it goes on.

        Its state at a pause is given back at most once under the attempt's token: a call that is lost then may have
        begun what was planned, and only an attempt with a token of its own is told apart from it. The runtime knows by
        the token in its state: under that very token it goes on where it was and tells nothing again; under another it
        tells the whole messages again that its state holds, which are recorded, as after any checkpoint.
        """
        time_s = request.run_time.ToTimedelta().total_seconds()
        until = self._clock.monotonic() + time_s
        measure, pauses = Measure(request.output_size_bytes), 0
        while (paused := await self._consume(request, measure)) is not None:
            pauses += 1
            if pauses > PAUSES_MAX:
                raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The run made more steps than a run may.")
            await self._course.pause(paused)
            left_s = until - self._clock.monotonic()
            if time_s and left_s <= 0:
                raise RetinueError(Reason.RUN_TIMEOUT, "The time for the run is over.")
            request.checkpoint = self._course.state
            request.run_time.CopyFrom(duration(max(left_s, TIME_LEFT_MIN_S) if time_s else 0.0))
            if not self._keeper.is_valid(self._lease) and not await self._keeper.confirm(self._lease):
                raise lost()
            await self._runtimes.ready()
            self._begun = False
            reach(Point.REINVOKING)

    async def _consume(self, request: adapter_pb.InvokeRequest, measure: Measure) -> Paused | None:
        """Follow the runtime until it says how it ended, and to the end of its stream; answers what it paused for."""
        ended = ""
        paused: Paused | None = None
        async with aclosing(self._runtimes.invoke(request, self._begin)) as events:
            async for event in events:
                measure.take(event)
                self._begun = True
                if ended:
                    continue
                kind = event.WhichOneof("event") or ""
                if kind != "failed":
                    self._said = True
                    if self._probing:
                        self._report_success()  # its first sign of life: others need not wait for its end
                if await self._course.follow(event):
                    ended = kind
                    self._over = kind != "paused"
                    paused = event.paused if kind == "paused" else None
                if kind == "finished":
                    self.outcome.state, self.outcome.usage = "succeeded", usage_of(event.finished.usage)
                    self._report_success()
                elif kind == "failed":
                    self._fail(event.failed)
        if not ended:
            raise RetinueError.unavailable(RUNTIME_ADAPTER, private="the stream ended without an ending")
        return paused

    def _begin(self) -> None:
        self._begun = True

    def _fail(self, failed: Failed) -> None:
        """End as the runtime says that it failed."""
        out, error = self.outcome, wire.from_status(failed.error, RUNTIME_ADAPTER)
        out.state, out.error = "failed", storable(wire.to_json(failed.error))
        out.retryable, out.usage = failed.retryable, usage_of(failed.usage)
        out.reason = error.reason
        # One that lost its process on the way says no time: a run that does that to it must not do so for ever.
        if error.retry_after_s is not None and out.retryable:
            out.put_back_s = not_yet_s(error, said=self._said)
        # Without room for one it may well serve others.
        self._report_failure(error.reason if out.put_back_s is None else Reason.QUEUE_FULL)
