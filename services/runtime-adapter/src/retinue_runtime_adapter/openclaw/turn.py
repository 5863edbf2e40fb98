"""Frames of one run to events; a pure machine.

The text of a message is what the gateway last said it is: its frames carry the whole, so that missing ones, merged ones
and such that rewrite it all lead to the same. Its item's id is `<attempt>:<call>`: another call of the same attempt
begins another message (tools were called in between), another attempt takes back what the former one said.

Text before a tool call is told twice: as it comes, and whole, as a `preamble`, where it ends.
"""

from typing import Any

from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.wire import counted
from retinue_runtime_adapter.openclaw import protocol
from retinue_runtime_adapter.openclaw.calls import UNSEEN, Calls, content
from retinue_runtime_adapter.openclaw.message import Message
from retinue_runtime_adapter.openclaw.ports import Frame, Turn

REPLY_SIZE_MAX_CHARS = 4_000
"""Characters up to which the text in a run's last event is whole; OpenClaw cuts it at 4,095."""

ABORTED = "rpc"
"""Why a run stopped that was told to."""

BETWEEN = "\n\n"
"""Between two messages in what a gateway says after a reconnection."""

REPLAYED_MAX = 1_000
"""Events that are taken from what a gateway replays after a reconnection; it keeps fewer."""


_COUNTED = ("text_delta", "reasoning_delta", "message_completed")
"""Events whose size a message counts: what is rewritten counts once."""


class RunTurn(Turn):
    """One run. `reasoning` says whether reasoning is told; `size_max_bytes` bounds all that is told."""

    def __init__(self, *, reasoning: bool, size_max_bytes: int) -> None:
        self._reasoning = reasoning
        self._size_max_bytes = size_max_bytes
        self._size_bytes = 0
        self._message = Message()
        self._raws: list[str] = []
        self._preambles: set[str] = set()
        self._calls = Calls()
        self._is_joined = False
        self._settled: dict[str, Any] | None = None
        self._final: dict[str, Any] | None = None
        self._failure: dict[str, Any] = {}
        self._is_cancelled = False
        self._output_tokens = 0
        self._model = ""

    @property
    def over(self) -> bool:
        if self._final is not None:
            return True
        # Whoever has joined may have missed words that only the final frame repeats.
        return self._settled is not None and not self._calls.open and not self._is_joined

    def feed(self, frame: Frame) -> list[RuntimeEvent]:
        """Read a frame; answers what it tells, without the end. Raises OUTPUT_TOO_LARGE."""
        if frame.kind == "final":
            self._final = frame.body
            return []
        if frame.kind == "rejoined":
            return self._tell(self._rejoin(frame.body))
        return self._tell(self._read(frame.body))

    def announce(self, call_id: str, tool: str, arguments: dict[str, Any], at_ms: int) -> list[RuntimeEvent]:
        """A call is about to begin that frames may not have told of yet. Raises OUTPUT_TOO_LARGE."""
        return self._tell(self._begin_call(call_id, {"name": tool, "args": arguments}, at_ms))

    def end(self) -> tuple[list[RuntimeEvent], pb.RuntimeUsage, Trouble | None]:
        """Answer what finishes the run: the events left, what was used, and the trouble if it did not go well.

        Raises OUTPUT_TOO_LARGE.
        """
        usage = self._usage()
        events = [event for call in self._calls.open for event in call.finish(False, UNSEEN)]
        trouble = self._trouble()
        if trouble is not None:
            return self._tell(events), usage, trouble
        replies = self._replies()
        if replies and self._message.raw:
            events += self._message.become(replies.pop(0))
        events += self._complete()
        for reply in replies:
            events += self._message.become(reply)
            events += self._complete()
        if not self._raws:
            events.append(RuntimeEvent(message_completed=pb.MessageCompleted(text="")))
        return self._tell(events), usage, None

    def _tell(self, events: list[RuntimeEvent]) -> list[RuntimeEvent]:
        """Pass events on that may be told, and count them."""
        self._size_bytes += sum(event.ByteSize() for event in events if event.WhichOneof("event") not in _COUNTED)
        told = [event for event in events if self._reasoning or not event.HasField("reasoning_delta")]
        if self._size_bytes + self._message.size_bytes > self._size_max_bytes:
            raise Trouble(Reason.OUTPUT_TOO_LARGE, f"The run produced more than {self._size_max_bytes} bytes.")
        return told

    def _read(self, event: dict[str, Any]) -> list[RuntimeEvent]:
        data = event.get("data")
        if not isinstance(data, dict):
            return []
        stream, at_ms = event.get("stream"), _integer(event.get("ts"))
        if stream == "assistant":
            return self._assistant(data)
        if stream == "tool":
            return self._tool(data, at_ms)
        if stream == "item":
            return self._item(data, at_ms)
        if stream == "lifecycle":
            self._lifecycle(data)
        elif stream == "usage":
            self._output_tokens = max(self._output_tokens, _integer(data.get("outputTokens")))
        return []

    def _rejoin(self, run: dict[str, Any]) -> list[RuntimeEvent]:
        """Catch up with what was missed. Tools' own events will not come any more."""
        self._is_joined = True
        events: list[RuntimeEvent] = []
        replayed = run.get("events")
        for event in (replayed if isinstance(replayed, list) else [])[:REPLAYED_MAX]:
            # A replayed result says nothing of how it went; the item's end does.
            if isinstance(event, dict) and (
                event.get("stream") == "item" or _part(event, "data").get("phase") == "start"
            ):
                events += self._read(event)
        text = run.get("text")
        if isinstance(text, str):
            for raw in self._raws:  # it holds all messages of the run so far
                text = text.removeprefix(raw).removeprefix(BETWEEN)
            if text.startswith(self._message.raw):
                events += self._message.become(text)  # else it was rewritten: the next frame says how
        return events

    # --- text ---

    def _assistant(self, data: dict[str, Any]) -> list[RuntimeEvent]:
        message, text, item_id = self._message, data.get("text"), str(data.get("itemId") or "")
        if not isinstance(text, str):
            text = message.raw + str(data.get("delta") or "")
        is_other = bool(item_id and message.item_id) and item_id != message.item_id
        events: list[RuntimeEvent] = []
        if is_other and message.raw and _attempt(item_id) == _attempt(message.item_id):
            events = self._complete()
            message = self._message
        message.item_id = item_id or message.item_id
        if message.raw.startswith(text) and not is_other and data.get("replace") is not True:
            return events  # said before: a frame that a reconnection has overtaken
        return events + message.become(text)

    def _complete(self) -> list[RuntimeEvent]:
        """The message is whole; nothing is told of one that says nothing."""
        message, self._message = self._message, Message()
        events = message.finish()
        self._size_bytes += message.size_bytes
        if not message.said:
            return events
        self._raws.append(message.raw)
        return [*events, RuntimeEvent(message_completed=pb.MessageCompleted(text=message.text))]

    def _preamble(self, data: dict[str, Any]) -> list[RuntimeEvent]:
        text, item_id = data.get("progressText"), str(data.get("itemId") or "")
        if item_id in self._preambles or not isinstance(text, str) or not text:
            return []
        self._preambles.add(item_id)
        if not self._message.raw and text in self._raws[-1:] and self._is_joined:
            return []
        return self._message.become(text) + self._complete()

    # --- tools ---

    def _tool(self, data: dict[str, Any], at_ms: int) -> list[RuntimeEvent]:
        call_id, phase = str(data.get("toolCallId") or ""), data.get("phase")
        if not call_id:
            return []
        events = self._begin_call(call_id, data, at_ms)
        call = self._calls.get(call_id)
        assert call is not None
        if call.is_over:
            return events
        if phase == "update":
            events += call.say(content(data.get("partialResult")))
        elif phase == "result":
            events += self._calls.result(call, data, at_ms)
        return events

    def _item(self, data: dict[str, Any], at_ms: int) -> list[RuntimeEvent]:
        """Read what stands beside the text: where it ends before a tool is called, and calls nothing else tells of."""
        kind, phase, call_id = data.get("kind"), data.get("phase"), str(data.get("toolCallId") or "")
        if kind == "preamble" and phase == "end":
            return self._preamble(data)
        if kind != "tool" or not call_id or not self._is_joined:
            return []
        if phase == "start":
            return self._begin_call(call_id, data, at_ms)
        call = self._calls.get(call_id)
        if phase != "end" or call is None:
            return []
        error = data.get("error")
        return call.finish(data.get("status") == "completed", error if isinstance(error, str) else "", at_ms=at_ms)

    def _begin_call(self, call_id: str, data: dict[str, Any], at_ms: int) -> list[RuntimeEvent]:
        if self._calls.get(call_id) is not None:
            return []
        name = str(data.get("name") or "tool")
        return self._complete() + self._calls.begin(call_id, name, data.get("args"), at_ms)

    # --- the end ---

    def _lifecycle(self, data: dict[str, Any]) -> None:
        phase = data.get("phase")
        if phase == "model" and isinstance(data.get("model"), str):
            self._model = data["model"]
        elif phase == "start":
            self._failure = {}
        elif phase == "error":
            self._failure = data
        if data.get("stopReason") == ABORTED:
            self._is_cancelled = True
        if data.get("executionSettled") is True:
            self._settled = data

    @property
    def _meta(self) -> dict[str, Any]:
        return _part(_part(self._final, "result"), "meta")

    def _usage(self) -> pb.RuntimeUsage:
        agent = _part(self._meta, "agentMeta")
        usage = _part(agent, "usage")
        cost = _part(usage, "cost").get("total")
        micros = round(cost * 1_000_000) if isinstance(cost, int | float) and 0 < cost < 1e9 else 0
        return pb.RuntimeUsage(
            input_tokens=counted(_integer(usage.get("input"))),
            output_tokens=counted(_integer(usage.get("output")) or self._output_tokens),
            model=self._model or str(agent.get("model") or ""),
            cost_micros=micros,
        )

    def _replies(self) -> list[str]:
        """The texts that the run ended with, without those that were told before tools were called."""
        payloads = _part(self._final, "result").get("payloads")
        if self._final is None:  # what was streamed is as it should be; this text still has its directives
            reply = _part(self._settled, "terminalReply")
            is_whole = not self._message.raw and len(str(reply.get("text"))) <= REPLY_SIZE_MAX_CHARS
            payloads = [reply] if is_whole else []
        told, replies = list(self._raws), []
        for payload in payloads if isinstance(payloads, list) else []:
            text = payload.get("text") if isinstance(payload, dict) and not payload.get("isError") else None
            if not isinstance(text, str) or not text:
                continue
            if text in told:
                told.remove(text)
            else:
                replies.append(text)
        return replies

    def _trouble(self) -> Trouble | None:
        """Why the run did not go well; None if it did. An answer without a word is an answer."""
        final, failure = self._final or {}, self._failure
        if self._is_cancelled or final.get("stopReason") == ABORTED:
            return troubles.aborted()
        if failure.get("aborted") is True:
            return protocol.lost("OpenClaw stopped the run.")
        if final.get("status") == "timeout" or failure.get("timeoutPhase"):
            return protocol.of_failure("timeout", "")
        fault, meta_error = _part(final, "error"), _part(self._meta, "error")
        if not failure and not fault and final.get("status") in (None, "ok"):
            return None
        if not failure and fault.get("code") == "UNAVAILABLE" and not self._raws and not self._message.raw:
            # Its own files were locked, as when two agents have their first turns at once: the run has not begun.
            return protocol.lost("OpenClaw could not begin the run.")
        kind = str(_part(failure, "errorObservation").get("failoverReason") or meta_error.get("kind") or "")
        is_abandoned = "abandoned" in (failure.get("livenessState"), self._meta.get("livenessState"))
        if is_abandoned and kind in ("", "incomplete_turn") and not self._message.raw:
            return None
        text = " ".join(str(found) for found in (failure.get("error"), fault.get("message")) if found)
        return protocol.of_failure(kind, text)


def _attempt(item_id: str) -> str:
    return item_id.rpartition(":")[0]


def _part(value: dict[str, Any] | None, name: str) -> dict[str, Any]:
    part = (value or {}).get(name)
    return part if isinstance(part, dict) else {}


def _integer(value: object) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0
