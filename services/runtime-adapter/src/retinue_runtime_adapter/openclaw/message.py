"""A message while it is said: its text as a gateway tells it, shaped, and the events that tell it to others."""

from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent

from retinue_runtime_adapter.domain.shaping import Card, Piece, Reasoning, Shaper, Text
from retinue_runtime_adapter.light.answer import card_event


class Message:
    """The message that is being said."""

    def __init__(self, item_id: str = "") -> None:
        self.item_id = item_id
        self.raw = ""
        self.text = ""
        self.cards: list[Card] = []
        self.reasoning = ""
        self.size_bytes = 0
        self._shaper = Shaper()

    @property
    def said(self) -> bool:
        """Whether a client has seen anything of it."""
        return bool(self.text or self.cards)

    def become(self, raw: str) -> list[RuntimeEvent]:
        """Take up the whole text as it is now."""
        if raw.startswith(self.raw):
            added = raw[len(self.raw) :]
            self.raw = raw
            return self._add(self._shaper.feed(added)) if added else []
        former = self.text, len(self.cards), self.reasoning
        self.raw, self._shaper = raw, Shaper()
        return self._again(self._shaper.feed(raw), *former)

    def finish(self) -> list[RuntimeEvent]:
        """Tell what was held back."""
        return self._add(self._shaper.finish())

    def _add(self, pieces: list[Piece]) -> list[RuntimeEvent]:
        events: list[RuntimeEvent] = []
        text = ""
        for piece in pieces:
            if not isinstance(piece, Card):
                self.size_bytes += len(piece.text.encode())
            if isinstance(piece, Text):
                text += piece.text
                continue
            if text:
                events.append(_delta(text))
                self.text, text = self.text + text, ""
            if isinstance(piece, Card):
                self.cards.append(piece)
                events.append(_card(piece))
            else:
                self.reasoning += piece.text
                events.append(_reasoning(piece.text))
        if text:
            self.text += text
            events.append(_delta(text))
        return events

    def _again(self, pieces: list[Piece], text: str, card_count: int, reasoning: str) -> list[RuntimeEvent]:
        """Tell a text that was rewritten, as little of it as possible: cards and reasoning cannot be taken back."""
        told = self.cards[:card_count]
        whole = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        thought = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
        events = []
        if whole.startswith(text):
            if whole != text:
                events.append(_delta(whole[len(text) :]))
        else:
            events.append(RuntimeEvent(text_delta=pb.TextDelta(text=whole, replace=True)))
        self.text = whole
        self.size_bytes = len(whole.encode()) + len(thought.encode())
        for piece in pieces:
            if isinstance(piece, Card) and piece not in told:
                self.cards.append(piece)
                events.append(_card(piece))
        if thought.startswith(reasoning):
            if thought != reasoning:
                events.append(_reasoning(thought[len(reasoning) :]))
            self.reasoning = thought
        return events


def _delta(text: str) -> RuntimeEvent:
    return RuntimeEvent(text_delta=pb.TextDelta(text=text))


def _reasoning(text: str) -> RuntimeEvent:
    return RuntimeEvent(reasoning_delta=pb.ReasoningDelta(text=text))


def _card(card: Card) -> RuntimeEvent:
    return card_event({"kind": card.kind, "title": card.title, "body": card.body})
