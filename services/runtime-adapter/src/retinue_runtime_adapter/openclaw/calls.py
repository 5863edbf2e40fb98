"""Tool calls of one run: each is told to begin once and to end once, in whatever frames it is heard of."""

from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct
from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.wire import counted

CALLS_MAX = 1_000
"""Tool calls of one run; a model that calls more goes round in circles."""

ARGUMENTS_SIZE_MAX_BYTES = 64 * 1024
"""Bytes of a call's arguments that are told whole; of longer ones only the beginning is told, as text."""

RESULT_SIZE_MAX_CHARS = 64 * 1024
"""Characters of a call's result that are told; the model has read it all."""

PROBE_CHARS = 16
PROBES_MAX = 64
"""By how many characters, and at how many places, the beginning of an output is looked for in the former one."""

DEPTH_MAX = 32
"""Levels of a call's arguments, below what protobuf's decoders refuse (100)."""

CUT = "…"

UNSEEN = "The end of this call was not seen."


class Call:
    """A tool call."""

    def __init__(self, call_id: str, name: str, began_ms: int) -> None:
        self.call_id = call_id
        self.name = name
        self.is_over = False
        self._began_ms = began_ms
        self._output = ""

    def say(self, text: str) -> list[RuntimeEvent]:
        """Tell what is new in the output, which comes whole each time, or its end where it is long."""
        new = text[len(self._output) :] if text.startswith(self._output) else _beyond(self._output, text)
        self._output = text
        if not new:
            return []
        return [RuntimeEvent(tool_output=pb.ToolOutput(call_id=self.call_id, stream="stdout", text=new))]

    def finish(self, ok: bool, result: str, *, at_ms: int = 0, duration_ms: float | None = None) -> list[RuntimeEvent]:
        """Tell the end; nothing if it was told."""
        if self.is_over:
            return []
        self.is_over, self._output = True, ""
        if len(result) > RESULT_SIZE_MAX_CHARS:
            result = result[: RESULT_SIZE_MAX_CHARS - 1] + CUT
        lasted_ms = max(0, at_ms - self._began_ms) if duration_ms is None else duration_ms
        finished = pb.ToolFinished(call_id=self.call_id, ok=ok, result=result, duration_ms=counted(int(lasted_ms)))
        return [RuntimeEvent(tool_finished=finished)]


class Calls:
    """All calls of a run."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}

    def get(self, call_id: str) -> Call | None:
        """Find a call."""
        return self._calls.get(call_id)

    @property
    def open(self) -> list[Call]:
        """Those whose end was not told yet."""
        return [call for call in self._calls.values() if not call.is_over]

    def begin(self, call_id: str, name: str, arguments: object, at_ms: int) -> list[RuntimeEvent]:
        """Tell the beginning of a call that was not heard of yet. Raises OUTPUT_TOO_LARGE."""
        if len(self._calls) >= CALLS_MAX:
            raise Trouble(Reason.OUTPUT_TOO_LARGE, f"The run called more than {CALLS_MAX} tools.")
        self._calls[call_id] = Call(call_id, name, at_ms)
        started = pb.ToolStarted(call_id=call_id, tool=name, arguments=_arguments(arguments))
        return [RuntimeEvent(tool_started=started)]

    def result(self, call: Call, data: dict[str, Any], at_ms: int) -> list[RuntimeEvent]:
        """Tell the end of a call as a `tool` event says it."""
        result = data.get("result")
        details = result.get("details") if isinstance(result, dict) else None
        details = details if isinstance(details, dict) else {}
        duration_ms = details.get("durationMs")
        return call.finish(
            data.get("isError") is not True and not details.get("exitCode"),
            content(result),
            at_ms=at_ms,
            duration_ms=duration_ms if isinstance(duration_ms, int | float) and duration_ms >= 0 else None,
        )


def content(result: object) -> str:
    """The text of a tool's result."""
    parts = result.get("content") if isinstance(result, dict) else None
    found = parts if isinstance(parts, list) else []
    texts = [part["text"] for part in found if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)


def _beyond(former: str, text: str) -> str:
    """What is new in an output of which only the end is kept: what comes behind the end of the former one."""
    probe = text[:PROBE_CHARS]
    place = former.find(probe)
    for _ in range(PROBES_MAX):
        if place < 0:
            break
        if text.startswith(former[place:]):
            return text[len(former) - place :]
        place = former.find(probe, place + 1)
    return text


def _flat(value: object, depth: int = 0) -> object:
    """A value as google.protobuf.Struct can carry it: doubles, not too deep."""
    if depth > DEPTH_MAX:
        return CUT
    if isinstance(value, dict):
        return {str(name): _flat(part, depth + 1) for name, part in value.items()}
    if isinstance(value, list):
        return [_flat(part, depth + 1) for part in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    return value


def _arguments(value: object) -> Struct:
    found = value if isinstance(value, dict) else {}
    written = msgspec.json.encode(found)
    struct = Struct()
    if len(written) > ARGUMENTS_SIZE_MAX_BYTES:
        struct.update({CUT: written[:ARGUMENTS_SIZE_MAX_BYTES].decode(errors="ignore")})
    elif found:
        flat = _flat(found)
        assert isinstance(flat, dict)
        struct.update(flat)
    return struct
