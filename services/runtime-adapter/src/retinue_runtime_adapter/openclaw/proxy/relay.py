"""A model's answer on its way to a gateway: passed on as it came, without what the model thinks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from opentelemetry.trace import Span
from retinue_kit.tokens import Tally

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain import troubles
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.endpoint import Call
from retinue_runtime_adapter.light.wire import Chunk, Usage
from retinue_runtime_adapter.openclaw.proxy.thinking import Thinking

ANSWER_SIZE_MAX_BYTES = 32 * 1024 * 1024
"""Bytes of an answer that is not a stream."""

ANSWER_TIMEOUT_S = 300.0
"""Seconds for an answer that is not a stream: nothing is heard of it before it is whole."""

DONE = b"data: [DONE]\n\n"

_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")
_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


class Part(NamedTuple):
    """A part of an answer: what is passed on, and what the model thinks, which is not."""

    data: bytes
    thought: str = ""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Said(msgspec.Struct):
    tool_calls: list[_ToolCall] | None = None
    content: Any = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Said | None = None
    message: _Said | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def _tool_words(said: _Said | None) -> str:
    calls = said.tool_calls if said is not None else None
    functions = [call.function for call in calls or [] if call.function is not None]
    return "".join((function.name or "") + (function.arguments or "") for function in functions)


class Relay(Call[Part]):
    """A call whose answer is a stream. `said` counts what was said and thought so far."""

    def __init__(
        self, wants_usage: bool, attempt: Attempt, settings: Settings, span: Span, keys: Sequence[str]
    ) -> None:
        super().__init__(attempt, settings, span, keys)
        self.said = Tally()
        self._wants_usage = wants_usage
        self._thinking = Thinking()
        # What says nothing yet is held back, so that another model can still answer in its place; and what may turn out
        # to be a thought or none, as it came and without.
        self._raw = b""
        self._clean = b""

    def _take(self, line: bytes, chunk: Chunk, said: list[Part]) -> None:
        if not chunk.choices:
            if chunk.usage is None or self._wants_usage:
                self._hold(_event(line), _event(line))
            return
        choice = chunk.choices[0]
        thought, content, tools = "", "", b'"tool_calls"' in line
        if choice.delta is not None:
            thought = choice.delta.reasoning_content or choice.delta.reasoning or ""
            content = choice.delta.content or ""
        self.said.add(thought + content)
        if tools:
            self.said.add(_tool_words(_tools(line)))
        ending = tools or bool(choice.finish_reason)
        inner, words = "", content
        if not self._thinking.past and (content or ending):
            inner, words = self._thinking.feed(content, ending=ending)
        raw = _rewritten(line, content) if thought else _event(line)
        self._hold(raw, raw if words == content else _rewritten(line, words))
        if not self._thinking.unsure and (thought or inner or words or ending):
            said.append(Part(self._release(), thought + inner))
        elif thought:
            said.append(Part(b"", thought))

    def _hold(self, raw: bytes, clean: bytes) -> None:
        self._raw += raw
        self._clean += clean

    def _release(self) -> bytes:
        data = self._clean if self._thinking.found else self._raw
        self._raw = self._clean = b""
        return data

    def rest(self) -> bytes:
        """What was held back, now that the answer is whole, and its end."""
        self._thinking.feed("", ending=True)
        return self._release() + DONE


class Whole(Call[Part]):
    """A call whose answer comes in one piece."""

    content_type = "application/json"

    def __init__(self, attempt: Attempt, settings: Settings, span: Span, keys: Sequence[str]) -> None:
        super().__init__(attempt, settings, span, keys)
        self.said = Tally()
        self._timeout_s = max(settings.model_first_timeout_s, ANSWER_TIMEOUT_S)

    async def read(self) -> list[Part]:
        """Read the answer. Raises Trouble."""
        body = await self.whole_body(ANSWER_SIZE_MAX_BYTES)
        try:
            answer = _decode_answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise troubles.invalid("The model's endpoint sent an answer that makes no sense.") from None
        if answer.error is not None:
            raise troubles.of_stream(body, self._keys)
        if not answer.choices or answer.choices[0].message is None:
            raise troubles.invalid("The model's endpoint sent an answer that makes no sense.")
        self.over, self.usage = True, answer.usage
        message = answer.choices[0].message
        content = message.content if isinstance(message.content, str) else ""
        thought = message.reasoning_content or message.reasoning or ""
        self.said.add(thought + content + _tool_words(message))
        inner, words = Thinking().feed(content, ending=True)
        if thought or words != content:
            body = _encode_whole(body, words)
        return [Part(body, thought + inner)]


def _tools(line: bytes) -> _Said | None:
    try:
        choices = _decode_answer(line).choices
    except msgspec.DecodeError:
        return None  # counts nothing; what it says is for the gateway to judge
    return choices[0].delta if choices else None


def _event(line: bytes) -> bytes:
    return b"data: " + line + b"\n\n"


def _rewritten(line: bytes, words: str) -> bytes:
    """An event without thoughts. It is passed on even if nothing is left of it: a gateway takes silence for a fault."""
    value = _decode_any(line)
    choice = value["choices"][0]
    delta = choice["delta"] = choice.get("delta") or {}
    _clear(delta, words)
    return _event(_encode(value))


def _encode_whole(body: bytes, words: str) -> bytes:
    value = _decode_any(body)
    message = value["choices"][0]["message"]
    _clear(message, words)
    message.setdefault("content", None)
    return _encode(value)


def _clear(message: dict[str, Any], words: str) -> None:
    for name in _THOUGHTS:
        message.pop(name, None)
    if words:
        message["content"] = words
    elif isinstance(message.get("content"), str):
        del message["content"]
