"""Shaping of a model's answer while it streams: reasoning and cards are taken out of the text.

A pure machine: however the answer is cut into chunks, the pieces joined are the same. Inside of code fences nothing is
touched, and a tag right after a backtick is a quotation, so that an answer may speak about tags and cards.
"""

import json
import math
import re
from dataclasses import dataclass
from enum import IntEnum

CARD_SIZE_MAX = 64 * 1024
"""Characters of a card's fenced block. Beyond that it stays text: a card is drawn on one screen."""

INFO_SIZE_MAX = 200
"""Characters on a fence's first line. A longer line is text: languages and file names are shorter."""

CARD_DEPTH_MAX = 16
"""Levels in a card's body, far below what protobuf's own decoders refuse (100)."""

_OPEN = ("<think>", "<thinking>")
_CLOSE = ("</think>", "</thinking>")
_STRIPPED = (*_CLOSE, "<final>", "</final>")
_TAGS = (*_OPEN, *_STRIPPED)
_CANDIDATE = re.compile("[<`]")


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Card:
    """A card that stood in the answer as a fenced block."""

    kind: str
    title: str
    body: dict[str, object]


Piece = Text | Reasoning | Card


class _Mode(IntEnum):
    TEXT = 0
    CODE = 1
    CARD = 2
    REASONING = 3


def _storable(value: object, depth: int = 0) -> bool:
    """Whether a value survives google.protobuf.Struct: doubles, whole characters, not too deep."""
    if depth > CARD_DEPTH_MAX:
        return False
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, int | float):
        try:
            return math.isfinite(float(value))
        except OverflowError:
            return False
    if isinstance(value, list):
        return all(_storable(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(_storable(key) and _storable(item, depth + 1) for key, item in value.items())
    return value is None


def parse_card(text: str) -> Card | None:
    """Read a card: a JSON object with a `kind`, perhaps a `title` and an object `body`. None if it is no card."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not _storable(value):
        return None
    kind, title, body = value.get("kind"), value.get("title", ""), value.get("body", {})
    if not isinstance(kind, str) or not kind or not isinstance(title, str) or not isinstance(body, dict):
        return None
    return Card(kind, title, body)


def _held_tail(text: str, marks: tuple[str, ...]) -> int:
    """How many characters at the end of a text could be the beginning of a mark."""
    start = text.rfind("<")
    if start < 0:
        return 0
    tail = text[start:]
    return len(tail) if any(mark.startswith(tail) for mark in marks) else 0


class Shaper:
    """Takes the answer of one model call apart. `feed` its chunks in order, then `finish`."""

    def __init__(self) -> None:
        self._mode = _Mode.TEXT
        self._held = ""
        self._last = "\n"  # the last character of text that was read; the beginning counts as a line's beginning
        self._fence = 3  # backticks that close the code block
        self._raw = ""  # the card's block as it stood
        self._spoken = False  # whether text was told
        self._lead = ""  # white space before the first word
        self._thought = False  # whether a tag was cut out
        self._out: list[Piece] = []

    def feed(self, chunk: str) -> list[Piece]:
        """Read more of the answer; answers what is certain by now."""
        if self._mode is _Mode.TEXT and not self._held and self._spoken and "<" not in chunk and "`" not in chunk:
            if not chunk:
                return []
            self._last = chunk[-1]
            return [Text(chunk)]
        self._held += chunk
        self._work(ending=False)
        return self._take()

    def finish(self) -> list[Piece]:
        """Say that the answer is whole; answers what was held back. An open card is text, open reasoning reasoning."""
        self._work(ending=True)
        if self._mode is _Mode.CARD:
            self._say(self._raw)
            self._raw = ""
        if not self._spoken and not self._thought and self._lead:
            self._out.append(Text(self._lead))
        return self._take()

    def _take(self) -> list[Piece]:
        out, self._out = self._out, []
        return out

    def _say(self, text: str) -> None:
        """Tell text. White space around reasoning that comes before the first word belongs to neither."""
        if not self._spoken:
            self._lead += text
            words = self._lead.lstrip()
            text = words if self._thought or not words else self._lead
            self._spoken = bool(words)
        if text:
            self._out.append(Text(text))

    def _pass(self, count: int) -> None:
        """Tell the first characters of what is held."""
        text, self._held = self._held[:count], self._held[count:]
        if text:
            self._last = text[-1]
            self._say(text)

    def _work(self, *, ending: bool) -> None:
        # Each step eats something of what is held or asks for more, so this ends with the input.
        while self._held and self._STEPS[self._mode](self, ending):
            pass

    def _read_text(self, ending: bool) -> bool:
        found = _CANDIDATE.search(self._held)
        if found is None:
            self._pass(len(self._held))
            return False
        self._pass(found.start())
        if self._held[0] == "<":
            return self._read_tag(ending)
        if self._last == "\n":
            return self._read_fence(ending)
        self._pass(1)
        return True

    def _read_tag(self, ending: bool) -> bool:
        if self._last != "`":
            for tag in _TAGS:
                if self._held.startswith(tag):
                    self._held = self._held[len(tag) :]
                    if tag in _OPEN:
                        self._mode = _Mode.REASONING
                    self._thought = True
                    return True
            if not ending and any(tag.startswith(self._held) for tag in _TAGS):
                return False
        self._pass(1)
        return True

    def _read_fence(self, ending: bool) -> bool:
        """Read a line that begins with a backtick, which may open a card or a code block."""
        if not self._held.startswith("```"):
            if not ending and "```".startswith(self._held):
                return False
            self._pass(1)
            return True
        end = self._held.find("\n")
        if end < 0 and not ending and len(self._held) <= INFO_SIZE_MAX:
            return False
        if end < 0 or end > INFO_SIZE_MAX:
            self._pass(1)
            return True
        line = self._held[:end].rstrip()
        ticks = len(line) - len(line.lstrip("`"))
        info = line[ticks:].strip()
        if info == "card" and ticks == 3:
            self._raw, self._held = self._held[: end + 1], self._held[end + 1 :]
            self._mode = _Mode.CARD
            return True
        self._pass(end + 1)
        if "`" not in info:
            self._fence, self._mode = ticks, _Mode.CODE
        return True

    def _read_code(self, ending: bool) -> bool:
        """Tell code line by line, until the fence's like stands alone on a line."""
        end = self._held.find("\n")
        if self._last == "\n" and self._held[0] == "`":
            line = self._held if end < 0 else self._held[:end]
            if not line.rstrip().strip("`"):
                if end < 0 and not ending and len(line) <= INFO_SIZE_MAX:
                    return False
                ticks = len(line.rstrip())
                if end >= 0 and end <= INFO_SIZE_MAX and ticks >= self._fence:
                    self._mode = _Mode.TEXT
        self._pass(end + 1 if end >= 0 else len(self._held))
        return True

    def _read_card(self, ending: bool) -> bool:
        """Gather a card's lines until its fence closes; what is no card is told as it stood."""
        end = self._held.find("\n")
        line = self._held if end < 0 else self._held[: end + 1]
        if len(self._raw) + len(line) > CARD_SIZE_MAX:
            self._last = "\n"
            self._say(self._raw)
            self._raw, self._fence, self._mode = "", 3, _Mode.CODE
            return True
        if end < 0 and not ending:
            return False
        self._raw += line
        self._held = self._held[len(line) :]
        if line.strip() == "```":
            self._end_card()
        return True

    def _end_card(self) -> None:
        raw, self._raw = self._raw, ""
        self._mode, self._last = _Mode.TEXT, "\n"
        card = parse_card("\n".join(raw.strip().split("\n")[1:-1]))
        if card is None:
            self._say(raw)
        else:
            self._out.append(card)

    def _read_reasoning(self, ending: bool) -> bool:
        places = [(self._held.find(tag), tag) for tag in _CLOSE if tag in self._held]
        if places:
            place, tag = min(places)
            self._think(self._held[:place])
            self._held = self._held[place + len(tag) :]
            self._mode, self._last = _Mode.TEXT, "\n"
            return True
        keep = 0 if ending else _held_tail(self._held, _CLOSE)
        self._think(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _think(self, text: str) -> None:
        if text:
            self._out.append(Reasoning(text))

    _STEPS = (_read_text, _read_code, _read_card, _read_reasoning)
