"""What the offline model answers: read from the conversation and the directives in it (see offline_model)."""

import json
import re
from typing import Any

import msgspec

from retinue_local.offline_summary import summary_of
from retinue_local.offline_tools import Called, Script, call_chunks

NAME = "offline"

_DIRECTIVE = re.compile(r"(?:^|(?<=\s))#([a-z_]+)(=\S*)?")
_TO_END = re.compile(r"(?:^|(?<=\s))#echo=(.*)\Z", re.S)
_PHRASE = re.compile(r"(?:^|(?<=\s))#(think|reasoning)=(.*?)(?=\s#|\Z)", re.S)
_TOKEN = re.compile(r"\s*\S+|\s+\Z")
_KNOWN = {
    "tokens",
    "recall",
    "card",
    "first",
    "delay",
    "no_usage",
    "status",
    "code",
    "retry_after",
    "fail_times",
    "key",
    "refuse_key",
    "refuse_model",
    "strict_roles",
    "error",
    "cut",
    "hang",
    "nonsense",
}
BEFORE = b'data: {"id":"chatcmpl-offline","object":"chat.completion.chunk","created":0,"model":"offline","choices":'
ROLE = BEFORE + b'[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
STOP = BEFORE + b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
CALLS = BEFORE + b'[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'
_AFTER = b'"},"finish_reason":null}]}\n\n'
_CONTENT = BEFORE + b'[{"index":0,"delta":{"content":"'
_REASONING = BEFORE + b'[{"index":0,"delta":{"reasoning_content":"'
_NUMBERED = [_CONTENT + f"{' ' if n else ''}t{n}".encode() + _AFTER for n in range(512)]


class Message(msgspec.Struct):
    """A message of the conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None

    def text(self) -> str:
        """What was said; parts other than text are left out."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text") or "") for part in self.content)
        return self.content or ""


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool = False


class Request(msgspec.Struct):
    """A request for an answer."""

    messages: list[Message]
    model: str = NAME
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None


class Plan:
    """What is to be answered: read from the conversation, so that the same one gets the same answer."""

    def __init__(self, request: Request) -> None:
        users = [message.text() for message in request.messages if message.role == "user"]
        said = users[-1] if users else ""
        self.options: dict[str, str] = {}
        self.reasoning = ""
        self.calls: list[Called] = []
        system = request.messages[0].text() if request.messages and request.messages[0].role == "system" else ""
        spoken = summary_of(system, said)
        if "#" in said and spoken is None:
            script = Script.find(said)
            if script is not None:
                said = script.rest
                may_call = bool(request.tools) and request.tool_choice != "none"
                since = _since_last_user(request.messages)
                spoken, self.calls = script.next(since, turn=len(users), may_call=may_call)
            said = self._steer(said)
        self.thought = self.options.pop("think", "")
        self.numbered = self.number("tokens", -1)
        if spoken is not None:
            self.text, self.numbered = spoken, -1
        elif self.numbered >= 0:
            self.text = " ".join(f"t{n}" for n in range(self.numbered))
        elif "echo" in self.options:
            self.text = self.options["echo"]
        elif "recall" in self.options:
            self.text = " | ".join(users[:-1])
        else:
            earlier = sum(message.role != "system" for message in request.messages[:-1])
            self.text = (
                f"(offline model) You said: {said}\nThis is Retinue's bundled offline model: it repeats, it does not "
                f"think. Earlier messages that it was shown: {earlier}."
            )
        if "card" in self.options:
            card = json.dumps({"kind": "note", "title": "Offline", "body": {"text": said, "count": 1}})
            self.text = f"Here is a card.\n```card\n{card}\n```\n{self.text}"
        if self.thought:
            self.text = f"<think>{self.thought}</think>{self.text}"
        self.input_tokens = sum(count_tokens(message.text()) for message in request.messages)

    def _steer(self, said: str) -> str:
        echo = _TO_END.search(said)
        if echo:
            self.options["echo"] = echo[1]
            said = said[: echo.start()].rstrip()
        for name, text in _PHRASE.findall(said):
            if name == "think":
                self.options["think"] = text
            else:
                self.reasoning = text
        said = _PHRASE.sub("", said)
        for found in _DIRECTIVE.finditer(said):
            parts = (found[1] + (found[2] or "")).split(",")
            if found[1] in _KNOWN:
                self.options.update((name, value) for name, _, value in (part.partition("=") for part in parts))
        return _DIRECTIVE.sub(lambda found: "" if found[1] in _KNOWN else found[0], said).strip()

    def number(self, name: str, default: int) -> int:
        """Read a directive's number; the default if it is absent or none."""
        value = self.options.get(name, "")
        return int(value) if value.isdecimal() else default

    def chunks(self) -> list[bytes]:
        """The answer as events, one per token."""
        if 0 <= self.numbered <= len(_NUMBERED) and not self.thought and "card" not in self.options:
            tokens = _NUMBERED[: self.numbered]
        else:
            tokens = [_event(_CONTENT, token) for token in _TOKEN.findall(self.text)]
        thought = [_event(_REASONING, token) for token in _TOKEN.findall(self.reasoning)]
        called = [BEFORE + chunk + b"}]}\n\n" for chunk in call_chunks(self.calls)]
        return [*thought, *tokens, *called]

    def ending(self) -> bytes:
        """The event that says why it ends."""
        return CALLS if self.calls else STOP


def _since_last_user(messages: list[Message]) -> list[tuple[str, str, bool]]:
    """Role and text of what came behind the last user's message, and whether tools were called in it."""
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=-1)
    return [(message.role, message.text(), bool(message.tool_calls)) for message in messages[last + 1 :]]


def _event(before: bytes, token: str) -> bytes:
    return before + json.dumps(token, ensure_ascii=False)[1:-1].encode(errors="replace") + _AFTER


def count_tokens(text: str) -> int:
    """Tokens of a text, as this model counts them: words with the white space before them."""
    return len(_TOKEN.findall(text))
