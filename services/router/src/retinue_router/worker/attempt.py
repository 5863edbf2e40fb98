"""One attempt of one run: decide, invoke, tell, until it ends, parks, is asked to stop or loses its lease."""

import asyncio
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids, telemetry, wire
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router.crash_points import EVENT_POINTS, Point
from retinue_router.encoding import plain
from retinue_router.ring import Rings, Ticket
from retinue_router.worker.clients import RUNTIME_ADAPTER, Agent, Directory, Policy, Runtimes, duration, patiently
from retinue_router.worker.keeper import Keeper, Lease
from retinue_router.worker.leases import ATTEMPTS_MAX, Asked, ContextLine, Held, LeaseStore
from retinue_router.worker.outcome import Outcome, Saved, not_yet_s, storable, usage_of
from retinue_router.worker.reporter import Reporter
from retinue_router.worker.teller import Teller, lost

HISTORY_SIZE_MAX_CHARS = 200_000
"""Text of earlier messages that a runtime is given, so that the call stays below a message's size."""

OVERHEAD_FACTOR = 4
"""A runtime keeps its own limit on text; this many times as much in events of all kinds is one that does not."""

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
        self._reporter = reporter
        self._clock = clock
        self._checkpoint: bytes | None = None
        saved = msgspec.msgpack.decode(held.checkpoint, type=Saved) if held.checkpoint else Saved()
        self._state = saved.state
        # A runtime tells a message again that its checkpoint holds; here it is recorded already.
        self._told_before = len(saved.whole)
        self.outcome = Outcome(whole=list(saved.whole))
        self.agent = Agent("", "")
        self.decision: bytes | None = None
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
            # Trouble of our own stores says nothing of the runtime.
            if error.metadata.get("dependency", RUNTIME_ADAPTER) == RUNTIME_ADAPTER:
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
            decision = await self._decide()
            span.set_attribute("selected_agent", decision.runtime)
            span.set_attribute("decision.rule", decision.rules[-1].rule if decision.rules else "")
        reach(Point.DECIDED)
        self._decided, self._probing = decision, decision.probes
        if held.attempt <= 1 and not held.checkpoint:
            reason = decision.rules[-1].reason if decision.rules else ""
            data = {"attempt": held.attempt, "runtime": decision.runtime, "reason": reason}
            self._teller.tell("run.started", data, recorded=True)
        await self._rings.tell_limits(self._ticket, decision.limits.concurrent_run_count, decision.limits.weight)
        if not self._keeper.is_valid(self._lease) and not await self._keeper.confirm(self._lease):
            raise lost()
        request = self._request(decision, self._context())
        await self._runtimes.ready()
        self._asked = True
        reach(Point.INVOKING)
        with telemetry.span("agent_processing", runtime=decision.runtime) as span:
            await self._consume(request, decision)
            span.set_attribute("response.length", len(self.outcome.output))

    async def _decide(self) -> policy_pb.Decision:
        held, tenant_id = self._held, self._ticket.tenant_id
        request = policy_pb.DecideRequest(
            tenant_id=tenant_id,
            run_id=held.run_id,
            kind=held.kind,
            requested_runtime=held.input.runtime,
            session_runtime=held.runtime,
            attempt=held.attempt,
        )
        if held.runtime_age_s is not None:
            request.session_runtime_age.CopyFrom(duration(max(0.0, held.runtime_age_s)))
        decision, self.agent = await asyncio.gather(
            patiently(lambda: self._policy.decide(request), self._clock),
            patiently(lambda: self._directory.agent(tenant_id), self._clock),
        )
        rules = [{"rule": r.rule, "effect": r.effect, "reason": r.reason} for r in decision.rules]
        self.decision = msgspec.json.encode(
            {
                "runtime": decision.runtime,
                "model": decision.model,
                "switches_runtime": decision.switches_runtime,
                "rules": rules,
            }
        )
        return decision

    def _context(self) -> list[ContextLine]:
        """What was said before, oldest first, as much of its end as a runtime is given."""
        size, kept = 0, []
        for line in [*self._held.history, *reversed(self._held.input.context)]:
            size += len(line.text)
            if size > HISTORY_SIZE_MAX_CHARS:
                break
            kept.append(line)
        return kept[::-1]

    def _request(self, decision: policy_pb.Decision, context: list[ContextLine]) -> adapter_pb.InvokeRequest:
        held = self._held
        request = adapter_pb.InvokeRequest(
            tenant_id=self._ticket.tenant_id,
            run_id=held.run_id,
            session_id=held.session_id,
            attempt=held.attempt,
            fencing_token=held.token,
            runtime=decision.runtime,
            model=decision.model,
            persona=self.agent.persona,
            context=[adapter_pb.ContextMessage(role=line.role, text=line.text) for line in context],
            text=held.input.text,
            reasoning=held.input.reasoning,
            checkpoint=self._state,
            approvals=[
                adapter_pb.ApprovalDecision(approval_id=a.approval_id, call_id=a.call_id, decision=a.decision)
                for a in held.approvals
            ],
            run_time=decision.limits.run_time,
            output_size_bytes=decision.limits.output_size_bytes,
            contact=held.contact,
            isolation=decision.isolation,
        )
        if held.input.parameters:
            request.parameters.update(held.input.parameters)
        return request

    async def _consume(self, request: adapter_pb.InvokeRequest, decision: policy_pb.Decision) -> None:
        """Follow the runtime until it says how it ended, and read to the end of its stream."""
        limit = decision.limits.output_size_bytes
        size, ended = 0, False
        async with aclosing(self._runtimes.invoke(request, self._begin)) as events:
            async for event in events:
                size += event.ByteSize()
                if limit and size > OVERHEAD_FACTOR * limit:
                    raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The run produced more than a run may.")
                self._begun = True
                if not ended:
                    if event.WhichOneof("event") != "failed":
                        self._said = True
                        if self._probing:
                            self._report_success()  # its first sign of life: others need not wait for its end
                    self._over = ended = await self._follow(event)
        if not ended:
            raise RetinueError.unavailable(RUNTIME_ADAPTER, private="the stream ended without an ending")

    def _begin(self) -> None:
        self._begun = True

    async def _follow(self, event: RuntimeEvent) -> bool:
        """Tell one event; True if it was the last."""
        kind, out = event.WhichOneof("event"), self.outcome
        reach(EVENT_POINTS.get(kind))
        if self._told_before and kind in ("text_delta", "reasoning_delta", "card", "message_completed"):
            self._told_before -= kind == "message_completed"
            return False
        # A step that only the end follows is recorded with the end; a tool's end is recorded with the step that it was.
        if self._checkpoint is not None and kind not in ("finished", "tool_finished"):
            await self._commit(self._checkpoint)
        match kind:
            case "text_delta" | "reasoning_delta" | "tool_output":
                self._tell(event)
            case "message_completed":
                await self._complete(event.message_completed.text)
            case "card":
                card = event.card
                data = {"kind": card.kind, "title": card.title, "body": plain(card.body, "body")}
                self._teller.tell("card", storable(data), recorded=True)
            case "tool_started" | "tool_finished":
                await self._record_tool(event)
            case "checkpoint":
                self._checkpoint = event.checkpoint.state
            case "approval_requested":
                await self._park(event)
                return True
            case "finished":
                out.state, out.usage = "succeeded", usage_of(event.finished.usage)
                self._report_success()
                return True
            case "failed":
                error = wire.from_status(event.failed.error, RUNTIME_ADAPTER)
                out.state, out.error = "failed", storable(wire.to_json(event.failed.error))
                out.retryable, out.usage = event.failed.retryable, usage_of(event.failed.usage)
                out.reason = error.reason
                # One that lost its process on the way says no time: a run that does that to it must not do so for ever.
                if error.retry_after_s is not None and out.retryable:
                    out.put_back_s = not_yet_s(error, said=self._said)
                # Without room for one it may well serve others.
                self._report_failure(error.reason if out.put_back_s is None else Reason.QUEUE_FULL)
                return True
        return False

    def _tell(self, event: RuntimeEvent) -> None:
        """Tell what is tentative."""
        kind = event.WhichOneof("event")
        if kind == "text_delta":
            text, replace = storable(event.text_delta.text), event.text_delta.replace
            self.outcome.text = text if replace else self.outcome.text + text
            self._teller.tell("assistant.delta", {"text": text, "replace": True} if replace else {"text": text})
        elif kind == "tool_output":
            tool = event.tool_output
            self._teller.tell("tool.output", {"call_id": tool.call_id, "stream": tool.stream, "text": tool.text})
        elif self._held.input.reasoning:
            self._teller.tell("reasoning.delta", {"text": event.reasoning_delta.text})

    async def _complete(self, text: str) -> None:
        text = storable(text)
        await self._teller.freeze()
        self.outcome.whole.append(text)
        self.outcome.text = ""
        data = {"message_id": ids.new_id("msg"), "text": text}
        self._teller.record("assistant.message", data, self._teller.next_n())

    async def _record_tool(self, event: RuntimeEvent) -> None:
        """Commit a tool's start before it runs, and its end before it is told."""
        await self._teller.freeze()
        if event.WhichOneof("event") == "tool_started":
            started = event.tool_started
            arguments = plain(started.arguments, "arguments")
            data: dict[str, Any] = {"call_id": started.call_id, "tool": started.tool, "arguments": arguments}
            self._teller.record("tool.started", storable(data), self._teller.next_n())
        else:
            done = event.tool_finished
            data = {
                "call_id": done.call_id,
                "ok": done.ok,
                "result": done.result,
                "duration_ms": done.duration_ms,
            }
            self._teller.record("tool.finished", storable(data), self._teller.next_n())
        await self._commit(self._checkpoint if self._checkpoint is not None else self._state)

    async def _commit(self, state: bytes) -> None:
        self._checkpoint, self._state = None, state
        saved = msgspec.msgpack.encode(Saved(state, self.outcome.whole))
        reach(Point.CHECKPOINT_COMMITTING)
        with telemetry.span("checkpoint"):
            entries = await patiently(
                lambda: self._store.checkpoint(
                    self._ticket, self._held.token, self._held.run_id, self._teller.unrecorded(), saved,
                    self.decision or b"{}",
                ),
                self._clock,
            )  # fmt: skip
        if entries is None:
            raise lost()
        reach(Point.CHECKPOINT_COMMITTED)
        await self._teller.publish(entries)
        reach(Point.CHECKPOINT_PUBLISHED)

    async def _park(self, event: RuntimeEvent) -> None:
        asked, teller, held = event.approval_requested, self._teller, self._held
        await teller.freeze()
        call_id, tool, summary = storable([asked.call_id, asked.tool, asked.summary])
        question = Asked(ids.new_id("apr"), teller.next_n(), call_id, tool, summary, asked.expire_s)
        saved = msgspec.msgpack.encode(Saved(asked.checkpoint, self.outcome.whole))
        reach(Point.PARK_COMMITTING)
        answer = await self._store.park(
            self._ticket,
            held.token,
            held.run_id,
            teller.unrecorded(),
            saved,
            self.decision or b"{}",
            question,
        )
        if answer is None:
            raise lost()
        reach(Point.PARK_COMMITTED)
        entries, self.outcome.ring = answer
        self.outcome.parked = True
        await teller.publish(entries)
        reach(Point.PARK_PUBLISHED)
