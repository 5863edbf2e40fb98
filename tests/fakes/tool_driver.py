"""Drives a runtime's attempts as a worker does, with tools that count what they do, and dies wherever a test wants."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids
from retinue_kit.clock import SystemClock
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.ports import Call, Progress, Result, Scope, Tool, Verdict

ENDS = ("finished", "failed", "approval_requested", "paused")
ROUNDS_MAX = 100
"""Pauses that one drive follows."""

ANY = {"type": "object", "properties": {"n": {"type": "integer"}, "text": {"type": "string"}}}


class CountingTool:
    """A tool whose effects are counted by call id; `before` is awaited before each, `after` behind it."""

    def __init__(
        self,
        name: str = "count",
        *,
        parallel: bool = False,
        idempotent: bool = False,
        parameters: Mapping[str, Any] = ANY,
        do: Callable[[Scope, Call, Progress], Awaitable[Result]] | None = None,
    ) -> None:
        self.name, self.description, self.parameters = name, f"Counts as {name}.", parameters
        self.parallel, self.idempotent = parallel, idempotent
        self.effects: Counter[str] = Counter()
        self.calls: list[Call] = []
        self.cancelled = 0
        self._do = do

    async def call(self, scope: Scope, call: Call, progress: Progress) -> Result:
        self.effects[call.call_id] += 1
        self.calls.append(call)
        try:
            if self._do is not None:
                return await self._do(scope, call, progress)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Result(True, f"{self.name} did {call.arguments.get('n', 0)}")


class Box:
    """Notes under which tokens a session was fenced."""

    def __init__(self) -> None:
        self.fenced: list[int] = []
        self.error: Exception | None = None

    async def fence(self, scope: Scope) -> None:
        if self.error is not None:
            raise self.error
        self.fenced.append(scope.fencing_token)


class Shelf:
    """A toolbox of what it is given."""

    def __init__(self, *tools: Tool) -> None:
        self.tools = {tool.name: tool for tool in tools}

    async def offered(self, scope: Scope, names: Sequence[str]) -> Sequence[Tool]:
        return [self.tools[name] for name in names if name in self.tools]

    async def find(self, scope: Scope, name: str) -> Tool | None:
        return self.tools.get(name)


class Rules:
    """An authority that answers by the tool's name; an exception is raised instead of answered."""

    def __init__(self, **effects: Any) -> None:
        self.effects = effects
        self.asked: list[tuple[Scope, Call, bool]] = []

    async def authorize(self, scope: Scope, call: Call, *, approved: bool = False) -> Verdict:
        self.asked.append((scope, call, approved))
        effect = self.effects.get(call.tool, "allow")
        if isinstance(effect, Exception):
            raise effect
        if effect == "ask" and approved:
            effect = "allow"
        return Verdict(effect, reason=f"{call.tool} is {effect}ed here.", pattern=f"{call.tool}:*", expire_s=30)


class Driver:
    """One run. What a worker would commit survives `drive`, what it would not is gone."""

    def __init__(self, invoke: Callable[[pb.InvokeRequest], Any], text: str, **fields: Any) -> None:
        made = {"tenant_id": "ten_a", "run_id": ids.new_id("run"), "session_id": ids.new_id("ses"), "runtime": "light"}
        self._invoke = invoke
        self._fields = {**made, "text": text, **fields}
        self.token = 0
        self.attempt = 0
        self.state = b""
        self.whole: list[str] = []
        self.recorded: list[RuntimeEvent] = []
        """Starts, ends and messages, as they were committed."""
        self.told: list[RuntimeEvent] = []
        """Every event of the latest drive that a worker would have heeded."""
        self.seen = 0
        """Events of the latest drive, all of them."""
        self.ends: list[str] = []

    async def drive(self, *, die_after: int = -1, same_attempt: bool = False, **fields: Any) -> str:
        """Make an attempt; answers how it ended. With a number, the worker dies before it has heeded that event."""
        self.token += 1
        self.attempt += not same_attempt
        self.told, self.seen = [], 0
        skip = len(self.whole)
        for _ in range(ROUNDS_MAX):
            request = pb.InvokeRequest(
                **{**self._fields, **fields},
                attempt=max(self.attempt, 1),
                fencing_token=self.token,
                checkpoint=self.state,
            )
            end, skip = await self._follow(request, skip, die_after)
            if end != "paused":
                self.ends.append(end)
                return end
            skip = 0
        raise AssertionError("it pauses for ever")

    async def _follow(self, request: pb.InvokeRequest, skip: int, die_after: int) -> tuple[str, int]:
        pending: list[RuntimeEvent] = []
        checkpoint: bytes | None = None
        end = ""
        async with aclosing(self._invoke(request)) as batches:
            async for batch in batches:
                for event in batch:
                    if self.seen == die_after:
                        return "died", skip
                    self.seen += 1
                    kind = event.WhichOneof("event")
                    assert not end, f"{kind} behind {end}"
                    if skip and kind in ("text_delta", "reasoning_delta", "card", "message_completed"):
                        skip -= kind == "message_completed"
                        continue
                    self.told.append(event)
                    if checkpoint is not None and kind not in ("finished", "tool_finished", "paused"):
                        self._commit(checkpoint, pending)
                        checkpoint = None
                    if kind == "message_completed" or kind == "card":
                        pending.append(event)
                    elif kind == "checkpoint":
                        checkpoint = event.checkpoint.state
                    elif kind == "tool_finished":
                        pending.append(event)
                        self._commit(self.state if checkpoint is None else checkpoint, pending)
                        checkpoint = None
                    elif kind == "paused":
                        starts = [RuntimeEvent(tool_started=started) for started in event.paused.starting]
                        self._commit(event.paused.state, [*pending, *starts])
                        pending = []
                    elif kind == "approval_requested":
                        self._commit(event.approval_requested.checkpoint, [*pending, event])
                    elif kind == "finished":
                        self._commit(self.state if checkpoint is None else checkpoint, pending)
                    end = kind if kind in ENDS else ""
        assert end, "the stream ended without an ending"
        return end, skip

    def _commit(self, state: bytes, events: list[RuntimeEvent]) -> None:
        self.state = state
        self.recorded += events
        self.whole += [event.message_completed.text for event in events if event.HasField("message_completed")]
        events.clear()

    @property
    def text(self) -> str:
        """All that it said as messages."""
        return "\n".join(self.whole)

    def starts(self) -> list[str]:
        """Ids of calls whose start is recorded."""
        return [event.tool_started.call_id for event in self.recorded if event.HasField("tool_started")]

    def finishes(self) -> list[Any]:
        """Recorded ends of calls."""
        return [event.tool_finished for event in self.recorded if event.HasField("tool_finished")]

    def of(self, kind: str) -> list[Any]:
        """Events of a kind that the latest drive told."""
        return [getattr(event, kind) for event in self.told if event.HasField(kind)]


class Runtime:
    """A light runtime with tools: `drive(text)` makes a run of it and its first attempt."""

    def __init__(self, base_url: str, tools: Sequence[CountingTool], rules: Rules) -> None:
        settings = Settings(address="", model_base_url=base_url)
        self.box, self.rules, self.names = Box(), rules, [tool.name for tool in tools]
        made = Tools(Shelf(*tools), rules, self.box)  # type: ignore[arg-type]
        self.adapter = LightAdapter(settings, read_models(settings), session(settings), SystemClock(), made)

    def run(self, text: str, **fields: Any) -> Driver:
        """Make a run, of which no attempt is made yet."""
        return Driver(self.adapter.invoke, text, **{"tools": self.names, **fields})

    async def drive(self, text: str, **fields: Any) -> Driver:
        """Make a run and its first attempt."""
        run = self.run(text, **fields)
        await run.drive()
        return run
