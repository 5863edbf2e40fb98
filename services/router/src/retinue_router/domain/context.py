"""What a session's context is made of."""

MESSAGES = frozenset({"user.message", "assistant.message"})

COMPACTED = "context.compacted"
"""What was said up to a cursor was summed up; contexts begin behind it, with the summary. The log keeps it all."""

IMPORTED = "bundle.imported"
"""The session began with what a bundle brought."""

CARRIED = MESSAGES | {"tool.started", "tool.finished", COMPACTED, IMPORTED}
"""Events that a context is made of."""

MESSAGE_SIZE_MAX_BYTES = 1_000_000
"""Of a message that is brought from elsewhere; the same as of one that a client brings along."""


def imported(
    digest: str, summary: str, summary_message_count: int, messages: list[tuple[str, str, str]], losses: list[str]
) -> list[dict[str, object]]:
    """The events that a session begins with which was brought from elsewhere; messages are id, role and text."""
    events: list[dict[str, object]] = []

    def add(type_: str, data: dict[str, object]) -> None:
        events.append({"n": len(events) + 1, "type": type_, "data": data})

    add(IMPORTED, {"bundle": digest, "losses": losses, "message_count": len(messages)})
    if summary:
        # Its cursor, which is where it ends, is known to who writes it.
        add(COMPACTED, {"summary": summary, "method": "extract", "message_count": summary_message_count})
    for message_id, role, text in messages:
        add(f"{role}.message", {"message_id": message_id, "text": text})
    return events
