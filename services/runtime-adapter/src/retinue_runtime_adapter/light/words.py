"""What the light runtime asks of a model, and the words that it makes of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from retinue_runtime_adapter.light import wire
from retinue_runtime_adapter.light.endpoint import Call


class Said(NamedTuple):
    """A part of what the model says."""

    reasoning: bool
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation and the run's parameters."""

    messages: Sequence[wire.Message]
    options: dict[str, Any]

    def body(self, model: str) -> bytes:
        return wire.body(model, self.messages, self.options)

    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)

    def joined(self) -> "Asked | None":
        joined = wire.joined(self.messages)
        return Asked(joined, self.options) if len(joined) < len(self.messages) else None


class Words(Call[Said]):
    """A call that is read as words, those thought apart from those said."""

    def _take(self, line: bytes, chunk: wire.Chunk, said: list[Said]) -> None:
        if not chunk.choices or chunk.choices[0].delta is None:
            return
        delta = chunk.choices[0].delta
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            _append(said, reasoning=True, text=thought)
        if delta.content:
            _append(said, reasoning=False, text=delta.content)


def _append(said: list[Said], *, reasoning: bool, text: str) -> None:
    if said and said[-1].reasoning == reasoning:
        text = said.pop().text + text
    said.append(Said(reasoning, text))
