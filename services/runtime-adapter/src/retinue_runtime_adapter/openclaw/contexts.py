"""What OpenClaw holds of a conversation, read out and put in.

A session's transcript can be read (`chat.history`) and not be written: the protocol has no import, and what
`chat.inject` writes no model ever reads. So a context that is put in stands in front of the session in each call of its
model, as what was said elsewhere always does, and is read out from there again.
"""

from typing import Any

import structlog
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import (
    ContextMessage,
    ExportContextRequest,
    ImportContextRequest,
)
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import words
from retinue_runtime_adapter.openclaw.ports import Place
from retinue_runtime_adapter.openclaw.sessions import Line, Sessions

SESSIONS = "sessions"
"""Under this name a place keeps what its OpenClaw sessions were told."""

HISTORY_COUNT = 1_000
"""Rows of a transcript that are asked for, the latest: OpenClaw answers no more of them at once."""

HISTORY_TEXT_MAX_CHARS = 500_000
"""Characters of a message that are asked for, the most that OpenClaw cuts at; of itself it cuts at 8,000. A message of
more than 128 KiB it leaves out, and says so in its place."""

HISTORY_TIMEOUT_S = 10.0
"""Seconds for a transcript; one of hundreds of rows takes half of one on a busy machine."""

IMPORT_SIZE_MAX_CHARS = 200_000
"""Characters of a context that is put in, of its end: what a run is given of a conversation at most."""

SPEAKERS = ("user", "assistant")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def sessions_of(place: Place, tenant_id: str) -> Sessions:
    """The sessions that a tenant has on its instance."""
    found: Sessions = place.sessions.setdefault(SESSIONS, Sessions(place.agent_id, tenant_id))
    return found


async def export(place: Place | None, request: ExportContextRequest) -> list[ContextMessage]:
    """Read what a session holds: what stands before it, then its own transcript. Nothing where there is no session.

    Messages are as the model reads them; calls of tools and what came of them are left out. Raises
    RUNTIME_UNAVAILABLE if the gateway does not answer.
    """
    session = sessions_of(place, request.tenant_id).known(request.session_id) if place is not None else None
    if place is None or session is None:
        return []
    found = [ContextMessage(role=str(line["role"]), text=str(line["content"])) for line in session.before]
    if not session.key:  # put in, and no run has been there since
        return found
    params = {"sessionKey": session.key, "limit": HISTORY_COUNT, "maxChars": HISTORY_TEXT_MAX_CHARS}
    try:
        history = await place.gateway.request("chat.history", params, timeout_s=HISTORY_TIMEOUT_S)
    except Trouble as trouble:
        log.info("a transcript was not read", reason=str(trouble.reason), detail=str(trouble))
        text = "The runtime does not answer with what it holds."
        raise RetinueError(Reason.RUNTIME_UNAVAILABLE, text, retry_after_s=trouble.error.retry_after_s) from None
    return [*found, *transcript(history)]


def transcript(history: dict[str, Any]) -> list[ContextMessage]:
    """The messages of a transcript as `chat.history` answers it, oldest first."""
    rows = history.get("messages")
    found: list[ContextMessage] = []
    for row in rows if isinstance(rows, list) else []:
        role = row.get("role") if isinstance(row, dict) else None
        text = _text(row.get("content")) if role in SPEAKERS else ""
        if text:
            found.append(ContextMessage(role=str(role), text=words.disclose(text) if role == "user" else text))
    return found


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def take(place: Place, request: ImportContextRequest) -> list[str]:
    """Begin a session anew with a context, oldest first; answers what is lost, a line each.

    The next run of the conversation finds it, if that run comes with the same context; every run comes with its own.
    """
    lines: list[Line] = []
    size = 0
    for message in reversed(request.context):
        size += len(message.text)
        if size > IMPORT_SIZE_MAX_CHARS:
            break
        lines.append((message.role, message.text))
    sessions_of(place, request.tenant_id).take(request.session_id, lines[::-1])
    losses: list[str] = []
    left_out = len(request.context) - len(lines)
    if left_out:
        losses.append(
            f"messages.text: lost: the oldest {left_out} messages are beyond the {IMPORT_SIZE_MAX_CHARS} "
            "characters that stand before a session"
        )
    if lines:
        losses.append(
            "messages.text: approximate: the model reads them word for word before its session, and OpenClaw's "
            "own transcript, which has no import, does not hold them"
        )
    return losses
