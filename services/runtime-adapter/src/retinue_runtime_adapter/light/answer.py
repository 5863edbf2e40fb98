"""What an attempt has told so far, and the events that tell it."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import wire as kit_wire
from retinue_kit.errors import Reason
from retinue_kit.tokens import Tally

from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.domain.shaping import Card, Piece, Reasoning, Shaper, Text
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.state import Progress, Step
from retinue_runtime_adapter.light.wire import Done, Usage, counted, write_checkpoint
from retinue_runtime_adapter.light.words import Said


class Answer:
    """Turns what a model says into events."""

    def __init__(self, *, reasoning: bool, size_max_bytes: int, before: Progress | None = None) -> None:
        self.model = before.model if before else ""
        self.size_bytes = before.size_bytes if before else 0
        """Bytes that the model has produced, in the steps before too."""
        self.input_tokens = 0
        """Tokens that the model was asked to read, as estimated, once it is asked."""
        self._before = (before.input_tokens, before.output_tokens) if before else (0, 0)
        self._reasoning = reasoning
        self._size_max_bytes = size_max_bytes
        self._said = Tally()
        self._shaper = Shaper()
        self._texts: list[str] = []
        self._cards: list[dict[str, Any]] = []

    def trying(self, model: Model) -> None:
        """Say which model is asked."""
        self.model = model.name

    def add(self, said: list[Said]) -> list[RuntimeEvent]:
        """Take up what the model says; reasoning counts as output, told or not. Raises OUTPUT_TOO_LARGE."""
        pieces: list[Piece] = []
        for part in said:
            self._said.add(part.text)
            self.size_bytes += len(part.text.encode())
            if part.reasoning:
                pieces.append(Reasoning(part.text))
            else:
                pieces += self._shaper.feed(part.text)
        self._check_size()
        return self._events(pieces)

    def add_arguments(self, length: int) -> None:
        """Take up what the model says to its tools. Raises OUTPUT_TOO_LARGE."""
        self._said.add_plain(length)
        self.size_bytes += length
        self._check_size()

    def _check_size(self) -> None:
        if self.size_bytes > self._size_max_bytes:
            raise Trouble(Reason.OUTPUT_TOO_LARGE, f"The run produced more than {self._size_max_bytes} bytes.")

    def step(self) -> tuple[list[RuntimeEvent], str, list[dict[str, Any]]]:
        """Tell what was held back, and what was said before tools as a message of its own; answers it too."""
        events = self._events(self._shaper.finish())
        text = "".join(self._texts)
        if text or self._cards:
            events.append(RuntimeEvent(message_completed=pb.MessageCompleted(text=text)))
        return events, text, self._cards

    def end(self, usage: Usage | None, earlier: Sequence[Step] = ()) -> list[RuntimeEvent]:
        """Tell what was held back, the whole message, the checkpoint and the end."""
        events = self._events(self._shaper.finish())
        used = self.used(usage)
        text = "".join(self._texts)
        done = Done("light", text, self._cards, used.input_tokens, used.output_tokens, used.model)
        told = [step for step in earlier if step.told]
        done.earlier, done.earlier_cards = [step.text for step in told], [step.cards for step in told]
        events.append(RuntimeEvent(message_completed=pb.MessageCompleted(text=text)))
        events.append(RuntimeEvent(checkpoint=pb.Checkpoint(state=write_checkpoint(done))))
        events.append(RuntimeEvent(finished=pb.Finished(usage=used)))
        return events

    def counted(self, usage: Usage | None = None) -> tuple[int, int]:
        """Tokens that one call read and wrote: as the endpoint counted, else as estimated."""
        if usage is None:
            return counted(self.input_tokens), counted(self._said.tokens)
        return counted(usage.prompt_tokens), counted(usage.completion_tokens)

    def used(self, usage: Usage | None = None) -> pb.RuntimeUsage:
        """What the attempt has used, this call included."""
        (read, written), before = self.counted(usage), self._before
        return pb.RuntimeUsage(
            input_tokens=counted(before[0] + read), output_tokens=counted(before[1] + written), model=self.model
        )

    def _events(self, pieces: list[Piece]) -> list[RuntimeEvent]:
        events: list[RuntimeEvent] = []
        for index, piece in enumerate(pieces):
            if isinstance(piece, Card):
                card = {"kind": piece.kind, "title": piece.title, "body": piece.body}
                self._cards.append(card)
                events.append(card_event(card))
                continue
            if isinstance(piece, Reasoning) and not self._reasoning:
                continue
            following = pieces[index + 1] if index + 1 < len(pieces) else None
            if isinstance(following, Text | Reasoning) and type(following) is type(piece):
                pieces[index + 1] = type(piece)(piece.text + following.text)
            elif isinstance(piece, Text):
                self._texts.append(piece.text)
                events.append(RuntimeEvent(text_delta=pb.TextDelta(text=piece.text)))
            else:
                events.append(RuntimeEvent(reasoning_delta=pb.ReasoningDelta(text=piece.text)))
        return events


def card_event(card: dict[str, Any]) -> RuntimeEvent:
    """A card as an event."""
    body = Struct()
    body.update(card["body"])
    return RuntimeEvent(card=pb.Card(kind=card["kind"], title=card["title"], body=body))


def repeated(done: Done, state: bytes) -> list[RuntimeEvent]:
    """Tell again what a former attempt had whole: nobody has recorded it, or the run would not be here again."""
    usage = pb.RuntimeUsage(
        input_tokens=done.input_tokens,
        output_tokens=done.output_tokens,
        model=done.model,
        cost_micros=done.cost_micros,
    )
    events: list[RuntimeEvent] = []
    for text, cards in zip_longest(done.earlier, done.earlier_cards[: len(done.earlier)]):
        events += message_events(text, cards or [])
    events += message_events(done.text, done.cards)
    events.append(RuntimeEvent(checkpoint=pb.Checkpoint(state=state)))
    events.append(RuntimeEvent(finished=pb.Finished(usage=usage)))
    return events


def message_events(text: str, cards: list[dict[str, Any]]) -> list[RuntimeEvent]:
    """Tell a whole message with its cards."""
    told = [RuntimeEvent(text_delta=pb.TextDelta(text=text))] if text else []
    completed = RuntimeEvent(message_completed=pb.MessageCompleted(text=text))
    return [*told, *(card_event(card) for card in cards), completed]


def ended(runtime: str, texts: list[str], cards: list[pb.Card], usage: pb.RuntimeUsage) -> list[RuntimeEvent]:
    """Tell that an attempt is over and well, behind a checkpoint of all that it said."""
    *earlier, text = texts or [""]
    shown = [{"kind": card.kind, "title": card.title, "body": MessageToDict(card.body)} for card in cards]
    done = Done(runtime, text, shown, usage.input_tokens, usage.output_tokens, usage.model, earlier, usage.cost_micros)
    return [
        RuntimeEvent(checkpoint=pb.Checkpoint(state=write_checkpoint(done))),
        RuntimeEvent(finished=pb.Finished(usage=usage)),
    ]


def failed(trouble: Trouble, usage: pb.RuntimeUsage) -> RuntimeEvent:
    """Tell that the attempt is over and not well."""
    return RuntimeEvent(
        failed=pb.Failed(error=kit_wire.to_status(trouble.error), retryable=trouble.retryable, usage=usage)
    )
