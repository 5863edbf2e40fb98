"""What goes over the wire to a model and comes back, and what is kept of it."""

from collections.abc import Sequence
from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest
from retinue_kit.tokens import estimate

from retinue_runtime_adapter.light.state import Step

TOKENS_MAX = 2**31 - 1
"""The contract counts in 32 bits."""

EMPTY = "[empty]"
"""A result without a word: some endpoints refuse an empty message."""

_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_INTEGERS = ("max_tokens", "max_completion_tokens", "seed")
_encoder = msgspec.json.Encoder()


class FunctionDelta(msgspec.Struct):
    """A piece of what a call calls."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallDelta(msgspec.Struct):
    """A piece of a tool call."""

    index: int | None = None
    id: str | None = None
    function: FunctionDelta | None = None


class Delta(msgspec.Struct):
    """A piece of the answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class Choice(msgspec.Struct):
    """The answer; there is one."""

    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    """Tokens used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    """One event of the stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


decode_chunk = msgspec.json.Decoder(Chunk).decode


class Done(msgspec.Struct):
    """The checkpoint: the model's message is whole, and only the end is missing."""

    runtime: str
    text: str
    cards: list[dict[str, Any]]
    input_tokens: int
    output_tokens: int
    model: str
    earlier: list[str] = []
    """Messages before the last one, where a run said several."""
    cost_micros: int = 0
    earlier_cards: list[list[dict[str, Any]]] = []
    """Cards of the messages before the last one, where they were told with them."""


def read_checkpoint(data: bytes, runtime: str = "light") -> Done | None:
    """Read a checkpoint; None if there is none or it is another runtime's, so that the attempt begins anew."""
    if not data:
        return None
    try:
        done = msgspec.json.decode(data, type=Done)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return done if done.runtime == runtime else None


def write_checkpoint(done: Done) -> bytes:
    """Write a checkpoint."""
    return _encoder.encode(done)


Message = dict[str, Any]


def messages(request: InvokeRequest) -> list[Message]:
    """The conversation as a model reads it: persona and preface in one message, context, and what is said now."""
    told = "\n\n".join(filter(None, (request.persona, request.preface)))
    found: list[Message] = [{"role": "system", "content": told}] if told else []
    found += [{"role": message.role, "content": message.text} for message in request.context]
    found.append({"role": "user", "content": request.text})
    return found


def joined(conversation: Sequence[Message]) -> list[Message]:
    """The same conversation with neighbours of one role made one message, for models whose roles must alternate.

    A run that failed leaves a question without an answer, so two questions in a row are nothing unusual.
    """
    result: list[Message] = []
    for message in conversation:
        if result and result[-1]["role"] == message["role"] and _is_plain(result[-1]) and _is_plain(message):
            result[-1] = {"role": message["role"], "content": f"{result[-1]['content']}\n\n{message['content']}"}
        else:
            result.append(message)
    return result


def _is_plain(message: Message) -> bool:
    """Whether a message is a role's words and nothing else."""
    return message.keys() == {"role", "content"}


def of_step(step: Step) -> list[Message]:
    """A step as a model reads it: what it said and asked for, then what came of each call."""
    calls = [
        {"id": call.call_id, "type": "function", "function": {"name": call.tool, "arguments": call.arguments}}
        for call in step.calls
    ]
    found: list[Message] = [{"role": "assistant", "content": step.text or None, "tool_calls": calls}]
    found += [{"role": "tool", "tool_call_id": call.call_id, "content": call.result or EMPTY} for call in step.calls]
    return found


def of_step_in_words(step: Step) -> list[Message]:
    """The same for a model that knows nothing of tools."""
    called = "\n".join(f"[called {call.tool} with {call.arguments}]" for call in step.calls)
    came = "\n\n".join(f"[{call.tool} answered]\n{call.result}" for call in step.calls)
    said = f"{step.text}\n{called}" if step.text else called
    return [{"role": "assistant", "content": said}, {"role": "user", "content": came}]


def tokens(conversation: Sequence[Message]) -> int:
    """Tokens that a model has to read, about."""
    return sum(
        estimate(message["content"] or "")
        + sum(estimate(call["function"]["arguments"]) for call in message.get("tool_calls", ()))
        for message in conversation
    )


def parameters(struct: Struct) -> dict[str, Any]:
    """The parameters that chat completions know; the rest, and what has the wrong kind, is left out."""
    found: dict[str, Any] = {}
    for name, value in struct.fields.items():
        kind = value.WhichOneof("kind")
        if name in _NUMBERS and kind == "number_value":
            found[name] = value.number_value
        elif name in _INTEGERS and kind == "number_value" and value.number_value.is_integer():
            found[name] = int(value.number_value)
        elif name == "stop" and kind == "string_value":
            found[name] = value.string_value
        elif name == "stop" and kind == "list_value":
            found[name] = [item.string_value for item in value.list_value.values]
    return found


def body(
    model: str,
    conversation: Sequence[Message],
    options: dict[str, Any],
    tools: Sequence[msgspec.Raw] = (),
    *,
    may_call: bool = True,
) -> bytes:
    """The request's body; with tools, unless none may be called any more."""
    value = {"model": model, "messages": conversation, "stream": True, "stream_options": {"include_usage": True}}
    if tools:
        # Endpoints refuse an empty list, and some a conversation with calls of tools that are not described.
        value["tools"] = tools
        if not may_call:
            value["tool_choice"] = "none"
    return _encoder.encode({**value, **options})


def counted(tokens: int) -> int:
    """A count of tokens as the contract can carry it."""
    return max(0, min(tokens, TOKENS_MAX))
