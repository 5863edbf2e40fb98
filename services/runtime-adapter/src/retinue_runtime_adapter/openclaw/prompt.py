"""What a model reads of a conversation that OpenClaw leads: the same as with any other runtime.

Model calls pass through us, so four things are put right on the way. What is remembered (the run's preface) stands
behind OpenClaw's instructions, and the gateway never sees it, so that a fact that changes changes no session. What was
said before an OpenClaw session was opened stands before its own messages, each in its role, instead of as a tale in the
system prompt. A user's message is what the user said: what OpenClaw adds to it, the time and facts of its host, is
taken off (see words.py). And where OpenClaw tells of folders on its host, the model reads what they are in a box:
`/workspace`, or nothing.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from retinue_runtime_adapter.openclaw import words

WORKSPACE = "/workspace"
"""Where a box has the tenant's files."""

_SOURCE = re.compile(r"^Sandbox host mount source[^\n]*: (/[^\n]+)/sandboxes/[^/\n]+$", re.MULTILINE)
"""Where OpenClaw says which folder of its host stands for the box; it begins with the gateway's home."""

_OF_THE_HOST = re.compile(
    r"^(?:File tools use host workspace /|Sandbox host mount source |Docs: /\S+/openclaw/docs$|"
    r"Configuration docs: `docs/)[^\n]*\n?",
    re.MULTILINE,
)
"""Lines that tell of nothing but the host."""

Message = dict[str, Any]


def shape(messages: Sequence[Message], before: Sequence[Message], preface: str = "") -> list[Message]:
    """Answer the messages as the model is to read them. `before` is the conversation so far, oldest first; `preface`
    goes behind the instructions, in the last of them: many models read one such message alone.
    """
    head = 0
    while head < len(messages) and messages[head].get("role") in ("system", "developer"):
        head += 1
    told = [_rewritten(message, _boxed) for message in messages[:head]]
    if preface:
        told = [*told[:-1], _extended(told[-1], preface)] if told else [{"role": "system", "content": preface}]
    return [*told, *before, *(_plain(message) for message in messages[head:])]


def _extended(message: Message, text: str) -> Message:
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [*content, {"type": "text", "text": f"\n\n{text}"}]}
    return {**message, "content": f"{content}\n\n{text}" if content else text}


def _plain(message: Message) -> Message:
    return _rewritten(message, words.disclose) if message.get("role") == "user" else message


def _boxed(text: str) -> str:
    """Tell of the box where the host is told of."""
    source = _SOURCE.search(text)
    if source is None:
        return text
    folder = rf"{re.escape(source[1])}/(?:sandboxes|workspaces)/[A-Za-z0-9._-]+"
    return re.sub(folder, WORKSPACE, _OF_THE_HOST.sub("", text))


def _rewritten(message: Message, rewrite: Callable[[str], str]) -> Message:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": rewrite(content)}
    if isinstance(content, list):
        return {**message, "content": [_rewritten_part(part, rewrite) for part in content]}
    return message


def _rewritten_part(part: Any, rewrite: Callable[[str], str]) -> Any:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return {**part, "text": rewrite(part["text"])}
    return part
