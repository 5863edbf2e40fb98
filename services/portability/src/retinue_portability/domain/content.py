"""What a bundle holds: a session's context, part by part."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from retinue_kit.tokens import estimate

NUMBER_MAX = 2**53 - 1
"""The bus counts in doubles, so no cursor of ours has a higher number."""

Taken = Counter[tuple[str, str]]
"""How often something was taken out, by the part's name and the rule's."""


class Cursor(NamedTuple):
    """A place in a log: the fencing token of an attempt, and a number within it."""

    token: int
    n: int

    def __str__(self) -> str:
        return f"{self.token}-{self.n}"


_CURSOR = re.compile(r"(0|[1-9][0-9]{0,15})-(0|[1-9][0-9]{0,15})")

START = Cursor(0, 0)
"""Before the first event of any log."""


def cursor_of(text: str) -> Cursor | None:
    """Read "{token}-{n}" as we write it; None for anything else."""
    found = _CURSOR.fullmatch(text)
    if found is None:
        return None
    cursor = Cursor(int(found[1]), int(found[2]))
    return cursor if cursor.token <= NUMBER_MAX and cursor.n <= NUMBER_MAX else None


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose context it is."""

    tenant_id: str
    agent_id: str
    contact: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Profile:
    """What the tenant keeps of the contact."""

    display_name: str = ""
    channel: str = ""
    profile_json: str = ""
    """JSON with sorted keys and no blanks; empty for no profile."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was said before the messages."""

    text: str = ""
    through: Cursor | None = None
    """The last event that it tells of; None where there is no summary."""
    message_count: int = 0
    method: str = ""
    """"model", "extract" or "mixed"; "" where there is none."""


@dataclass(frozen=True, slots=True)
class Message:
    """What was said."""

    message_id: str
    role: str
    text: str
    run_id: str
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Fact:
    """Something remembered."""

    fact_id: str
    domain: str
    kind: str
    importance: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call that is over."""

    call_id: str
    tool: str
    arguments_json: str
    ok: bool
    result: str
    run_id: str
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of the tenant."""

    path: str
    run_id: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the tenant has set that a run depends on."""

    persona: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """All parts of a context. Messages and calls are in the order of their cursors, facts by importance and then by id,
    attachments by path.
    """

    identity: Identity
    profile: Profile = Profile()
    summary: Summary = Summary()
    messages: tuple[Message, ...] = ()
    facts: tuple[Fact, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    settings: Settings = Settings()

    def token_count(self) -> int:
        """Tokens of what a model is given of it; the persona does not count, since it goes with every run anyway."""
        return sum(map(estimate, self.words()))

    def words(self) -> Iterator[str]:
        """Every text that counts."""
        yield from (self.profile.display_name, self.profile.channel, self.profile.profile_json, self.summary.text)
        yield from (message.text for message in self.messages)
        yield from (fact.text for fact in self.facts)
        for call in self.calls:
            yield from (call.tool, call.arguments_json, call.result)
        yield from (attachment.path for attachment in self.attachments)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A context that was sealed, or is about to be."""

    content: Content
    through: Cursor
    token_budget: int
    taken: Taken = field(default_factory=Counter)


def order_of(fact: Fact) -> tuple[int, str]:
    """By importance, the highest first, and then by id."""
    return -fact.importance, fact.fact_id
