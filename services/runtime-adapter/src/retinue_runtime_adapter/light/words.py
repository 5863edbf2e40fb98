"""What the light runtime asks of a model, and what it makes of the answer: words, and calls of tools."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from opentelemetry.trace import Span
from retinue_kit.errors import Reason

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light import wire
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.endpoint import Call, Provider
from retinue_runtime_adapter.light.state import Step
from retinue_runtime_adapter.tools.ports import Tool
from retinue_runtime_adapter.tools.schemas import described

CALLS_MAX = 32
"""Calls of one step; what a model asks for beyond is not taken up."""

ARGUMENTS_LENGTH_MAX = 640 * 1024
"""Characters of one call's arguments: the longest file that a tool writes, as JSON."""

PLACES_MAX = 256
"""Calls of one step, the ones that are not taken up included; beyond, the model is not listened to any more."""

STEP_LENGTH_MAX = 4 * ARGUMENTS_LENGTH_MAX
"""Characters of all pieces of a step's calls; beyond, the model is not listened to any more."""


class Said(NamedTuple):
    """A part of what the model says."""

    reasoning: bool
    text: str


@dataclass(slots=True)
class Asked:
    """A conversation with the run's parameters, and the tools that may be called. `suit` says for whose model."""

    messages: Sequence[wire.Message]
    options: dict[str, Any]
    steps: Sequence[Step] = ()
    tools: Sequence[Tool] = ()
    may_call: bool = True
    provider: Provider | None = field(default=None)

    def suit(self, provider: Provider) -> None:
        """Ask as a provider's models can be asked."""
        self.provider = provider

    def body(self, model: str) -> bytes:
        if not self.tools and not self.steps:
            return wire.body(model, self.messages, self.options)
        provider = self.provider
        knows = provider is None or provider.tools
        write = wire.of_step if knows else wire.of_step_in_words
        conversation = [*self.messages, *(message for step in self.steps for message in write(step))]
        tools = described(self.tools, provider.dialect if provider else "openai") if knows else ()
        return wire.body(model, conversation, self.options, tools, may_call=self.may_call)

    def tokens(self) -> int:
        steps = [message for step in self.steps for message in wire.of_step(step)]
        return wire.tokens(self.messages) + wire.tokens(steps)

    def joined(self) -> "Asked | None":
        joined = wire.joined(self.messages)
        if len(joined) == len(self.messages):
            return None
        return Asked(joined, self.options, self.steps, self.tools, self.may_call, self.provider)


@dataclass(slots=True)
class Wanted:
    """A call that a model asks for, put together from its pieces."""

    call_id: str = ""
    tool: str = ""
    pieces: list[str] = field(default_factory=list)
    length: int = 0

    @property
    def too_long(self) -> bool:
        """Whether its arguments are more than a call may have; what is beyond is not kept."""
        return self.length > ARGUMENTS_LENGTH_MAX

    @property
    def arguments(self) -> str:
        """What was said of its arguments."""
        return "".join(self.pieces)

    def add(self, delta: wire.CallDelta) -> int:
        """Take up a piece; answers its length."""
        self.call_id = self.call_id or delta.id or ""
        function = delta.function
        if function is None:
            return 0
        self.tool = self.tool or function.name or ""
        found = function.arguments
        text = msgspec.json.encode(found).decode() if isinstance(found, dict) else found or ""
        self.length += len(text)
        if not self.too_long:
            self.pieces.append(text)
        return len(text)


class Words(Call[Said]):
    """A call that is read as words, those thought apart from those said, and as calls of tools."""

    def __init__(self, attempt: Attempt, settings: Settings, span: Span, keys: Sequence[str]) -> None:
        super().__init__(attempt, settings, span, keys)
        self.wanted: list[Wanted] = []
        """Calls that the model asks for, in their order."""
        self._places: dict[int, Wanted] = {}
        self._length = 0

    def _take(self, line: bytes, chunk: wire.Chunk, said: list[Said]) -> None:
        if not chunk.choices or chunk.choices[0].delta is None:
            return
        delta = chunk.choices[0].delta
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            _append(said, reasoning=True, text=thought)
        if delta.content:
            _append(said, reasoning=False, text=delta.content)
        for piece in delta.tool_calls or ():
            self._assemble(piece)

    def _assemble(self, piece: wire.CallDelta) -> None:
        """Add a piece to its call. Raises OUTPUT_TOO_LARGE."""
        place = piece.index if piece.index is not None else len(self._places) - (0 if piece.id else 1)
        found = self._places.get(max(place, 0))
        if found is not None and piece.id and found.call_id and piece.id != found.call_id:
            # Some endpoints give each call the same place, and tell them apart by their ids alone.
            place, found = max(self._places) + 1, None
        if found is None:
            found = self._places[max(place, 0)] = Wanted()
            if len(self.wanted) < CALLS_MAX:
                self.wanted.append(found)
        self._length += found.add(piece)
        if self._length > STEP_LENGTH_MAX or len(self._places) > PLACES_MAX:
            raise Trouble(Reason.OUTPUT_TOO_LARGE, "The model asks for tool calls without end.")

    @property
    def arguments_length(self) -> int:
        """Characters of all arguments."""
        return sum(wanted.length for wanted in self.wanted)


def _append(said: list[Said], *, reasoning: bool, text: str) -> None:
    if said and said[-1].reasoning == reasoning:
        text = said.pop().text + text
    said.append(Said(reasoning, text))
