"""What is asked of the agent, before it has become a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from retinue_kit.errors import RetinueError

from retinue_router.domain.contacts import check_name

CHAT = "chat"
RUNTIME_ANY = "auto"
BUSY_DEFAULT = "enqueue"

RUN_AT_AHEAD_MAX = timedelta(days=366)
"""How far ahead a task may be put off: the same day of next year, and whoever means more has most likely mistaken the
unit."""

Facts = Mapping[str, object]


OWN = "memory."
"""Kinds and keys of tasks that the mesh asks for by itself, which nobody hears of, begin with it."""


def check_key(idempotency_key: str) -> None:
    """Refuse an idempotency key that no header could hold, or that is ours. Raises RetinueError(FIELD_INVALID)."""
    if not all("!" <= sign <= "~" for sign in idempotency_key):
        raise RetinueError.field("idempotency_key", "must hold visible ASCII characters only")
    if idempotency_key.startswith(OWN):
        raise RetinueError.field("idempotency_key", f"must not begin with {OWN!r}, which is kept for the mesh's own")


def check_kind(kind: str) -> None:
    """Refuse the kind of a task that is ours. Raises RetinueError(FIELD_INVALID)."""
    if kind.startswith(OWN):
        raise RetinueError.field("kind", f"must not begin with {OWN!r}, which is kept for the mesh's own tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A message (kind "chat") or a task, as asked for."""

    tenant_id: str
    contact: str
    kind: str = CHAT
    principal: str = ""
    text: str = ""
    runtime: str = RUNTIME_ANY
    on_busy: str = BUSY_DEFAULT
    metadata: Facts
    reasoning: bool = False
    context: Sequence[Mapping[str, str]] = ()
    input: Facts
    parameters: Facts
    idempotency_key: str = ""
    run_at: datetime | None = None
    """When a task may begin; at once if absent or past."""
    retry_of: str | None = None
    """The dead letter in whose place it is asked."""

    def check(self, now: datetime) -> None:
        """Refuse what cannot be executed. Raises RetinueError(FIELD_INVALID)."""
        check_name(self.contact)
        if not self.is_task and not self.text:
            raise RetinueError.field("text", "must not be empty")
        if "\0" in self.text:
            raise RetinueError.field("text", "must not hold the character U+0000")
        check_key(self.idempotency_key)
        if self.retry_of is None:
            check_kind(self.kind)
        if self.run_at is not None:
            if not self.is_task:
                raise RetinueError.field("run_at", "must not be given for a message")
            if self.run_at > now + RUN_AT_AHEAD_MAX:
                raise RetinueError.field("run_at", f"must be at most {RUN_AT_AHEAD_MAX.days} days ahead")

    @property
    def is_task(self) -> bool:
        """Whether nobody waits for it: it then has a log of its own."""
        return self.kind != CHAT

    def said(self) -> str:
        """Tell the agent what is asked of it: the text, else the input's own text, else the input written out."""
        if self.text:
            return self.text
        text = self.input.get("text")
        if isinstance(text, str) and text:
            return text
        return f"{self.kind}\n{json.dumps(self.input, ensure_ascii=False, indent=1, sort_keys=True)}"

    def digest(self) -> bytes:
        """SHA-256 of what is asked, without the key: equal for equal intents, whichever release wrote them.

        Taken over sorted JSON of the fields that differ from their defaults, so that a field added later
        changes nothing.
        """
        fields: dict[str, object] = {
            "contact": self.contact,
            "text": self.text,
            "runtime": "" if self.runtime == RUNTIME_ANY else self.runtime,
            "on_busy": "" if self.on_busy == BUSY_DEFAULT else self.on_busy,
            "metadata": self.metadata,
            "reasoning": self.reasoning,
            "context": list(self.context),
            "input": self.input,
            "parameters": self.parameters,
            "run_at": self.run_at.isoformat() if self.run_at else "",
        }
        known = {name: value for name, value in fields.items() if value} | {"kind": self.kind}
        text = json.dumps(known, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()
