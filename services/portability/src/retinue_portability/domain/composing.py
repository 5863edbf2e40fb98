"""A context put together from what log, memory and directory say: without secrets, in one order, in bounds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retinue_portability.domain import budget, redaction
from retinue_portability.domain.content import (
    Bundle,
    Content,
    Cursor,
    Fact,
    Identity,
    Profile,
    Settings,
    Taken,
    ToolCall,
    order_of,
)
from retinue_portability.domain.context import Call, Told, attachments

ARGUMENTS_TOKENS_MAX = 250
RESULT_TOKENS_MAX = 500
"""Of a tool call, which is told for what it did and not for what it read: a page of text or so."""

_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))

FACT_LENGTH_MAX = 2000
"""Characters that the memory takes of a fact."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a context is made from."""

    identity: Identity
    display_name: str
    channel: str
    profile: Mapping[str, Any]
    told: Told
    facts: Iterable[Fact]
    settings: Settings
    through: Cursor


def written(value: object) -> str:
    """Write a value as JSON with sorted names and no blanks."""
    return _encoder.encode(value)


def compose(sources: Sources, token_budget: int, messages_max: int = budget.MESSAGES_MAX) -> Bundle:
    """Put a context together that has at most so many tokens. The same sources make the same context."""
    bound = min(token_budget, budget.TOKENS_MAX)
    told, taken = sources.told, Taken(sources.told.taken)
    kept = redaction.redact_value(sources.profile, "profile", taken)
    profile = Profile(sources.display_name, sources.channel, written(kept) if kept else "")
    messages = redaction.redact_messages(told.messages, taken)
    content = Content(
        identity=sources.identity,
        profile=redaction.redact_profile(profile, taken),
        summary=redaction.redact_summary(told.summary, taken),
        messages=messages,
        facts=_facts(sources.facts, taken),
        calls=_calls(told.calls, bound, taken),
        attachments=tuple(
            one
            for one in attachments(told.calls, messages)
            if redaction.redact(one.path, "attachments", taken) == one.path
        ),
        settings=redaction.redact_settings(sources.settings, taken),
    )
    small, missing = budget.fit(content, bound, messages_max)
    return Bundle(small, sources.through, bound, taken + missing)


def _facts(facts: Iterable[Fact], taken: Taken) -> tuple[Fact, ...]:
    """Facts in their order, one that is known twice only once."""
    made: dict[str, Fact] = {}
    for fact in redaction.redact_facts(tuple(sorted(facts, key=order_of)), taken):
        if len(fact.text) > FACT_LENGTH_MAX:
            taken["facts", budget.CUT] += 1
            fact = replace(fact, text=fact.text[: FACT_LENGTH_MAX - 1] + "…")
        made.setdefault(fact.text, fact)
    return tuple(made.values())


def _calls(calls: Sequence[Call], bound: int, taken: Taken) -> tuple[ToolCall, ...]:
    """The newest calls, a little more of them than there is room for: the others need not be looked at."""
    room, made = int(bound * budget.CALLS_SHARE), []
    for call in reversed(calls[-budget.CALLS_MAX :]):
        if room < 0:
            break
        made.append(_call(call, taken))
        room -= budget.cost_of(made[-1])
    if len(made) < len(calls):
        taken["tool_calls", budget.OVER] += len(calls) - len(made)
    return tuple(reversed(made))


def _call(call: Call, taken: Taken) -> ToolCall:
    arguments = written(redaction.redact_value(call.arguments, "tool_calls", taken))
    result = redaction.redact(call.result, "tool_calls", taken)
    told, answered = budget.cut(arguments, ARGUMENTS_TOKENS_MAX), budget.cut(result, RESULT_TOKENS_MAX)
    if (told, answered) != (arguments, result):
        taken["tool_calls", budget.CUT] += 1
    return ToolCall(call.call_id, call.tool, told, call.ok, answered, call.run_id, call.cursor)
