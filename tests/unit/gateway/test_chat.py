"""Reading requests in OpenAI's shape."""

import json
from typing import Any

import pytest
from retinue_gateway import chat
from retinue_kit.errors import Reason, RetinueError

RUNTIMES = ["light"]
USER = {"role": "user", "content": "q"}


def parse(**change: Any) -> chat.Ask:
    return chat.parse(json.dumps({"model": "retinue", "messages": [USER], **change}).encode(), RUNTIMES)


def test_a_request_is_read() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        USER,
    ]
    ask = parse(
        model="retinue/light",
        messages=messages,
        user="ada",
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=5,
        stop=["x", "y"],
        seed=3,
        tools=[{"type": "function"}],
        tool_choice="auto",
        unknown=1,
    )
    assert (ask.runtime, ask.text, ask.contact, ask.stream, ask.include_usage) == ("light", "q", "ada", True, True)
    assert ask.earlier == [("system", "be brief"), ("user", "ab")]
    assert ask.parameters == {"max_tokens": 5, "stop": ["x", "y"], "seed": 3}


def test_the_plain_model_leaves_the_runtime_to_policy() -> None:
    ask = parse(temperature=0, top_p=1.0, stop="x", n=1)
    assert (ask.runtime, ask.contact, ask.stream, ask.include_usage) == ("auto", "", False, False)
    assert ask.parameters == {"temperature": 0, "top_p": 1.0, "stop": ["x"]}


@pytest.mark.parametrize("runtime", ["openclaw", "light"])
def test_a_runtime_that_is_on_is_a_model_of_its_own(runtime: str) -> None:
    body = json.dumps({"model": f"retinue/{runtime}", "messages": [USER]}).encode()
    assert chat.models(["openclaw", "light"]) == ["retinue", "retinue/openclaw", "retinue/light"]
    assert chat.parse(body, ["openclaw", "light"]).runtime == runtime
    assert chat.parse(body.replace(b"/" + runtime.encode(), b""), ["openclaw", "light"]).runtime == "auto"
    with pytest.raises(chat.ApiError, match="does not exist"):
        chat.parse(body, ["other"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"n": 2}, "n"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [USER] * 2001}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [7]}, "messages[0].role"),
        ({"messages": [{"role": ["user"]}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"user": ""}, "user"),
        ({"user": 7}, "user"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
def test_what_is_not_understood_is_refused(change: dict[str, Any], param: str) -> None:
    with pytest.raises(chat.ApiError) as raised:
        parse(**change)
    assert (raised.value.status, raised.value.param) == (400, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"a":"\xff"}', b'{"model":"\\ud800"}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(chat.ApiError) as raised:
        chat.parse(body, RUNTIMES)
    assert raised.value.status in (400, 404)


def test_a_model_that_is_not_there_is_not_found() -> None:
    with pytest.raises(chat.ApiError) as raised:
        parse(model="retinue/openclaw")
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("reason", "status", "type_"),
    [
        (Reason.CREDENTIAL_MISSING, 401, "authentication_error"),
        (Reason.SCOPE_MISSING, 403, "permission_error"),
        (Reason.QUOTA_EXCEEDED, 429, "rate_limit_error"),
        (Reason.BODY_TOO_LARGE, 413, "invalid_request_error"),
        (Reason.MODEL_UNAVAILABLE, 503, "server_error"),
        (Reason.INTERNAL, 500, "server_error"),
    ],
)
def test_errors_of_the_mesh_are_said_as_openai_says_them(reason: Reason, status: int, type_: str) -> None:
    told = chat.from_error(RetinueError(reason, "why"))
    assert told.status == status
    assert told.body() == {"error": {"message": "why", "type": type_, "param": None, "code": str(reason)}}
