"""The course of one attempt: what its runtime says, told as it comes and recorded step by step."""

from typing import Any

import msgspec
from retinue.runtime_adapter.v1.runtime_event_pb2 import Paused, RuntimeEvent, ToolStarted
from retinue_kit import ids, telemetry
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach

from retinue_router.crash_points import EVENT_POINTS, Point
from retinue_router.domain.context import COMPACTED
from retinue_router.encoding import plain
from retinue_router.ring import Ticket
from retinue_router.worker.clients import patiently
from retinue_router.worker.leases import Asked, Held, LeaseStore
from retinue_router.worker.outcome import Outcome, Saved, storable
from retinue_router.worker.teller import Teller, lost

SAID = ("text_delta", "reasoning_delta", "card", "message_completed")
"""What a runtime tells again that goes on from what a former attempt recorded."""

ENDS = ("finished", "failed", "approval_requested", "paused")
"""What a runtime's stream ends with, each in its own way."""


class Course:
    """Tells and records the events of one attempt, which may be spread over several calls of its runtime."""

    def __init__(self, ticket: Ticket, held: Held, teller: Teller, store: LeaseStore, clock: Clock) -> None:
        self._ticket = ticket
        self._held = held
        self._teller = teller
        self._store = store
        self._clock = clock
        saved = msgspec.msgpack.decode(held.checkpoint, type=Saved) if held.checkpoint else Saved()
        self.state = saved.state
        """What the runtime goes on from, as it was recorded last."""
        self._checkpoint: bytes | None = None
        # A runtime tells a message again that its checkpoint holds; here it is recorded already.
        self._told_before = len(saved.whole)
        self.outcome = Outcome(whole=list(saved.whole))
        self.decision: bytes | None = None
        """What policy decided, to be recorded with each step."""

    async def follow(self, event: RuntimeEvent) -> bool:
        """Tell one event; True if the stream ends with it. What `finished`, `failed` and `paused` mean, others know."""
        kind = event.WhichOneof("event")
        reach(EVENT_POINTS.get(kind))
        if self._told_before and kind in SAID:
            self._told_before -= kind == "message_completed"
            return False
        # A step that only the end follows is recorded with the end; a tool's end is recorded with the step that it was;
        # a pause brings a later step.
        if self._checkpoint is not None and kind not in ("finished", "tool_finished", "paused"):
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
        return kind in ENDS

    async def pause(self, paused: Paused) -> None:
        """Record in one commit what the runtime has planned and which calls begin; then it may be invoked again.

        It tells nothing again then, since it is the same attempt still.
        """
        await self._teller.freeze()
        for started in paused.starting:
            self._record_start(started)
        reach(Point.PAUSE_COMMITTING)
        await self._commit(paused.state)
        reach(Point.PAUSE_COMMITTED)
        self._told_before = 0

    def begin_anew(self) -> None:
        """Go on under another runtime, to which the former's state says nothing: it tells nothing again either."""
        self.state, self._told_before = b"", 0

    async def compact(self, data: dict[str, Any]) -> None:
        """Record that the session was summed up: what comes after begins there."""
        await self._teller.freeze()
        self._teller.record(COMPACTED, storable(data), self._teller.next_n())
        await self._commit(self.state)

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
            self._record_start(event.tool_started)
        else:
            done = event.tool_finished
            data = {
                "call_id": done.call_id,
                "ok": done.ok,
                "result": done.result,
                "duration_ms": done.duration_ms,
            }
            self._teller.record("tool.finished", storable(data), self._teller.next_n())
        await self._commit(self._checkpoint if self._checkpoint is not None else self.state)

    def _record_start(self, started: ToolStarted) -> None:
        arguments = plain(started.arguments, "arguments")
        data: dict[str, Any] = {"call_id": started.call_id, "tool": started.tool, "arguments": arguments}
        self._teller.record("tool.started", storable(data), self._teller.next_n())

    async def _commit(self, state: bytes) -> None:
        self._checkpoint, self.state = None, state
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
        call_id, tool, summary, pattern = storable([asked.call_id, asked.tool, asked.summary, asked.pattern])
        question = Asked(ids.new_id("apr"), teller.next_n(), call_id, tool, summary, asked.expire_s, pattern)
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
