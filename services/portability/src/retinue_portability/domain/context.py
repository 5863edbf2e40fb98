"""A session's context from the events of its log: what was said, which tool calls are over, what was summed up."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retinue_portability.domain.content import START, Attachment, Cursor, Message, Summary, Taken, ToolCall

ROLES = {"user.message": "user", "assistant.message": "assistant"}

METHODS = frozenset({"model", "extract", "mixed"})

PATH_LENGTH_MAX = 1024
"""Characters of a path that is taken for one."""

WORKSPACE = "/workspace/"
"""Where tools see the tenant's files."""

_IN_WORDS = re.compile(r"(?:(?<![\w/])/workspace/|/v1/files/)([\w.+\-/]{1,1024})")
_PATH_KEYS = ("path", "from_path", "to_path")


@dataclass(frozen=True, slots=True)
class Event:
    """A durable event, as far as contexts are concerned; what its type does not have is empty."""

    cursor: Cursor
    type: str
    session_id: str
    run_id: str
    message_id: str = ""
    text: str = ""
    call_id: str = ""
    tool: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ok: bool = False
    result: str = ""
    summary: str = ""
    through: Cursor | None = None
    method: str = ""
    message_count: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that is over, with its arguments as they were."""

    call_id: str
    tool: str
    arguments: Mapping[str, Any]
    ok: bool
    result: str
    run_id: str
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Told:
    """What the events of a session say. Messages and calls are in the order of their cursors."""

    messages: tuple[Message, ...]
    """Those that the summary does not stand for."""
    calls: tuple[Call, ...]
    summary: Summary
    last: Cursor
    """The last event that it knows of."""
    open_call: str = ""
    """A tool that was called by the latest run and has not answered; "" if there is none."""
    taken: Taken = field(default_factory=Counter)


def tell(events: Iterable[Event], session_id: str, without_run_id: str = "") -> Told:
    """Read events, in any order and any of them twice.

    Of `without_run_id` nothing is told that it said or did; but what it summed up holds, and a call that it has open
    counts. A call is open until its end is known or its run is over: a session has one run at a time, so that is when
    another run has begun.
    """
    known = {event.cursor: event for event in events if event.session_id in ("", session_id)}
    ordered = [known[cursor] for cursor in sorted(known)]
    summary = Summary()
    messages: list[Message] = []
    calls: list[Call] = []
    begun: dict[tuple[str, str], Event] = {}
    last, latest_run = START, ""
    for event in ordered:
        latest_run = event.run_id or latest_run
        if event.type == "context.compacted":
            summary = _summary(event)
            last = event.cursor
            continue
        if event.type == "tool.started":
            begun[event.run_id, event.call_id] = event
        start = begun.pop((event.run_id, event.call_id), None) if event.type == "tool.finished" else None
        if without_run_id and event.run_id == without_run_id:
            continue
        last = event.cursor
        if start is not None:
            calls.append(_call(start, event))
        elif event.type in ROLES:
            messages.append(Message(event.message_id, ROLES[event.type], event.text, event.run_id, event.cursor))
    through = summary.through or START
    active = without_run_id or latest_run
    left = [start.tool for start in begun.values() if start.run_id == active]
    taken: Taken = Counter()
    lost = len(begun) - len(left)
    if lost:
        taken["tool_calls", "never_ended"] = lost
    fresh = tuple(message for message in messages if message.cursor > through)
    return Told(fresh, tuple(calls), summary, last, left[0] if left else "", taken)


def attachments(calls: Iterable[ToolCall | Call], messages: Iterable[Message]) -> tuple[Attachment, ...]:
    """Name the files that calls and messages speak of, each with the run that did so last, sorted by path."""
    found: dict[str, tuple[Cursor, str]] = {}

    def mention(path: str, cursor: Cursor, run_id: str) -> None:
        path = path.removeprefix(WORKSPACE).strip("/").rstrip(".")
        plain = path and len(path) <= PATH_LENGTH_MAX and path.isprintable()
        if plain and not any(name in ("", ".", "..") for name in path.split("/")):
            found[path] = max(found.get(path, (cursor, run_id)), (cursor, run_id))

    for call in calls:
        named = call.arguments if isinstance(call, Call) else {}
        for key in _PATH_KEYS:
            path = named.get(key)
            if isinstance(path, str):
                mention(path, call.cursor, call.run_id)
    for message in messages:
        if "/workspace/" in message.text or "/v1/files/" in message.text:
            for path in _IN_WORDS.findall(message.text):
                mention(path, message.cursor, message.run_id)
    return tuple(Attachment(path, found[path][1]) for path in sorted(found))


def _summary(event: Event) -> Summary:
    """Read what was summed up; what does not say where it ends stands for nothing behind its beginning."""
    method = event.method if event.method in METHODS else "extract"
    if not event.summary:
        return Summary()
    return Summary(event.summary, event.through or START, max(0, event.message_count), method)


def _call(start: Event, end: Event) -> Call:
    return Call(start.call_id, start.tool, start.arguments, end.ok, end.result, start.run_id, end.cursor)
