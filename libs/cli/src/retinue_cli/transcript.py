"""What a run has said so far, from its events: the one place that knows how they add up."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TERMINAL = frozenset({"run.succeeded", "run.failed", "run.cancelled"})

Cursor = tuple[int, int]


def parse_cursor(text: str) -> Cursor:
    """Read "{token}-{n}" so that cursors compare; an empty text is before all others."""
    token, _, n = text.partition("-")
    return (int(token), int(n or 0)) if token else (0, 0)


@dataclass(slots=True)
class Transcript:
    """The text of one run's answer, as its events tell it and take it back."""

    run_id: str = ""
    cursor: str = ""
    end: str = ""
    error: Mapping[str, Any] = field(default_factory=dict)
    _events: list[tuple[Cursor, str, Mapping[str, Any]]] = field(default_factory=list)
    _finished: list[str] = field(default_factory=list)
    _current: str = ""

    @property
    def text(self) -> str:
        """All that has been said."""
        return "\n".join([*self._finished, self._current] if self._current else self._finished)

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in the next event. One that was taken in before, or belongs to another run, changes nothing."""
        kind, data = str(event.get("type", "")), event.get("data") or {}
        run_id = str(event.get("run_id") or "")
        if self.run_id and run_id and run_id != self.run_id:
            return
        self.run_id = self.run_id or run_id
        text = str(event.get("cursor") or "")
        if text:
            if self.cursor and parse_cursor(text) <= parse_cursor(self.cursor):
                return
            self.cursor = text
        if kind == "run.resumed":
            self._rewind(str(data.get("rewind_to") or ""))
        elif kind in TERMINAL:
            self.end, self.error = kind, data.get("error") or {}
            if kind == "run.cancelled" and data.get("rewind_to"):
                self._rewind(str(data["rewind_to"]))
        else:
            self._events.append((parse_cursor(text), kind, data))
            self._add(kind, data)

    def apply_all(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take in several."""
        for event in events:
            self.apply(event)

    def _rewind(self, to: str) -> None:
        kept = [entry for entry in self._events if entry[0] <= parse_cursor(to)]
        self._events, self._finished, self._current = kept, [], ""
        for _, kind, data in kept:
            self._add(kind, data)

    def _add(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "assistant.delta":
            said = str(data.get("text", ""))
            self._current = said if data.get("replace") else self._current + said
        elif kind == "assistant.message":
            self._finished.append(str(data.get("text", "")))
            self._current = ""
        elif kind == "tool.started":
            self._finish()
            self._finished.append(f"[{data.get('tool', 'tool')} …]")
        elif kind == "card":
            self._finish()
            self._finished.append(f"[{data.get('kind', 'card')}: {data.get('title', '')}]")

    def _finish(self) -> None:
        if self._current:
            self._finished.append(self._current)
            self._current = ""
