"""How much a runtime has produced in an attempt, held against how much it may."""

from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason, RetinueError

OVERHEAD_FACTOR = 4
"""A runtime keeps its own limit on text; this many times as much in events of all kinds is one that does not."""

TOOLS_SIZE_MAX_BYTES = 32 * 1024 * 1024
"""What tools are asked and answer in an attempt: each call's is bounded by whoever runs it, and so is their number."""

STATE_SIZE_MAX_BYTES = 4 * 1024 * 1024
"""A state to go on from: it is stored with each step, and goes back in one message with the conversation."""

TOOL_KINDS = ("tool_started", "tool_output", "tool_finished")


class Measure:
    """Counts the events of one attempt; `limit` is how much text it may produce, in bytes, 0 for any."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._said = 0
        self._tools = 0

    def take(self, event: RuntimeEvent) -> None:
        """Count an event. Raises OUTPUT_TOO_LARGE."""
        kind, size = event.WhichOneof("event"), event.ByteSize()
        state = state_of(event)
        if len(state) > STATE_SIZE_MAX_BYTES:
            raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The run has gathered more than can be kept of a run.")
        if kind in TOOL_KINDS:
            self._tools += size
        else:
            self._said += size - len(state)
        if self._tools > TOOLS_SIZE_MAX_BYTES:
            raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The run's tools produced more than they may.")
        if self._limit and self._said > OVERHEAD_FACTOR * self._limit:
            raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The run produced more than a run may.")


def state_of(event: RuntimeEvent) -> bytes:
    """The state to go on from that an event brings; empty if it brings none."""
    match event.WhichOneof("event"):
        case "checkpoint":
            return event.checkpoint.state
        case "approval_requested":
            return event.approval_requested.checkpoint
        case "paused":
            return event.paused.state
    return b""
