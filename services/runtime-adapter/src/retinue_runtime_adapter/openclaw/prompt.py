"""What a model reads of a conversation that OpenClaw leads: the same as with any other runtime.

Model calls pass through us, so two things are put right on the way. What was said before an OpenClaw session was
opened stands before its own messages, each in its role, instead of as a tale in the system prompt. And a user's message
is what the user said: what OpenClaw adds to it, the time and facts of its host, is taken off (see words.py).
"""

from collections.abc import Sequence
from typing import Any

from retinue_runtime_adapter.openclaw import words

Message = dict[str, Any]


def shape(messages: Sequence[Message], before: Sequence[Message]) -> list[Message]:
    """Answer the messages as the model is to read them. `before` is the conversation so far, oldest first."""
    head = 0
    while head < len(messages) and messages[head].get("role") in ("system", "developer"):
        head += 1
    return [*messages[:head], *before, *(_plain(message) for message in messages[head:])]


def _plain(message: Message) -> Message:
    if message.get("role") != "user":
        return message
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": words.disclose(content)}
    if isinstance(content, list):
        return {**message, "content": [_plain_part(part) for part in content]}
    return message


def _plain_part(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {**part, "text": words.disclose(part["text"])}
    return part
