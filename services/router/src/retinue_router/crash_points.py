"""Where the router and its workers can be made to die; see retinue_kit.crashing. Tests sweep all of them."""

from enum import StrEnum


class Point(StrEnum):
    """A place just before or after something that another process can see."""

    SUBMIT_COMMITTING = "router.submit.committing"
    SUBMIT_COMMITTED = "router.submit.committed"
    SUBMIT_RUNG = "router.submit.rung"
    CANCEL_COMMITTING = "router.cancel.committing"
    CANCEL_COMMITTED = "router.cancel.committed"
    CANCEL_TOLD = "router.cancel.told"
    DECIDE_COMMITTING = "router.decide.committing"
    DECIDE_COMMITTED = "router.decide.committed"
    DECIDE_RUNG = "router.decide.rung"
    RESET_COMMITTED = "router.reset.committed"
    DELETE_COMMITTING = "router.delete.committing"
    DELETE_COMMITTED = "router.delete.committed"
    DELETE_SWEPT = "router.delete.swept"

    POPPED = "worker.popped"
    CLAIMED = "worker.claimed"
    MAIL_TOLD = "worker.mail_told"
    DECIDED = "worker.decided"
    INVOKING = "worker.invoking"
    APPENDING = "worker.append.calling"
    APPENDED = "worker.append.done"
    CHECKPOINT_COMMITTING = "worker.checkpoint.committing"
    CHECKPOINT_COMMITTED = "worker.checkpoint.committed"
    CHECKPOINT_PUBLISHED = "worker.checkpoint.published"
    PARK_COMMITTING = "worker.park.committing"
    PARK_COMMITTED = "worker.park.committed"
    PARK_PUBLISHED = "worker.park.published"
    FINISH_COMMITTING = "worker.finish.committing"
    FINISH_COMMITTED = "worker.finish.committed"
    FINISH_PUBLISHED = "worker.finish.published"
    FINISH_RUNG = "worker.finish.rung"
    GIVING_BACK = "worker.done.calling"
    GIVEN_BACK = "worker.done.called"
    RENEWING = "worker.renew.calling"
    RENEWED = "worker.renew.done"
    SWEPT = "worker.sweep.found"
    SWEEP_RUNG = "worker.sweep.rung"
    PROJECTING = "worker.project.writing"
    PROJECTED = "worker.project.written"

    TEXT_DELTA = "worker.event.text_delta"
    REASONING_DELTA = "worker.event.reasoning_delta"
    MESSAGE_COMPLETED = "worker.event.message_completed"
    CARD = "worker.event.card"
    TOOL_STARTED = "worker.event.tool_started"
    TOOL_OUTPUT = "worker.event.tool_output"
    TOOL_FINISHED = "worker.event.tool_finished"
    CHECKPOINT = "worker.event.checkpoint"
    APPROVAL_REQUESTED = "worker.event.approval_requested"
    FINISHED = "worker.event.finished"
    FAILED = "worker.event.failed"


EVENT_POINTS: dict[str | None, Point] = {
    point.removeprefix("worker.event."): point for point in Point if point.startswith("worker.event.")
}
"""By the name of the runtime's event, as it arrives."""
