"""What a run's checkpoint holds between two steps: what the model said, what it asked for, what came of it."""

from typing import Any

import msgspec
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.tools.bounded import bounded
from retinue_runtime_adapter.tools.ledger import Entry

VERSION = 1
"""Of the state's shape. A newer one is left to a newer adapter: to begin anew could make calls twice."""

STEPS_MAX = 20
"""Steps with tool calls; then the model has to answer with what it has."""

SIZE_MAX_BYTES = 1024 * 1024
"""Bytes of a state. It is written with each step and each end of a call, and the model reads all of it again."""

SHORT_LENGTH = 2000
"""Characters that are kept of an older result, and of older arguments, where the state grows too large."""

RUNTIME = "light"


class Step(msgspec.Struct):
    """A step of the model that asked for tools."""

    text: str
    cards: list[dict[str, Any]]
    calls: list[Entry]

    @property
    def told(self) -> bool:
        """Whether it was a message of its own."""
        return bool(self.text or self.cards)

    @property
    def over(self) -> bool:
        """Whether each of its calls has come to an end."""
        return all(call.over for call in self.calls)


class Progress(msgspec.Struct):
    """The state. What was used is the present attempt's."""

    runtime: str
    version: int
    steps: list[Step]
    attempt: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    token: int = 0
    """Under which it was written: whoever goes on under that one has been told all of it already."""
    size_bytes: int = 0
    """Bytes that the model has produced in the whole run."""
    model: str = ""

    def call_ids(self) -> set[str]:
        """Ids of all calls."""
        return {call.call_id for step in self.steps for call in step.calls}

    def put(self, entry: Entry) -> None:
        """Take the place of the same call's former entry."""
        for step in self.steps:
            for place, call in enumerate(step.calls):
                if call.call_id == entry.call_id:
                    step.calls[place] = entry


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Progress)


def read(data: bytes, attempt: int) -> Progress:
    """Read a state, as an attempt goes on with it; a new one if there is none or it is not ours.

    Raises RUNTIME_UNAVAILABLE for one that a newer release has written.
    """
    found = Progress(RUNTIME, VERSION, [], attempt)
    if data:
        try:
            read_state = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            read_state = found
        if read_state.runtime == RUNTIME:
            found = read_state
    if found.version > VERSION:
        raise Trouble(Reason.RUNTIME_UNAVAILABLE, "The run was begun by a newer release of its runtime.")
    if found.attempt != attempt:
        # What a former attempt used is counted with that.
        found.attempt, found.input_tokens, found.output_tokens = attempt, 0, 0
    return found


def write(progress: Progress) -> bytes:
    """Write a state; if it is too large, older results are shortened first. Raises OUTPUT_TOO_LARGE."""
    data = _encoder.encode(progress)
    if len(data) <= SIZE_MAX_BYTES:
        return data
    for shorten in (_shorten_result, _shorten_arguments):
        for step in progress.steps:
            for place, call in enumerate(step.calls):
                step.calls[place] = shorten(call, last=step is progress.steps[-1])
            data = _encoder.encode(progress)
            if len(data) <= SIZE_MAX_BYTES:
                return data
    raise Trouble(Reason.OUTPUT_TOO_LARGE, f"The run's tool calls hold more than {SIZE_MAX_BYTES} bytes.")


def _shorten_result(call: Entry, *, last: bool) -> Entry:
    return msgspec.structs.replace(call, result=bounded(call.result, SHORT_LENGTH))


def _shorten_arguments(call: Entry, *, last: bool) -> Entry:
    # What is still to be made is kept whole.
    if last or not call.over or len(call.arguments) <= SHORT_LENGTH:
        return call
    return msgspec.structs.replace(call, arguments=f'{{"left_out": "{len(call.arguments)} characters"}}')
