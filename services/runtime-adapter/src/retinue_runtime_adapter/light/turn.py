"""One invocation of the light runtime: tool calls that were begun are made, then the model is asked what follows.

An attempt with tools is several of these. A call is made only once its start is recorded, so each time that calls are
to begin the stream ends with `paused`; whoever drives the attempt records that and invokes again, with the state that
says so. What is to be asked of a person first ends the stream too, with `approval_requested`.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids, tenancy
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.adapter import Batches
from retinue_runtime_adapter.crash_points import Point
from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light import calls, judging, state, wire
from retinue_runtime_adapter.light.answer import Answer, message_events
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.calling import Caller
from retinue_runtime_adapter.light.judging import Judged
from retinue_runtime_adapter.light.state import STEPS_MAX, Progress, Step
from retinue_runtime_adapter.light.words import Asked, Wanted, Words
from retinue_runtime_adapter.tools import ledger
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.ledger import Begun, Entry
from retinue_runtime_adapter.tools.ports import Scope, Tool

CALL_ID_LENGTH_MAX = 64
"""Characters of a model's own id of a call; a longer one, or one that was used, is replaced."""

_NO_BOX = (Reason.SANDBOX_UNAVAILABLE, Reason.POLICY_DENIED)
"""There is no box for the session at all, so there is nothing in it to be fenced."""


T = TypeVar("T")


class Turn:
    """One invocation."""

    def __init__(
        self,
        request: InvokeRequest,
        caller: Caller,
        tools: Tools,
        attempt: Attempt,
        progress: Progress,
        answer: Answer,
        begun: Begun,
    ) -> None:
        self._request = request
        self._caller = caller
        self._tools = tools
        self._attempt = attempt
        self._progress = progress
        self._answer = answer
        self._begun = begun
        self._offered: Sequence[Tool] = ()
        self._scope = _scope(request, caller)

    async def batches(self) -> Batches:
        """Do it. Raises Trouble, and RetinueError (STALE_FENCING_TOKEN) where the attempt was overtaken."""
        steps = self._progress.steps
        if self._progress.token != self._request.fencing_token:
            told = [event for step in steps if step.told for event in message_events(step.text, step.cards)]
            if told:
                yield told
        if self._request.tools:
            toolbox = self._tools.toolbox
            self._offered = await self._wait(partial(toolbox.offered, self._scope, self._request.tools))
        if steps and not steps[-1].over:
            async with aclosing(self._go_on(steps[-1])) as batches:
                async for events in batches:
                    yield events
            ending = await self._next(steps[-1])
            if ending is not None:
                yield [ending]
                return
        async with aclosing(self._speak()) as batches:
            async for events in batches:
                yield events

    async def _wait(self, step: Callable[[], Awaitable[T]]) -> T:
        """Wait for a step of our own, as long as the attempt has time."""
        return await self._attempt.wait(step, self._attempt.remaining_s() + 1)

    def _state(self) -> bytes:
        """Write the state as this attempt's."""
        self._progress.token = self._request.fencing_token
        return state.write(self._progress)

    # Calls that were begun.

    async def _go_on(self, step: Step) -> Batches:
        """Bring what was begun to an end: by this attempt, or by one that is gone."""
        token = self._request.fencing_token
        lost = [entry for entry in step.calls if entry.lost(token)]
        if lost:
            await self._wait(partial(self._take_over, lost))
            former = {entry.call_id for entry in lost}
            for entry in [entry for entry in step.calls if entry.over and entry.call_id in former]:
                yield self._recorded(calls.Ending.of(entry))
        begun: list[Entry] = []
        for entry in [entry for entry in step.calls if entry.state == "started"]:
            if self._begun.first(self._request.tenant_id, self._request.run_id, entry):
                begun.append(entry)
                continue
            now = ledger.doubted(entry)
            self._progress.put(now)
            calls.count_taken_over(now)
            yield self._recorded(calls.Ending.of(now))
        if not begun:
            return
        made = calls.Calls(self._tools, self._scope, self._attempt)
        async with aclosing(made.make(begun)) as found:
            async for told in found:
                if isinstance(told, calls.Ending):
                    self._progress.put(told.ended(token))
                    yield self._recorded(told)
                else:
                    yield told

    def _recorded(self, ending: calls.Ending) -> list[RuntimeEvent]:
        """Tell an end behind the state that holds it, so that both are recorded in one step."""
        return [RuntimeEvent(checkpoint=pb.Checkpoint(state=self._state())), ending.event()]

    async def _take_over(self, lost: Sequence[Entry]) -> None:
        """Go on with calls of an attempt that is gone. It is shut out first, so that it cannot go on with them."""
        token = self._request.fencing_token
        if self._tools.box is not None:
            try:
                await self._tools.box.fence(self._scope)
            except RetinueError as error:
                if error.reason is Reason.STALE_FENCING_TOKEN:
                    raise
                if error.reason not in _NO_BOX:
                    text = "The box of a former attempt could not be fenced."
                    raise Trouble(Reason.RUNTIME_UNAVAILABLE, text, retry_after_s=1.0) from error
            reach(Point.FENCED)
        found = [await self._tools.toolbox.find(self._scope, entry.tool) for entry in lost]
        idempotent = [tool is not None and tool.idempotent for tool in found]
        for place, entry in enumerate(lost):
            # Made again, it must not come behind a call that came behind it, and may have been made.
            later = zip(lost[place:], idempotent[place:], strict=True)
            again = all(one.refusal or safe for one, safe in later)
            now = ledger.taken_over(entry, token, idempotent=again)
            self._progress.put(now)
            calls.count_taken_over(now)

    # Calls that are planned.

    async def _next(self, step: Step) -> RuntimeEvent | None:
        """Judge what is planned; answers the event that ends the stream, or None if nothing is left to be done."""
        for approval in self._request.approvals:
            for entry in step.calls:
                if entry.call_id == approval.call_id and entry.state == "planned":
                    self._progress.put(ledger.decided(entry, approval.decision, approval.approval_id))
        planned = [entry for entry in step.calls if entry.state == "planned"]
        if not planned:
            return None
        judged = await self._wait(partial(judging.judge, self._tools, self._scope, self._offered, planned))
        ready = [found for found in judged if found.question is None]
        if not ready:
            return self._ask(judged[0])
        token = self._request.fencing_token
        for found in ready:
            self._progress.put(ledger.started(found.entry, token, found.refusal))
        starting = [calls.starting(found.entry) for found in ready]
        return RuntimeEvent(paused=pb.Paused(state=self._state(), starting=starting))

    def _ask(self, judged: Judged) -> RuntimeEvent:
        entry, verdict = judged.entry, judged.question
        assert verdict is not None
        return RuntimeEvent(
            approval_requested=pb.ApprovalRequested(
                call_id=entry.call_id,
                tool=entry.tool,
                summary=judging.summary(entry, verdict),
                expire_s=verdict.expire_s or judging.EXPIRE_S,
                pattern=verdict.pattern,
                checkpoint=self._state(),
            )
        )

    # The model.

    async def _speak(self) -> Batches:
        """Ask the model; it answers, or asks for tools."""
        answer, progress, request = self._answer, self._progress, self._request
        asked = Asked(wire.messages(request), wire.parameters(request.parameters), progress.steps, self._offered)
        asked.may_call = len(progress.steps) < STEPS_MAX
        answer.input_tokens = asked.tokens()
        call: Words | None = None
        trouble: Trouble | None = None

        def trying(model: Model) -> None:
            answer.trying(model)
            asked.suit(self._caller.providers[model.provider])

        try:
            reach(Point.CALLING)
            call = await self._caller.first_words(
                Words, request.model, asked, self._attempt, run_id=request.run_id, trying=trying
            )
            said = call.first
            reach(Point.CALLED)
            while not call.over:
                events = answer.add(said)
                if events:
                    yield events
                said = await call.read()
            events = answer.add(said)
            answer.add_arguments(call.arguments_length)
            call.count(*answer.counted(call.usage))
            if call.wanted and self._offered and asked.may_call:
                events += self._plan(call.wanted, answer.used(call.usage))
                if events:
                    yield events
                await call.drain()
                ending = await self._next(progress.steps[-1])
                assert ending is not None
                yield [ending]
            else:
                yield events + answer.end(call.usage, progress.steps)
                await call.drain()
        except Trouble as error:
            trouble = error
            raise
        finally:
            if call is not None:
                call.close(trouble)

    def _plan(self, wanted: Sequence[Wanted], used: pb.RuntimeUsage) -> list[RuntimeEvent]:
        """Take the model's step into the state, with an id for each call."""
        progress, answer = self._progress, self._answer
        events, text, cards = answer.step()
        taken = progress.call_ids()
        planned: list[Entry] = []
        for call in wanted:
            call_id = call.call_id
            fits = 0 < len(call_id) <= CALL_ID_LENGTH_MAX and all("!" <= sign <= "~" for sign in call_id)
            if not fits or call_id in taken:
                call_id = ids.new_id("call")
            taken.add(call_id)
            planned.append(calls.planned(call_id, call))
        progress.steps.append(Step(text, cards, planned))
        progress.input_tokens, progress.output_tokens = used.input_tokens, used.output_tokens
        progress.model, progress.size_bytes = answer.model, answer.size_bytes
        return events


def _scope(request: InvokeRequest, caller: Caller) -> Scope:
    """For whom tools are called: what the request says, and never what a model says."""
    return Scope(
        tenant_id=request.tenant_id,
        session_id=request.session_id,
        run_id=request.run_id,
        fencing_token=request.fencing_token,
        runtime=request.runtime,
        agent_id=request.agent_id,
        contact=request.contact,
        kind=request.kind or "chat",
        model=caller.catalogue.with_provider(request.model),
        principal=tenancy.current().principal,
        allowed=tuple((allowance.tool, allowance.pattern) for allowance in request.allowances),
        min_isolation=request.box.min_isolation,
        egress=tuple(request.box.egress),
    )
