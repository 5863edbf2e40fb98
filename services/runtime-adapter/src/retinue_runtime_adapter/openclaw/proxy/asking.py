"""What a gateway asks of a model, and what we make of it: the run's model, parameters and conversation."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from retinue_kit.tokens import Tally, estimate

from retinue_runtime_adapter.light import wire
from retinue_runtime_adapter.openclaw.prompt import Message, shape

_LENGTHS = ("max_tokens", "max_completion_tokens")
"""Two names of one thing, of which each endpoint knows one. A gateway names one of them in every request; here it is
for the run to say how long an answer may be."""

_NONE = (b"", b"[]", b"null")
"""How a list of tools says that there is none."""

_ESCAPE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\.")

Fields = dict[str, msgspec.Raw]

_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_messages = msgspec.json.Decoder(list[Message]).decode
_decode_tools = msgspec.json.Decoder(list[dict[str, Any]] | None).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class MalformedError(ValueError):
    """A body that is no request for a chat completion; the text says why."""


def _whole(found: re.Match[bytes]) -> bytes:
    escape = found.group()
    return b"\\ufffd" if len(escape) == 6 else escape


def _read(body: bytes) -> tuple[Fields, list[Message]]:
    try:
        fields = _decode_fields(body)
        return fields, _decode_messages(fields["messages"])
    except KeyError:
        raise MalformedError("The request has no messages.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedError(f"The request is malformed: {error}.") from None


def _offered(fields: Fields, names: Collection[str]) -> Fields:
    """Leave out tools that the run is not offered: agents have the same ones, whosever they are."""
    try:
        tools = _decode_tools(fields.get("tools", msgspec.Raw(b"null"))) or []
    except msgspec.DecodeError as error:
        raise MalformedError(f"The request is malformed: {error}.") from None
    offered = [tool for tool in tools if _name(tool) in names]
    return fields if len(offered) == len(tools) else {**fields, "tools": msgspec.Raw(_encode(offered))}


def _name(tool: dict[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None


class Asked:
    """A request as it goes to a model, whichever one it will be. What is not ours to set is passed on byte by byte."""

    def __init__(self, fields: Fields, messages: Sequence[Message], options: dict[str, Any]) -> None:
        self._fields = fields
        self._messages = messages
        self._options = options
        self._tokens: int | None = None

    @classmethod
    def read(
        cls,
        body: bytes,
        before: Sequence[Message],
        options: dict[str, Any],
        tools: Collection[str] | None = None,
        preface: str = "",
    ) -> "Asked":
        """Read a body. `before` is the conversation before it and `preface` what stands before that, `options` the
        run's, `tools` the names of those that it is offered, None for all. Raises MalformedError.
        """
        try:
            fields, messages = _read(body)
        except MalformedError:
            # JavaScript cuts a text between the halves of a letter, and such a half is no letter in JSON.
            body = _ESCAPE.sub(_whole, body)
            fields, messages = _read(body)
        shaped = shape(messages, before, preface)
        found = cls(fields if tools is None else _offered(fields, tools), shaped, options)
        found.options_of_stream()
        return found

    @property
    def streamed(self) -> bool:
        """Whether the answer is wanted as a stream."""
        return self._fields.get("stream", b"") == msgspec.Raw(b"true")

    @property
    def wants_usage(self) -> bool:
        """Whether the usage is wanted at the end of the stream."""
        return self.options_of_stream().get("include_usage") is True

    def options_of_stream(self) -> dict[str, Any]:
        """Read how the stream is wanted. Raises MalformedError."""
        options = _decode_any(self._fields.get("stream_options", msgspec.Raw(b"null")))
        if options is not None and not isinstance(options, dict):
            raise MalformedError("The request is malformed: stream_options is no object.")
        return options or {}

    def body(self, model: str) -> bytes:
        """Write the request for a model."""
        value: dict[str, Any] = {**self._fields, "model": model, "messages": self._messages}
        if self.streamed:
            value["stream_options"] = {**self.options_of_stream(), "include_usage": True}
        for name in _LENGTHS:
            value.pop(name, None)
        if bytes(self._fields.get("tools", b"")) in _NONE:
            # Endpoints refuse an empty list, and a choice of nothing.
            value.pop("tools", None)
            value.pop("tool_choice", None)
        return _encode({**value, **self._options})

    def tokens(self) -> int:
        """Count what a model has to read: texts, calls of tools and their descriptions. Images count nothing."""
        if self._tokens is None:
            tools = bytes(self._fields.get("tools", b"")).decode(errors="replace")
            self._tokens = sum(map(_tokens, self._messages)) + estimate(tools)
        return self._tokens

    def joined(self) -> "Asked | None":
        """Ask the same with neighbours of one role made one message; None if there are none."""
        joined: list[Message] = []
        for message in self._messages:
            if joined and _plain(joined[-1]) and _plain(message) and joined[-1]["role"] == message["role"]:
                joined[-1] = {**message, "content": _both(joined[-1]["content"], message["content"])}
            else:
                joined.append(message)
        return Asked(self._fields, joined, self._options) if len(joined) < len(self._messages) else None


def _plain(message: Message) -> bool:
    """Whether a message is a role's words and nothing else."""
    return message.keys() == {"role", "content"} and isinstance(message["content"], str | list)


def _both(one: str | list[Any], other: str | list[Any]) -> str | list[Any]:
    if isinstance(one, str) and isinstance(other, str):
        return f"{one}\n\n{other}"
    return [*_parts(one), *_parts(other)]


def _parts(content: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _tokens(message: Message) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            texts += [function.get("name"), function.get("arguments")]
    return sum(estimate(text) for text in texts if isinstance(text, str))


def estimated(asked: Asked, said: Tally) -> wire.Usage:
    """The usage of an answer, where the endpoint counts nothing."""
    return wire.Usage(asked.tokens(), said.tokens)
