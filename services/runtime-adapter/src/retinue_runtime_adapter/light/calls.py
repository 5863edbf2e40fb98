"""Makes the tool calls of a step, and tells what they say and how they end."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog
from google.protobuf.struct_pb2 import Struct
from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import telemetry
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.crash_points import Point
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.words import ARGUMENTS_LENGTH_MAX, Wanted
from retinue_runtime_adapter.tools import arguments, ledger, metrics
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.bounded import bounded, plain
from retinue_runtime_adapter.tools.ledger import Entry
from retinue_runtime_adapter.tools.ports import RESULT_LENGTH_MAX, Call, Result, Said, Scope, Tool

TOOL_TIME_MAX_S = 660.0
"""For one call, whatever the tool's own bound is: the longest execution, and its box."""

PARALLEL_MAX = 8
"""Calls of a step side by side."""

TRIES_MAX = 2
"""Times that an idempotent call is made where what it needs does not answer."""

AGAIN_AFTER_S = 0.5
"""Pause before: a service that restarts is back within a second."""

TOLD_LENGTH_MAX = RESULT_LENGTH_MAX
"""Characters of one call's output that are told while it is under way; the result says the rest."""

LEAVE_TIMEOUT_S = 5.0
"""For calls to come to rest after they were cancelled."""

STOPPED = "The call was stopped before it was done; what it had done by then stays done."
"""What is recorded of a call that an abort, or the end of the run's time, has stopped."""

NAME_LENGTH_MAX = 64
"""Characters of a tool's name, as models' endpoints bound it."""

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")

_LOST = (Reason.DEPENDENCY_UNAVAILABLE, Reason.DRAINING, Reason.INTERNAL, Reason.RUN_TIMEOUT)
"""Errors that leave open whether a call was done."""

_BOX_LOST = "box_lost"
"""The check that the sandbox names where a box has ended under what ran in it; other boxes that cannot be had ran
nothing."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended."""

    entry: Entry
    result: Result
    duration_ms: int = 0

    @classmethod
    def of(cls, entry: Entry) -> "Ending":
        """The end of a call that is over."""
        return cls(entry, Result(entry.ok, entry.result))

    def event(self) -> RuntimeEvent:
        """Tell it."""
        result = self.result
        return RuntimeEvent(
            tool_finished=pb.ToolFinished(
                call_id=self.entry.call_id, ok=result.ok, result=result.text, duration_ms=self.duration_ms
            )
        )

    def ended(self, token: int) -> Entry:
        """The call's entry, now that it has ended."""
        return ledger.finished(self.entry, token, ok=self.result.ok, result=self.result.text)


def planned(call_id: str, wanted: Wanted) -> Entry:
    """A call as a model asked for it; what makes no sense is put down as something that does, and is not made."""
    tool = _UNFIT.sub("_", wanted.tool)[:NAME_LENGTH_MAX] or "unnamed"
    if wanted.too_long:
        refusal = f"The arguments have more than {ARGUMENTS_LENGTH_MAX} characters."
        return Entry(call_id=call_id, tool=tool, arguments="{}", refusal=refusal)
    try:
        given = arguments.read(wanted.arguments)
    except arguments.ArgumentsError as error:
        return Entry(call_id=call_id, tool=tool, arguments="{}", refusal=str(error))
    return Entry(call_id=call_id, tool=tool, arguments=msgspec.json.encode(given).decode())


def starting(entry: Entry) -> pb.ToolStarted:
    """Say that a call begins."""
    given = Struct()
    given.update(arguments.read(entry.arguments))
    return pb.ToolStarted(call_id=entry.call_id, tool=entry.tool, arguments=given)


def count_taken_over(entry: Entry) -> None:
    """Count what an attempt that is gone has left: made again, or of unknown outcome."""
    name = metrics.label(entry.tool)
    if entry.state == "planned":
        metrics.tool_retries.labels(name).inc()
    else:
        metrics.tool_calls.labels(name, "unknown" if entry.state == "unknown" else "refused").inc()


class Calls:
    """Calls under way. What they come to is a list of outputs and endings, which whoever follows takes away."""

    def __init__(self, tools: Tools, scope: Scope, attempt: Attempt) -> None:
        self._tools = tools
        self._scope = scope
        self._attempt = attempt
        self._outputs: list[RuntimeEvent] = []
        self._endings: list[Ending] = []
        self._heard = asyncio.Event()
        self._told: dict[str, int] = {}
        self._overtaken: RetinueError | None = None

    async def make(self, entries: Sequence[Entry]) -> AsyncGenerator[list[RuntimeEvent] | Ending, None]:
        """Make calls: side by side if each of them may be, else one after the other.

        Yields output and, for each call, its ending. Closing the generator stops what is under way. Raises Trouble
        where the attempt is over, behind an ending of each call; RetinueError where it was overtaken.
        """
        left = {entry.call_id: entry for entry in entries}
        work = asyncio.create_task(self._work(entries))
        work.add_done_callback(lambda _: self._heard.set())
        try:
            while left:
                await self._attempt.wait(self._heard.wait, self._attempt.remaining_s() + 1)
                self._heard.clear()
                outputs, endings = self._take()
                if outputs:
                    yield outputs
                for ending in endings:
                    del left[ending.entry.call_id]
                    yield ending
                if self._overtaken is not None:
                    raise self._overtaken
                if left and work.done() and not self._endings:
                    work.result()
        except Trouble:
            await _leave(work)
            _, endings = self._take()
            for ending in endings:
                left.pop(ending.entry.call_id, None)
                yield ending
            for entry in left.values():
                metrics.tool_calls.labels(metrics.label(entry.tool), "unknown").inc()
                yield Ending(entry, Result(False, STOPPED), 0)
            raise
        finally:
            await _leave(work)

    def _take(self) -> tuple[list[RuntimeEvent], list[Ending]]:
        outputs, endings = self._outputs, self._endings
        self._outputs, self._endings = [], []
        return outputs, endings

    async def _work(self, entries: Sequence[Entry]) -> None:
        found = [(entry, None if entry.refusal else await self._find(entry)) for entry in entries]
        if all(tool is None or tool.parallel for _, tool in found):
            room = asyncio.Semaphore(PARALLEL_MAX)
            async with asyncio.TaskGroup() as group:
                for entry, tool in found:
                    group.create_task(self._end(entry, tool, room))
        else:
            for entry, tool in found:
                await self._end(entry, tool, asyncio.Semaphore(1))

    async def _find(self, entry: Entry) -> Tool | None:
        return await self._tools.toolbox.find(self._scope, entry.tool)

    async def _end(self, entry: Entry, tool: Tool | None, room: asyncio.Semaphore) -> None:
        """Make one call and note its ending."""
        async with room:
            begun = time.monotonic()
            if entry.refusal:
                result, outcome = Result(False, entry.refusal), "refused"
            elif tool is None:
                result, outcome = Result(False, f"There is no tool {entry.tool!r} any more."), "refused"
            else:
                result, outcome = await self._call(entry, tool)
            duration_ms = round((time.monotonic() - begun) * 1000)
        metrics.tool_calls.labels(metrics.label(entry.tool), outcome).inc()
        result = Result(result.ok, bounded(plain(result.text), RESULT_LENGTH_MAX))
        self._endings.append(Ending(entry, result, duration_ms))
        self._heard.set()

    async def _call(self, entry: Entry, tool: Tool) -> tuple[Result, str]:
        """Call a tool; answers the result and what it counts as. Raises STALE_FENCING_TOKEN alone."""
        try:
            given = arguments.normalised(tool.parameters, arguments.read(entry.arguments))
        except arguments.ArgumentsError as error:
            return Result(False, str(error)), "refused"
        call = Call(entry.call_id, entry.tool, given, entry.approval_id)
        name = metrics.label(entry.tool)
        with telemetry.span("tool", attributes={"tool.name": entry.tool, "tool.call_id": entry.call_id}) as span:
            for left in reversed(range(TRIES_MAX if tool.idempotent else 1)):
                reach(Point.TOOL_CALLING)
                result, outcome = await self._try(call, tool)
                reach(Point.TOOL_CALLED)
                if outcome != "unknown" or not left:
                    break
                metrics.tool_retries.labels(name).inc()
                await asyncio.sleep(AGAIN_AFTER_S)
            span.set_attribute("tool.ok", result.ok)
            span.set_attribute("tool.outcome", outcome)
        return result, outcome

    async def _try(self, call: Call, tool: Tool) -> tuple[Result, str]:
        try:
            async with asyncio.timeout(TOOL_TIME_MAX_S):
                result = await tool.call(self._scope, call, partial(self._hear, call.call_id))
        except RetinueError as error:
            if error.reason is Reason.STALE_FENCING_TOKEN:
                self._overtaken = error
                self._heard.set()
                raise
            log.info("a tool failed", tool=call.tool, reason=str(error.reason), detail=error.private)
            lost = error.reason in _LOST or error.metadata.get("check") == _BOX_LOST
            open_end = " Whether it has done anything is not known." if lost and not tool.idempotent else ""
            return Result(False, f"{error.message}{open_end}"), "unknown" if lost else "failed"
        except TimeoutError:
            return Result(False, f"It took more than {TOOL_TIME_MAX_S:g} seconds and was stopped."), "failed"
        except Exception:
            log.exception("a tool broke", tool=call.tool)
            return Result(False, "The tool broke; whether it has done anything is not known."), "failed"
        return result, "ok" if result.ok else "failed"

    def _hear(self, call_id: str, said: Said) -> None:
        """Take up output, as much as is told of one call."""
        told = self._told.get(call_id, 0)
        text = plain(said.text)[: max(0, TOLD_LENGTH_MAX - told)]
        if text:
            self._told[call_id] = told + len(text)
            output = pb.ToolOutput(call_id=call_id, stream=said.stream, text=text)
            self._outputs.append(RuntimeEvent(tool_output=output))
            self._heard.set()


async def _leave(work: "asyncio.Task[None]") -> None:
    """Stop what is under way and wait until it has come to rest, within bounds."""
    work.cancel()
    await asyncio.wait([work], timeout=LEAVE_TIMEOUT_S)
    if work.done() and not work.cancelled():
        work.exception()  # whoever is not interested in it any more still has seen it
