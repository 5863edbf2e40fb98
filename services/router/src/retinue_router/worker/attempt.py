"""One attempt of one run: decide, invoke, tell, until it ends, parks, is asked to stop or loses its lease."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
import structlog
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent, RuntimeUsage
from retinue_kit import ids, telemetry, wire
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router.crash_points import EVENT_POINTS, Point
from retinue_router.encoding import plain
from retinue_router.ring import Ring, Ticket
from retinue_router.worker.clients import Agent, Directory, Policy, Runtimes, duration, patiently
from retinue_router.worker.keeper import Keeper, Lease
from retinue_router.worker.leases import Asked, ContextLine, Held, LeaseStore
from retinue_router.worker.teller import Teller, lost

HISTORY_SIZE_MAX_CHARS = 200_000
"""Text of earlier messages that a runtime is given, so that the call stays below a message's size."""

RETRY_DELAY_S = 0.5
"""Before the second attempt; doubled for each further one."""

OVERHEAD_FACTOR = 4
"""A runtime keeps its own limit on text; this many times as much in events of all kinds is one that does not."""

_RETRYABLE = frozenset({Reason.DEPENDENCY_UNAVAILABLE, Reason.INTERNAL})
log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class Outcome:
    """What became of an attempt so far."""

    state: str = "failed"
    text: str = ""
    whole: list[str] = field(default_factory=list)
    usage: dict[str, object] = field(default_factory=lambda: {"input_tokens": 0, "output_tokens": 0, "model": ""})
    error: dict[str, object] | None = None
    retryable: bool = False
    parked: bool = False
    ring: bool = False

    @property
    def output(self) -> str:
        """All that it said."""
        return "\n\n".join([*self.whole, self.text] if self.text else self.whole)


class Saved(msgspec.Struct):
    """What a checkpoint keeps: the runtime's own state, and the messages that are recorded already."""

    state: bytes = b""
    whole: list[str] = []


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
        ring: Ring,
        policy: Policy,
        directory: Directory,
        runtimes: Runtimes,
        clock: Clock,
    ) -> None:
        self._ticket = ticket
        self._held = held
        self._lease = lease
        self._teller = teller
        self._keeper = keeper
        self._store = store
        self._ring = ring
        self._policy = policy
        self._directory = directory
        self._runtimes = runtimes
        self._clock = clock
        self._checkpoint: bytes | None = None
        saved = msgspec.msgpack.decode(held.checkpoint, type=Saved) if held.checkpoint else Saved()
        self._state = saved.state
        # A runtime tells a message again that its checkpoint holds; here it is recorded already.
        self._told_before = len(saved.whole)
        self.outcome = Outcome(whole=list(saved.whole))
        self.agent = Agent("", "")
        self.decision: bytes | None = None

    async def run(self) -> Outcome:
        """Execute until the end. A wish to stop ends it as cancelled; a lost lease raises STALE_FENCING_TOKEN."""
        out = self.outcome
        try:
            self._lease.interruptible = True
            if self._lease.wish or self._lease.lost:
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
            out.state, out.error = "cancelled", None
        except RetinueError as error:
            if error.reason is Reason.STALE_FENCING_TOKEN:
                raise
            out.state, out.error = "failed", wire.to_json(wire.to_status(error))
            out.retryable = error.reason in _RETRYABLE
        except Exception:
            # A bug of ours: the run ends with it now, instead of once its leases have run out three times.
            log.exception("attempt broke", run_id=self._held.run_id)
            broken = RetinueError(Reason.INTERNAL, "Something went wrong inside; the trace id leads to it.")
            out.state, out.error, out.retryable = "failed", wire.to_json(wire.to_status(broken)), False
        finally:
            self._lease.interruptible = False
            await self._absorb()
        return out

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
        if held.attempt <= 1:
            reason = decision.rules[-1].reason if decision.rules else ""
            data = {"attempt": held.attempt, "runtime": decision.runtime, "reason": reason}
            self._teller.tell("run.started", data, recorded=True)
        await self._ring.tell_limits(
            self._ticket.tenant_id, decision.limits.concurrent_run_count, decision.limits.weight
        )
        if not self._keeper.is_valid(self._lease) and not await self._keeper.confirm(self._lease):
            raise lost()
        request = self._request(decision, self._context())
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
        )
        if held.input.parameters:
            request.parameters.update(held.input.parameters)
        return request

    async def _consume(self, request: adapter_pb.InvokeRequest, decision: policy_pb.Decision) -> None:
        """Follow the runtime until it says how it ended, and read to the end of its stream."""
        limit = decision.limits.output_size_bytes
        size, ended = 0, False
        async with aclosing(self._runtimes.invoke(request)) as events:
            async for event in events:
                size += event.ByteSize()
                if limit and size > OVERHEAD_FACTOR * limit:
                    raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The run produced more than a run may.")
                if not ended:
                    ended = await self._follow(event)
        if not ended:
            raise RetinueError.unavailable("runtime-adapter", private="the stream ended without an ending")

    async def _follow(self, event: RuntimeEvent) -> bool:
        """Tell one event; True if it was the last."""
        kind, out = event.WhichOneof("event"), self.outcome
        reach(EVENT_POINTS.get(kind))
        if self._told_before and kind in ("text_delta", "reasoning_delta", "card", "message_completed"):
            self._told_before -= kind == "message_completed"
            return False
        if self._checkpoint is not None and kind != "finished":
            await self._commit(self._checkpoint)  # a step that nothing but the end follows is recorded with the end
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
                out.state, out.usage = "succeeded", _usage(event.finished.usage)
                return True
            case "failed":
                out.state, out.error = "failed", storable(wire.to_json(event.failed.error))
                out.retryable, out.usage = event.failed.retryable, _usage(event.failed.usage)
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


V = TypeVar("V")


def storable(value: V) -> V:
    """A value of JSON as Postgres can hold it: null characters, which no one can see, are left out of its texts."""
    found: Any = value
    if isinstance(value, str):
        found = value.replace("\0", "")
    elif isinstance(value, dict):
        found = {storable(name): storable(element) for name, element in value.items()}
    elif isinstance(value, list):
        found = [storable(element) for element in value]
    return cast("V", found)


def retry_delay_s(attempt: int) -> float:
    """How long a run waits after its n-th attempt has failed."""
    return RETRY_DELAY_S * 2.0 ** (attempt - 1)


def _usage(usage: RuntimeUsage) -> dict[str, object]:
    model = storable(usage.model)
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "model": model}
