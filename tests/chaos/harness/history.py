"""What was asked and seen in one seed: all that the checks know. Written to a file where one of them fails."""

from pathlib import Path
from typing import Any

import msgspec

Cursor = tuple[int, int]
"""Token and number."""

TENTATIVE = ("assistant.delta", "reasoning.delta", "tool.output")
"""Told at once and never recorded."""

EARLY = ("run.started", "runtime.switched", "card")
"""Told at once and recorded by the next commit, under the same cursor; not if the attempt is lost before."""

TERMINAL = ("run.succeeded", "run.failed", "run.cancelled")


class Answer(msgspec.Struct):
    """What one request came to. A request that is repeated with its key is one for each try that was answered."""

    tenant: str
    contact: str
    key: str
    outcome: str
    """acknowledged, refused (with an error that says never) or unknown (no answer until patience ran out)."""
    status: int = 0
    run_id: str = ""
    detail: str = ""


class Intent(msgspec.Struct):
    """What somebody wanted, and what may have become of it."""

    tenant: str
    contact: str
    key: str
    text: str
    ends: list[str]
    """States in which the run may end if nothing but kills befalls it."""
    answer: str | None = None
    """What it says, where that is known."""
    order: int = 0
    """Place among the sender's messages to this contact; 0 where several were sent at once."""
    kind: str = "chat"
    effect: str = ""
    """A file of the tenant's that its tool call writes a line to, each time that it is made."""


class Event(msgspec.Struct):
    """An event as it came."""

    cursor: Cursor
    type: str
    run_id: str
    data: dict[str, Any]


class Watch(msgspec.Struct):
    """What one watcher of a contact saw over all of its connections, from the contact's first event on."""

    name: str
    tenant: str
    contact: str
    events: list[Event] = []
    connections: int = 0


class Run(msgspec.Struct):
    """A run as the store has it at the end. Times are seconds since the epoch by the database's clock."""

    run_id: str
    log_id: str
    kind: str
    state: str
    position: int
    attempt: int
    key: str | None
    output: str | None
    start_time: float | None
    end_time: float | None
    retry_of: str | None = None
    """The dead letter that it was accepted in place of."""


class Contact(msgspec.Struct):
    """A contact at the end."""

    tenant: str
    name: str
    log: list[Event] = []
    """All events that a watcher is given who begins at the start now; tentative ones among them."""
    runs: list[Run] = []
    messages: list[tuple[str, str]] = []
    """The conversation as it is listed: run and text."""
    thread: list[tuple[Cursor, str]] = []
    """Lines of thread.jsonl: cursor and text."""
    deleted: bool = False
    unrecorded: list[Cursor] = []
    """Events of the log that are shown and that the store does not have, tentative ones left out."""


class Ledger(msgspec.Struct):
    """A step or an effect of a scripted run, as it was executed."""

    run_id: str
    kind: str
    """"step", "effect", "call" or "repeat"; see the scripted adapter."""
    name: str
    token: int
    attempt: int


class Effect(msgspec.Struct):
    """How often the tool call of a run was made, as the files of its tenant show."""

    run_id: str
    count: int


class History(msgspec.Struct):
    """One seed."""

    seed: int
    faults: list[str] = []
    """What befell the mesh, in words."""
    bus_lost: bool = False
    """Whether Redis was killed or emptied: deltas may be gone, facts may not."""
    holder_lost: bool = False
    """Whether a worker was killed or stopped: the last deltas before a message may be gone."""
    intents: list[Intent] = []
    answers: list[Answer] = []
    watches: list[Watch] = []
    contacts: list[Contact] = []
    ledger: list[Ledger] = []
    effects: list[Effect] = []
    errors: list[str] = []
    """Errors that no client should have met."""

    def write(self, path: Path) -> None:
        """Keep it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))


def parse_cursor(text: str) -> Cursor:
    """Read a cursor."""
    token, _, number = text.partition("-")
    return int(token), int(number)
