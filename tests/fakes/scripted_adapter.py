"""A runtime adapter that does what a message says, step by step, and passes every other message on to the real one.

    python tests/fakes/scripted_adapter.py     with RETINUE_ADDRESS, RETINUE_UPSTREAM_ADDRESS, RETINUE_LEDGER_FILE

A message is a script if it begins with `#script` and JSON: a list of actions, each a list of its name and arguments.

    ["step", NAME]            a model call: written to the ledger
    ["words", TEXT, MS]       text, word by word, MS milliseconds apart
    ["reasoning", TEXT]       reasoning
    ["card", TITLE]           a card
    ["say"]                   the text since the last message is a message
    ["checkpoint"]            what was done so far need not be done again
    ["tool", CALL_ID]         a tool call: its effect is written to the ledger, its end is recorded with a checkpoint
    ["calls", IDS, AGAIN]     tool calls of one step: planned, begun by a pause, then each is a "call" in the ledger and
                              its end is recorded. One whose end is not known is made again only where AGAIN says that
                              it may be ("repeat" in the ledger); else its outcome stays unknown
    ["approval", CALL_ID, PATTERN]  waits for an approval, unless it is decided; then tells the decision as text; the
                              pattern, which may be left out, is what could be allowed for good
    ["fail", RETRYABLE]       fails
    ["fail_once"]             fails in the run's first attempt, in a way that another attempt can mend
    ["not_yet"]               has no room for the run when it first comes, which is no attempt of it
    ["pause", MS]             waits

Every line of the ledger is written under the attempt's fencing token, and not at all where a higher one was seen.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import msgspec
from google.rpc import code_pb2, status_pb2
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue.runtime_adapter.v1 import runtime_event_pb2 as ev
from retinue_kit import process, wire
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Server, Service
from retinue_runtime_adapter.domain.fencing import Fences

MARK = "#script "
EXPIRE_S = 60
CALL_TIMEOUT_S = 700.0
"""Longer than an attempt may take: the caller's own deadline is kept."""

UPSTREAM_TIMEOUT_S = 10.0
"""How long a worker waits for an adapter that restarts."""

FAIL_ONCE_RUNS_MAX = 10_000
"""Runs whose failure is remembered; then counting begins anew."""


NOT_YET_S = 0.1
"""When a run for which there is no room may be asked for again."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from RETINUE_<FIELD>."""

    address: str
    """Where to listen."""
    upstream_address: str
    """The real adapter."""
    ledger_file: Path
    """Where steps and effects are written, a line of JSON each."""


class Line(msgspec.Struct):
    """A line of the ledger."""

    run_id: str
    kind: str
    """"step", "effect", "call" or "repeat"."""
    name: str
    token: int
    attempt: int


class State(msgspec.Struct):
    """What a checkpoint holds."""

    at: int = 0
    whole: list[str] = []
    token: int = 0
    """The attempt's, where it was written at a pause or after one: under it, nothing is told again."""
    begun: list[str] = []
    """Calls of the action at `at` that have begun, under the token."""
    ended: list[str] = []
    """Those of them whose end is recorded."""


def read_script(text: str) -> list[list[Any]] | None:
    """Read a message's script; None if it is a message like any other."""
    if not text.startswith(MARK):
        return None
    return msgspec.json.decode(text.removeprefix(MARK), type=list[list[Any]])


def _read_state(data: bytes) -> State:
    try:
        return msgspec.json.decode(data, type=State)
    except msgspec.DecodeError:
        return State()


class Scripted:
    """One attempt at one script."""

    def __init__(self, request: pb.InvokeRequest, ledger: int, fences: Fences, failed: set[str]) -> None:
        self._request = request
        self._ledger = ledger
        self._fences = fences
        self._failed = failed
        self._state = _read_state(request.checkpoint)
        self._text = ""

    async def events(self, script: list[list[Any]]) -> AsyncIterator[ev.RuntimeEvent]:
        """Do what is left of it."""
        mine = self._state.token == self._request.fencing_token
        for told in [] if mine else self._state.whole:
            for event in (_delta(told), ev.RuntimeEvent(message_completed=ev.MessageCompleted(text=told))):
                yield event
        for at in range(self._state.at, len(script)):
            name, *arguments = script[at]
            async for event in getattr(self, f"_{name}")(at, *arguments):
                yield event
                if event.WhichOneof("event") in ("failed", "approval_requested", "paused"):
                    return
        async for event in self._say(len(script)):
            yield event
        usage = ev.RuntimeUsage(input_tokens=1, output_tokens=1, model="scripted")
        yield ev.RuntimeEvent(finished=ev.Finished(usage=usage))

    def _write(self, kind: str, name: str) -> None:
        request = self._request
        self._fences.admit(request.tenant_id, request.session_id, request.fencing_token)
        line = Line(request.run_id, kind, name, request.fencing_token, request.attempt)
        os.write(self._ledger, msgspec.json.encode(line) + b"\n")

    def _saved(self, at: int, begun: list[str] | None = None, ended: list[str] | None = None) -> bytes:
        state = State(at, self._state.whole, self._request.fencing_token, begun or [], ended or [])
        return msgspec.json.encode(state)

    async def _step(self, at: int, name: str) -> AsyncIterator[ev.RuntimeEvent]:
        self._write("step", name)
        return
        yield

    async def _words(self, at: int, text: str, ms: int) -> AsyncIterator[ev.RuntimeEvent]:
        for number, word in enumerate(text.split(" ")):
            piece = f" {word}" if number or self._text else word
            self._text += piece
            yield _delta(piece)
            await asyncio.sleep(ms / 1000)

    async def _reasoning(self, at: int, text: str) -> AsyncIterator[ev.RuntimeEvent]:
        yield ev.RuntimeEvent(reasoning_delta=ev.ReasoningDelta(text=text))

    async def _card(self, at: int, title: str) -> AsyncIterator[ev.RuntimeEvent]:
        yield ev.RuntimeEvent(card=ev.Card(kind="note", title=title))

    async def _say(self, at: int) -> AsyncIterator[ev.RuntimeEvent]:
        if self._text:
            yield ev.RuntimeEvent(message_completed=ev.MessageCompleted(text=self._text))
            self._state.whole.append(self._text)
            self._text = ""

    async def _checkpoint(self, at: int) -> AsyncIterator[ev.RuntimeEvent]:
        yield ev.RuntimeEvent(checkpoint=ev.Checkpoint(state=self._saved(at + 1)))

    async def _tool(self, at: int, call_id: str) -> AsyncIterator[ev.RuntimeEvent]:
        yield ev.RuntimeEvent(tool_started=ev.ToolStarted(call_id=call_id, tool="count"))
        yield ev.RuntimeEvent(tool_output=ev.ToolOutput(call_id=call_id, stream="stdout", text="counting"))
        self._write("effect", call_id)
        yield ev.RuntimeEvent(checkpoint=ev.Checkpoint(state=self._saved(at + 1)))
        yield ev.RuntimeEvent(tool_finished=ev.ToolFinished(call_id=call_id, ok=True, result="counted"))

    async def _calls(self, at: int, call_ids: list[str], again: bool = False) -> AsyncIterator[ev.RuntimeEvent]:
        state = self._state
        if state.at != at or not state.begun:
            async for event in self._say(at):
                yield event
            yield self._paused(at, call_ids, [])
            return
        ended, left = list(state.ended), [one for one in state.begun if one not in state.ended]
        if state.token != self._request.fencing_token and again and left:
            yield self._paused(at, left, ended)
            return
        known = state.token == self._request.fencing_token
        for call_id in left:
            if known:
                self._write("repeat" if again else "call", call_id)
            ended.append(call_id)
            yield ev.RuntimeEvent(checkpoint=ev.Checkpoint(state=self._saved(at, state.begun, ended)))
            result = "counted" if known else "unknown"
            yield ev.RuntimeEvent(tool_finished=ev.ToolFinished(call_id=call_id, ok=known, result=result))

    def _paused(self, at: int, starting: list[str], ended: list[str]) -> ev.RuntimeEvent:
        begun = [*ended, *starting]
        started = [ev.ToolStarted(call_id=one, tool="count") for one in starting]
        return ev.RuntimeEvent(paused=ev.Paused(state=self._saved(at, begun, ended), starting=started))

    async def _approval(self, at: int, call_id: str, pattern: str = "") -> AsyncIterator[ev.RuntimeEvent]:
        for decided in self._request.approvals:
            if decided.call_id == call_id:
                yield _delta(decided.decision)
                self._text += decided.decision
                return
        asked = ev.ApprovalRequested(
            call_id=call_id, tool="count", summary="counts", expire_s=EXPIRE_S, checkpoint=self._saved(at),
            pattern=pattern,
        )  # fmt: skip
        yield ev.RuntimeEvent(approval_requested=asked)

    async def _fail(self, at: int, retryable: bool) -> AsyncIterator[ev.RuntimeEvent]:
        error = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="The script says so.")
        yield ev.RuntimeEvent(failed=ev.Failed(error=error, retryable=retryable))

    async def _fail_once(self, at: int) -> AsyncIterator[ev.RuntimeEvent]:
        if self._is_first():
            async for event in self._fail(at, True):
                yield event

    async def _not_yet(self, at: int) -> AsyncIterator[ev.RuntimeEvent]:
        if self._is_first():
            error = RetinueError(Reason.RUNTIME_UNAVAILABLE, "The script says so.", retry_after_s=NOT_YET_S)
            yield ev.RuntimeEvent(failed=ev.Failed(error=wire.to_status(error), retryable=True))

    def _is_first(self) -> bool:
        """Whether the run has not failed here before."""
        if self._request.run_id in self._failed:
            return False
        if len(self._failed) >= FAIL_ONCE_RUNS_MAX:
            self._failed.clear()
        self._failed.add(self._request.run_id)
        return True

    async def _pause(self, at: int, ms: int) -> AsyncIterator[ev.RuntimeEvent]:
        await asyncio.sleep(ms / 1000)
        return
        yield


def _delta(text: str) -> ev.RuntimeEvent:
    return ev.RuntimeEvent(text_delta=ev.TextDelta(text=text))


class ScriptedServicer(adapter_grpc.RuntimeAdapterServiceServicer):
    """Performs scripts; everything else is the real adapter's."""

    def __init__(self, upstream: Peer, ledger_file: Path) -> None:
        self._upstream = upstream
        self._stub = adapter_grpc.RuntimeAdapterServiceStub(upstream.channel)
        self._ledger = os.open(ledger_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._fences = Fences()
        self._failed: set[str] = set()

    def close(self) -> None:
        """Let go of the ledger."""
        os.close(self._ledger)

    async def Invoke(self, request: pb.InvokeRequest, context: Any) -> AsyncIterator[pb.InvokeResponse]:
        await wire.accept(context)
        script = read_script(request.text)
        if script is None:
            async for response in self._pass_on(self._stub.Invoke, request):
                yield response
            return
        self._fences.admit(request.tenant_id, request.session_id, request.fencing_token)
        async with aclosing(Scripted(request, self._ledger, self._fences, self._failed).events(script)) as events:
            async for event in events:
                yield pb.InvokeResponse(events=[event])

    async def Reattach(self, request: pb.ReattachRequest, context: Any) -> AsyncIterator[pb.ReattachResponse]:
        async for response in self._pass_on(self._stub.Reattach, request):
            yield response

    async def _pass_on(self, method: Any, request: Any) -> AsyncIterator[Any]:
        # The caller waits for an adapter that restarts, and sees only this one, which does not.
        try:
            async with asyncio.timeout(UPSTREAM_TIMEOUT_S):
                await self._upstream.channel.channel_ready()
        except TimeoutError:
            raise RetinueError.unavailable("runtime-adapter", private="no connection") from None
        async with aclosing(self._upstream.stream(method, request, timeout_s=CALL_TIMEOUT_S)) as responses:
            async for response in responses:
                yield response

    async def AbortRun(self, request: pb.AbortRunRequest, context: Any) -> pb.AbortRunResponse:
        return await self._upstream.call(self._stub.AbortRun, request)

    async def DescribeRuntimes(self, request: pb.DescribeRuntimesRequest, context: Any) -> pb.DescribeRuntimesResponse:
        return await self._upstream.call(self._stub.DescribeRuntimes, request)

    async def ExportContext(self, request: pb.ExportContextRequest, context: Any) -> pb.ExportContextResponse:
        return await self._upstream.call(self._stub.ExportContext, request)

    async def ImportContext(self, request: pb.ImportContextRequest, context: Any) -> pb.ImportContextResponse:
        return await self._upstream.call(self._stub.ImportContext, request)


def service(servicer: ScriptedServicer) -> Service:
    """The service, ready to be added to a server."""
    name = pb.DESCRIPTOR.services_by_name["RuntimeAdapterService"].full_name
    return Service(adapter_grpc.add_RuntimeAdapterServiceServicer_to_server, servicer, name)


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Connect to the real adapter, which need not be there yet."""
    upstream = Peer("runtime-adapter", settings.upstream_address)
    stack.push_async_callback(upstream.close)
    servicer = ScriptedServicer(upstream, settings.ledger_file)
    stack.callback(servicer.close)
    return Server(settings.address, [service(servicer)])


if __name__ == "__main__":
    process.main("scripted-adapter", Settings, assemble)
