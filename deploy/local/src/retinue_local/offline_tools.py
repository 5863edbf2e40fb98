"""How the offline model calls tools: as the lines of a message say, step after step.

    #say=TEXT            said before the calls of its step; behind them, or in a step without calls: the answer
    #tool=NAME {JSON}    a call; several lines are several calls of one step
    #then                what follows is the next step, once the results are there

`{results}` in an answer stands for all results, joined by " | ". Behind the last step the answer quotes them anyway.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_LINE = re.compile(r"(?:^|(?<=\s))#(?:(tool)=(\S+)[ \t]*([^\n]*)|(say)=([^\n]*)|(then)(?=\s|\Z))", re.M)

PIECE_LENGTH = 12
"""Characters of arguments in one event."""

RESULTS = "{results}"


@dataclass(frozen=True, slots=True)
class Called:
    """A call of a tool, with its arguments as they stand in the message, valid or not."""

    call_id: str
    tool: str
    arguments: str

    def whole(self) -> dict[str, object]:
        """The call as an answer that is not streamed holds it."""
        function = {"name": self.tool, "arguments": self.arguments}
        return {"id": self.call_id, "type": "function", "function": function}


@dataclass(slots=True)
class _Step:
    before: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    answer: str | None = None


class Script:
    """What a message says about tools."""

    def __init__(self, rest: str, steps: Sequence[_Step]) -> None:
        self.rest = rest
        """The message without it."""
        self._steps = steps

    @classmethod
    def find(cls, said: str) -> "Script | None":
        """Read it; None if the message calls no tool."""
        steps = [_Step()]
        for found in _LINE.finditer(said):
            step = steps[-1]
            if found[1]:
                step.calls.append((found[2], found[3].strip() or "{}"))
            elif found[6]:
                steps.append(_Step())
            elif step.calls:
                step.answer = found[5].strip()
            else:
                step.before = found[5].strip()
        if not any(step.calls for step in steps):
            return None
        return cls(_LINE.sub("", said).strip(), steps)

    def next(self, since: Sequence[tuple[str, str, bool]], *, turn: int, may_call: bool) -> tuple[str, list[Called]]:
        """What is said now, and the calls that go with it. `since` is what came behind the message, the `turn`-th."""
        done = sum(calls for _, _, calls in since)
        results = " | ".join(text for role, text, _ in since if role == "tool")
        step = self._steps[done] if done < len(self._steps) else None
        if step is not None and step.calls and may_call:
            return step.before, [self._call(turn, done, place, *call) for place, call in enumerate(step.calls)]
        if step is not None and not step.calls:
            answer: str | None = step.before
        else:
            answer = next((found.answer for found in reversed(self._steps) if found.answer is not None), None)
        said = f"The tools said: {RESULTS}" if answer is None else answer
        return said.replace(RESULTS, results), []

    def _call(self, turn: int, step: int, place: int, tool: str, arguments: str) -> Called:
        digest = hashlib.sha256(f"{turn} {self._steps}".encode()).hexdigest()[:8]
        return Called(f"call_{digest}_{step}_{place}", tool, arguments)


def call_chunks(calls: Sequence[Called]) -> Iterator[bytes]:
    """The calls as pieces of a stream, arguments cut anywhere; each is the beginning of an event's choices."""
    for index, call in enumerate(calls):
        head = {
            "index": index,
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.tool, "arguments": ""},
        }
        yield _chunk(head)
        for start in range(0, len(call.arguments), PIECE_LENGTH):
            piece = call.arguments[start : start + PIECE_LENGTH]
            yield _chunk({"index": index, "function": {"arguments": piece}})


def _chunk(call: dict[str, object]) -> bytes:
    delta = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
    return json.dumps([delta]).encode()[:-2]
