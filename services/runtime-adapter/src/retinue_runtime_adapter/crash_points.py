"""Where the runtime adapter can be made to die; see retinue_kit.crashing. Tests sweep all of them."""

from enum import StrEnum


class Point(StrEnum):
    """A place just before or after something that the worker or a model can see."""

    ADMITTED = "adapter.invoke.admitted"
    CALLING = "adapter.model.calling"
    CALLED = "adapter.model.spoke"
    TOOL_CALLING = "adapter.tool.calling"
    TOOL_CALLED = "adapter.tool.called"
    FENCED = "adapter.tool.fenced"
    TEXT_DELTA = "adapter.event.text_delta"
    REASONING_DELTA = "adapter.event.reasoning_delta"
    MESSAGE_COMPLETED = "adapter.event.message_completed"
    CARD = "adapter.event.card"
    TOOL_OUTPUT = "adapter.event.tool_output"
    TOOL_FINISHED = "adapter.event.tool_finished"
    APPROVAL_REQUESTED = "adapter.event.approval_requested"
    PAUSED = "adapter.event.paused"
    CHECKPOINT = "adapter.event.checkpoint"
    FINISHED = "adapter.event.finished"
    FAILED = "adapter.event.failed"
    TOLD = "adapter.invoke.told"


EVENT_POINTS: dict[str | None, Point] = {
    point.removeprefix("adapter.event."): point for point in Point if point.startswith("adapter.event.")
}
"""By the name of the event, before it leaves."""
