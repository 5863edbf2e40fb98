"""Each part of a bundle, between what it says and its bytes; version 1 of the format."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from google.protobuf.message import Message as Written
from retinue.portability.v1 import bundle_pb2 as pb

from retinue_portability.domain.content import (
    Attachment,
    Content,
    Cursor,
    Fact,
    Identity,
    Message,
    Profile,
    Settings,
    Summary,
    ToolCall,
    cursor_of,
    order_of,
)
from retinue_portability.domain.context import METHODS
from retinue_portability.format import canonical

KINDS = frozenset({"preference", "profile", "event", "task", "note"})
IMPORTANCE_MAX = 10

NAMES = ("attachments", "facts", "identity", "messages", "profile", "settings", "summary", "tool_calls")
"""The parts of version 1, in the manifest's order; each is there, also where it is empty."""


def write(content: Content) -> dict[str, bytes]:
    """Write each part, by its name."""
    identity, profile, summary, settings = content.identity, content.profile, content.summary, content.settings
    messages = [
        pb.BundledMessage(message_id=m.message_id, role=m.role, text=m.text, run_id=m.run_id, cursor=str(m.cursor))
        for m in content.messages
    ]
    facts = [
        pb.BundledFact(fact_id=f.fact_id, domain=f.domain, kind=f.kind, importance=f.importance, text=f.text)
        for f in content.facts
    ]
    calls = [
        pb.BundledToolCall(
            call_id=c.call_id,
            tool=c.tool,
            arguments_json=c.arguments_json,
            ok=c.ok,
            result=c.result,
            run_id=c.run_id,
            cursor=str(c.cursor),
        )
        for c in content.calls
    ]
    parts: dict[str, Written] = {
        "attachments": pb.AttachmentsPart(
            attachments=[pb.Attachment(path=a.path, run_id=a.run_id) for a in content.attachments]
        ),
        "facts": pb.FactsPart(facts=facts),
        "identity": pb.IdentityPart(
            tenant_id=identity.tenant_id,
            agent_id=identity.agent_id,
            contact=identity.contact,
            session_id=identity.session_id,
        ),
        "messages": pb.MessagesPart(messages=messages),
        "profile": pb.ProfilePart(
            display_name=profile.display_name, channel=profile.channel, profile_json=profile.profile_json
        ),
        "settings": pb.SettingsPart(persona=settings.persona, model=settings.model),
        "summary": summary_part(summary),
        "tool_calls": pb.ToolCallsPart(tool_calls=calls),
    }
    return {name: canonical.write(parts[name]) for name in NAMES}


def summary_part(summary: Summary) -> pb.SummaryPart:
    """A summary as a message of the contract."""
    return pb.SummaryPart(
        text=summary.text,
        through_cursor=str(summary.through) if summary.through else "",
        message_count=summary.message_count,
        method=summary.method,
    )


def read(parts: dict[str, bytes]) -> Content:
    """Read all parts. Raises BUNDLE_INVALID with the name of the first that cannot be."""
    found: dict[str, Any] = {name: _READERS[name](parts[name]) for name in NAMES}
    return Content(calls=found.pop("tool_calls"), **found)


def _refuse_unless(holds: bool, part: str, why: str) -> None:
    if not holds:
        raise canonical.invalid(part, why)


def _ascending(keys: Iterable[Any], part: str) -> None:
    rises = all(one < other for one, other in pairwise(keys))
    _refuse_unless(rises, part, "is out of order, or holds something twice")


def _cursor(text: str, part: str) -> Cursor:
    cursor = cursor_of(text)
    if cursor is None:
        raise canonical.invalid(part, "holds something that is no cursor")
    return cursor


def _identity(data: bytes) -> Identity:
    part = canonical.read(pb.IdentityPart, data, "identity")
    return Identity(part.tenant_id, part.agent_id, part.contact, part.session_id)


def _profile(data: bytes) -> Profile:
    part = canonical.read(pb.ProfilePart, data, "profile")
    return Profile(part.display_name, part.channel, part.profile_json)


def _summary(data: bytes) -> Summary:
    part = canonical.read(pb.SummaryPart, data, "summary")
    _refuse_unless(part.method in METHODS or not part.method, "summary", "was made in a way that is unknown")
    _refuse_unless(part.message_count >= 0, "summary", "counts less than nothing")
    through = _cursor(part.through_cursor, "summary") if part.through_cursor else None
    return Summary(part.text, through, part.message_count, part.method)


def _messages(data: bytes) -> tuple[Message, ...]:
    found = canonical.read(pb.MessagesPart, data, "messages").messages
    made = tuple(Message(m.message_id, m.role, m.text, m.run_id, _cursor(m.cursor, "messages")) for m in found)
    known = all(message.role in ("user", "assistant") for message in made)
    _refuse_unless(known, "messages", "holds somebody who is neither user nor assistant")
    _ascending((message.cursor for message in made), "messages")
    return made


def _facts(data: bytes) -> tuple[Fact, ...]:
    found = canonical.read(pb.FactsPart, data, "facts").facts
    made = tuple(Fact(f.fact_id, f.domain, f.kind, f.importance, f.text) for f in found)
    known = all(fact.kind in KINDS and 1 <= fact.importance <= IMPORTANCE_MAX for fact in made)
    _refuse_unless(known, "facts", "holds a fact of an unknown kind or importance")
    _ascending(map(order_of, made), "facts")
    return made


def _calls(data: bytes) -> tuple[ToolCall, ...]:
    found = canonical.read(pb.ToolCallsPart, data, "tool_calls").tool_calls
    made = tuple(
        ToolCall(c.call_id, c.tool, c.arguments_json, c.ok, c.result, c.run_id, _cursor(c.cursor, "tool_calls"))
        for c in found
    )
    _ascending((call.cursor for call in made), "tool_calls")
    return made


def _attachments(data: bytes) -> tuple[Attachment, ...]:
    found = canonical.read(pb.AttachmentsPart, data, "attachments").attachments
    made = tuple(Attachment(a.path, a.run_id) for a in found)
    _ascending((attachment.path for attachment in made), "attachments")
    return made


def _settings(data: bytes) -> Settings:
    part = canonical.read(pb.SettingsPart, data, "settings")
    return Settings(part.persona, part.model)


_READERS: dict[str, Callable[[bytes], object]] = {
    "attachments": _attachments,
    "facts": _facts,
    "identity": _identity,
    "messages": _messages,
    "profile": _profile,
    "settings": _settings,
    "summary": _summary,
    "tool_calls": _calls,
}
