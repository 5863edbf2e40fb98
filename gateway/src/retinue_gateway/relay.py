"""Telling a run's answer as text that only grows."""

from typing import Any

import msgspec
from retinue_kit.streams import START, Cursor, Entry

SEPARATOR = "\n\n"
"""Between two messages of one run, as in its recorded output."""


class _Data(msgspec.Struct):
    """What of an event's data concerns a completion."""

    text: str = ""
    replace: bool = False
    rewind_to: str = ""
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    data: _Data


_decoder = msgspec.json.Decoder(_Event)


class DivergedError(Exception):
    """A resumed run told another text than the part that was sent already."""


class Relay:
    """Tells a run's answer as pieces of text that only ever grow, whatever its attempts do.

    An attempt that takes over begins again after some cursor; what it repeats is compared with what was sent, and left
    out. `feed` answers what is to be sent next.
    """

    def __init__(self) -> None:
        self.usage: dict[str, Any] = {}
        self.error: dict[str, Any] | None = None
        self.ended = ""
        """The terminal event's type; empty while the run goes on."""
        self._pieces: list[str] = []
        self._sent = 0
        self._at = 0
        """How much of the answer the current attempt has told."""
        self._begin = 0
        """Where the current message begins."""
        self._last = START
        self._holed = False
        """Whether something of the message may have been missed, as when the bus was emptied while it was told."""
        self._places: list[tuple[Cursor, int, int]] = [(START, 0, 0)]
        """Where the answer stood at events that may be rewound to."""

    def feed(self, entry: Entry) -> str:
        """Hear an event of the run. Raises DivergedError.

        Behind a gap nothing is sent until the message comes whole: a text's end must not be taken for its beginning.
        """
        self.pass_over(entry.cursor)
        if entry.type == "assistant.delta":
            if self._holed:
                return ""
            data = _decoder.decode(entry.json).data
            if data.replace:
                self._at = self._begin
            return self._tell(data.text)
        if entry.type in ("reasoning.delta", "tool.output", "user.message"):
            return ""
        text = ""
        data = _decoder.decode(entry.json).data if entry.type in _TOLD else _Data()
        if entry.type == "assistant.message":
            text = self._complete(data.text)
        elif entry.type == "run.resumed":
            self._rewind(Cursor.parse(data.rewind_to))
        elif entry.type.startswith("run.") and entry.type in _TOLD:
            self._end(entry.type, data)
        self._places.append((entry.cursor, self._at, self._begin))
        return text

    def pass_over(self, cursor: Cursor) -> None:
        """Hear that there is an event, of whichever run: numbers are dense within a token, so that a gap shows."""
        if cursor.token != self._last.token:
            self._holed = cursor.n != 1
        elif cursor.n > self._last.n + 1:
            self._holed = True
        self._last = cursor

    def text(self) -> str:
        """All that was sent."""
        whole = "".join(self._pieces)
        self._pieces = [whole]
        return whole

    def _tell(self, text: str) -> str:
        if self._begin and self._at == self._begin and text:
            text = SEPARATOR + text
        overlap = min(len(text), self._sent - self._at)
        if overlap > 0 and self.text()[self._at : self._at + overlap] != text[:overlap]:
            raise DivergedError
        self._at += len(text)
        new = text[max(0, overlap) :]
        self._push(new)
        return new

    def _complete(self, text: str) -> str:
        """Hear a message whole: what no delta told is sent now."""
        if self._at == self._sent and self._at > self._begin and not self._holed:
            # Nothing is being repeated. What deltas told stands, even where the message leaves out white space.
            told = self.text()[self._begin :]
            whole = SEPARATOR + text if self._begin else text
            new = whole.removeprefix(told) if whole.startswith(told) else ""
            self._push(new)
            self._at = self._sent
        else:
            self._at = self._begin
            new = self._tell(text)
        self._begin, self._holed = self._at, False
        return new

    def _push(self, new: str) -> None:
        if new:
            self._pieces.append(new)
            self._sent += len(new)

    def _rewind(self, cursor: Cursor) -> None:
        while self._places[-1][0] > cursor:
            self._places.pop()
        _, self._at, self._begin = self._places[-1]
        self._holed = False

    def _end(self, type_: str, data: _Data) -> None:
        if type_ == "run.succeeded" and self._at != self._sent:
            raise DivergedError
        self.ended = type_
        self.usage = data.usage or {}
        self.error = data.error


_TOLD = frozenset({"assistant.message", "run.resumed", "run.succeeded", "run.failed", "run.cancelled"})
"""Types whose data is looked at."""
