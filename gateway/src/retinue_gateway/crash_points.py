"""Where the gateway can be made to die; see retinue_kit.crashing. Tests sweep all of them."""

from enum import StrEnum


class Point(StrEnum):
    """A place just before or after something that a client or the router can see."""

    SUBMITTING = "gateway.submit.calling"
    SUBMITTED = "gateway.submit.accepted"
    CANCELLED = "gateway.cancel.accepted"
    DECIDED = "gateway.decide.accepted"
    SCHEDULE_CHANGED = "gateway.schedule.accepted"
    BUNDLE_IMPORTED = "gateway.import.accepted"
    FACT_CHANGED = "gateway.fact.accepted"
    DEAD_LETTER_RETRIED = "gateway.retry.accepted"
    DEAD_LETTER_DROPPED = "gateway.drop.accepted"
    WEBHOOK_CHANGED = "gateway.webhook.accepted"
    STREAM_OPENED = "gateway.stream.opened"
    STREAM_TELLING = "gateway.stream.telling"
    STREAM_TOLD = "gateway.stream.told"
    WAITED = "gateway.wait.answering"
    SOCKET_TELLING = "gateway.socket.telling"
    SOCKET_TOLD = "gateway.socket.told"
    COMPLETION_TELLING = "gateway.completion.telling"
    COMPLETION_TOLD = "gateway.completion.told"
