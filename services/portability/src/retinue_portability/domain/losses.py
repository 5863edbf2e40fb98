"""What becomes of a bundle's fields where it goes: held, told otherwise, or lost; each field of each part."""

from collections.abc import Mapping
from dataclasses import dataclass

from retinue_portability.domain.budget import CUT, OVER
from retinue_portability.domain.content import Content, Identity, Profile, Settings, Summary, Taken

HELD = "held"
APPROXIMATE = "approximate"
LOST = "lost"

FIELDS: dict[str, tuple[str, ...]] = {
    "identity": ("tenant_id", "agent_id", "contact", "session_id"),
    "profile": ("display_name", "channel", "profile"),
    "summary": ("text", "through_cursor", "message_count", "method"),
    "messages": ("message_id", "role", "text", "run_id", "cursor"),
    "facts": ("fact_id", "domain", "kind", "importance", "text"),
    "tool_calls": ("call_id", "tool", "arguments", "ok", "result", "run_id", "cursor"),
    "attachments": ("path", "run_id"),
    "settings": ("persona", "model"),
}
"""Every declared field of every part, JSON or not, in the order of a report."""

REDACTED_IN = {
    "profile": ("display_name", "channel", "profile"),
    "summary": ("text",),
    "messages": ("text",),
    "facts": ("text",),
    "tool_calls": ("arguments", "result"),
    "attachments": ("path",),
    "settings": ("persona",),
}
"""Where secrets are looked for, and where a middle is cut out."""

_NOT_SECRETS = {
    OVER: "{n} had no room",
    CUT: "{n} cut to fit",
    "never_ended": "{n} had no end when its run was over",
    "unreadable": "{n} could not be read",
    "over_size": "{n} of the oldest were not read, since the conversation is too long",
}
"""What is missing for another reason than being a secret."""

Fate = tuple[str, str]
Table = Mapping[str, Fate]

_IDS = (APPROXIMATE, "Ids and places stay in the log; a runtime is not told them.")
_HELD = (HELD, "")

_RUNTIME: dict[str, Fate] = {
    "summary.through_cursor": (APPROXIMATE, "The log keeps where the summary ends; a runtime is told its text."),
    "summary.message_count": (APPROXIMATE, "The log keeps what the summary stands for; a runtime is told its text."),
    "summary.method": (APPROXIMATE, "The log keeps how the summary was made; a runtime is told its text."),
    "messages.message_id": _IDS,
    "messages.run_id": _IDS,
    "messages.cursor": _IDS,
    "facts.fact_id": (APPROXIMATE, "The memory keeps ids; a runtime is told the text."),
    "facts.domain": (APPROXIMATE, "Facts are told by importance, without what they are about."),
    "facts.kind": (APPROXIMATE, "Facts are told by importance, without their kind."),
    "facts.importance": (APPROXIMATE, "Facts are told in the order of their importance, without the number."),
    "tool_calls.call_id": _IDS,
    "tool_calls.run_id": _IDS,
    "tool_calls.cursor": _IDS,
    "attachments.run_id": _IDS,
    "settings.model": (APPROXIMATE, "Policy decides for each run which model answers."),
}
_WORDS = ("tool", "arguments", "ok", "result")

_FRESH = "What is brought gets ids and places of its own."
_OWN = "The tenant's own settings hold."
_PROFILE = (APPROXIMATE, "Kept where the contact is new; one that is there keeps its own.")
_LOG: dict[str, Fate] = {
    "identity.session_id": (LOST, "What is brought begins a fresh conversation."),
    "profile.display_name": _PROFILE,
    "profile.channel": _PROFILE,
    "profile.profile": _PROFILE,
    "summary.through_cursor": (LOST, _FRESH),
    "summary.method": (APPROXIMATE, "Recorded as made by rule, whatever made it."),
    "messages.message_id": (LOST, _FRESH),
    "messages.run_id": (LOST, "No run of the fresh conversation has said it."),
    "messages.cursor": (LOST, _FRESH),
    "facts.fact_id": (LOST, _FRESH),
    "facts.importance": (APPROXIMATE, "A fact that is remembered already keeps the higher importance."),
    "tool_calls.call_id": (LOST, "Calls are told in words."),
    "tool_calls.run_id": (LOST, "Calls are told in words."),
    "tool_calls.cursor": (LOST, "Calls are told in words."),
    "attachments.path": (APPROXIMATE, "Named in the summary; the files themselves stay where they are."),
    "attachments.run_id": (LOST, _FRESH),
    "settings.persona": (LOST, _OWN),
    "settings.model": (LOST, _OWN),
    **{f"tool_calls.{name}": (APPROXIMATE, "Told in words, behind the summary.") for name in _WORDS},
}


@dataclass(frozen=True, slots=True)
class FieldFate:
    """What becomes of a field; `item_count` says of how many items."""

    field: str
    fate: str
    item_count: int
    reason: str

    def line(self) -> str:
        """The fate on one line, for the log."""
        return f"{self.field}: {self.fate}: {self.reason}"


def item_counts(content: Content) -> dict[str, int]:
    """How many items each part holds; of those that are one thing, 1 where there is anything in it."""
    return {
        "identity": int(content.identity != Identity("", "", "", "")),
        "profile": int(content.profile != Profile()),
        "summary": int(content.summary != Summary()),
        "messages": len(content.messages),
        "facts": len(content.facts),
        "tool_calls": len(content.calls),
        "attachments": len(content.attachments),
        "settings": int(content.settings != Settings()),
    }


def by_runtime(content: Content, taken: Taken, tools: bool) -> list[FieldFate]:
    """What becomes of a bundle in a runtime that can call tools, or cannot."""
    words = "conversations are handed over without the messages of tools" if tools else "the runtime calls no tools"
    table = {**_RUNTIME, **{f"tool_calls.{name}": (APPROXIMATE, f"Told in words: {words}.") for name in _WORDS}}
    if not tools:
        table["attachments.path"] = (APPROXIMATE, "Named, but the runtime has no tool to open it with.")
    if any("\n" in fact.text for fact in content.facts):
        table["facts.text"] = (APPROXIMATE, "Told on one line each.")
    return _report(content, taken, table)


def by_log(content: Content, taken: Taken, contact: str, others: Mapping[str, Fate]) -> list[FieldFate]:
    """What becomes of a bundle that is brought to a contact; `others` are fates that only the import knows."""
    table = {**_LOG, **others}
    if content.identity.contact != contact:
        table["identity.contact"] = (LOST, "The conversation goes on with another contact.")
    return _report(content, taken, table)


def _report(content: Content, taken: Taken, table: Table) -> list[FieldFate]:
    counts = item_counts(content)
    fates = []
    for part, names in FIELDS.items():
        for name in names:
            fate, reason = table.get(f"{part}.{name}", _HELD) if counts[part] else _HELD
            notes = [*_summary_notes(content.summary, part, name), *_missing(taken, part, name)]
            if notes:
                fate = APPROXIMATE if fate == HELD else fate
                reason = " ".join(filter(None, (reason, *notes)))
            fates.append(FieldFate(f"{part}.{name}", fate, counts[part], reason))
    return fates


def _summary_notes(summary: Summary, part: str, name: str) -> list[str]:
    if (part, name) != ("summary", "text") or not summary.message_count:
        return []
    how = {"model": "in a model's words", "mixed": "in a model's words and by sentences picked by rule"}
    told = (
        how.get(summary.method, "by sentences picked by rule") if summary.text else "no sentence of theirs was picked"
    )
    return [f"{summary.message_count} older messages: {told}."]


def _missing(taken: Taken, part: str, name: str) -> list[str]:
    """What was taken out of a field before."""
    secrets, notes = 0, []
    for (of_part, rule), count in sorted(taken.items()):
        if of_part != part:
            continue
        if rule not in _NOT_SECRETS:
            secrets += count if name in REDACTED_IN.get(part, ()) else 0
        elif rule != CUT or name in REDACTED_IN.get(part, ()):
            notes.append(_NOT_SECRETS[rule].format(n=count) + ".")
    if secrets:
        notes.append(f"{secrets} secrets were taken out of the part.")
    return notes
