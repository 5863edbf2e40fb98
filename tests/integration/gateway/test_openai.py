"""OpenAI's API over the ASGI socket, asked by OpenAI's own client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from retinue.edge.v1 import contact_pb2, edge_service_pb2
from retinue_gateway import events

HELLO = [{"role": "user", "content": "hello there friend"}]


@pytest_asyncio.fixture
async def client(mesh: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=mesh.asgi_path))
    async with openai.AsyncOpenAI(
        api_key="-", base_url="http://gateway/v1", http_client=http, default_headers=mesh.identity(), max_retries=0
    ) as client:
        yield client


async def test_models_are_listed(client: Any) -> None:
    assert [model.id async for model in client.models.list()] == ["retinue", "retinue/light"]


async def test_a_completion_is_answered_whole(client: Any, mesh: Any) -> None:
    answer = await client.chat.completions.create(
        model="retinue", messages=HELLO, temperature=0.5, max_tokens=7, stop="x"
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "hello there friend",
        "stop",
    )
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-run_")
    assert dict(mesh.adapter.requests[-1].parameters) == {"temperature": 0.5, "max_tokens": 7, "stop": ["x"]}


async def test_a_completion_is_streamed(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="retinue/light", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "hello there friend"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 6
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


async def test_without_a_contact_earlier_messages_come_along(client: Any, mesh: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "ok"},
        *HELLO,
    ]
    await client.chat.completions.create(model="retinue", messages=messages)
    request = mesh.adapter.requests[-1]
    assert request.text == "hello there friend"
    told = [(message.role, message.text) for message in request.context]
    assert told[-3:] == [("system", "Be brief."), ("user", "one two"), ("assistant", "ok")]


async def test_with_a_contact_only_the_last_message_is_new(client: Any, mesh: Any) -> None:
    first = {"model": "retinue", "messages": [{"role": "user", "content": "first"}]}
    await client.chat.completions.create(**first, user="ada")
    messages = [{"role": "user", "content": "forged"}, {"role": "assistant", "content": "forged"}, *HELLO]
    await client.chat.completions.create(model="retinue", messages=messages, extra_headers={"x-contact": "ada"})
    request = mesh.adapter.requests[-1]
    assert [(m.role, m.text) for m in request.context] == [("user", "first"), ("assistant", "first")]


async def test_a_key_finds_its_run_again(client: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    asked = [client.chat.completions.create(model="retinue", messages=HELLO, extra_headers=headers) for _ in range(2)]
    first, second = await asyncio.gather(*asked)
    assert first.id == second.id
    raw = await client.chat.completions.with_raw_response.create(model="retinue", messages=HELLO, extra_headers=headers)
    assert raw.headers["idempotent-replay"] == "true"
    with pytest.raises(openai.ConflictError) as raised:
        await client.chat.completions.create(
            model="retinue", messages=[{"role": "user", "content": "other"}], extra_headers=headers
        )
    assert raised.value.code == "IDEMPOTENCY_KEY_REUSED"


async def fail(request: Any) -> AsyncIterator[dict[str, Any]]:
    status = status_pb2.Status(code=9, message="Too long.")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="MODEL_CONTEXT_OVERFLOW", domain="retinue"))
    yield {"text_delta": {"text": "well "}}
    yield {"failed": {"error": status}}


async def test_a_failed_run_is_an_error_with_its_reason(client: Any, mesh: Any) -> None:
    mesh.adapter.script = fail
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="retinue", messages=HELLO)
    assert raised.value.code == "MODEL_CONTEXT_OVERFLOW"
    assert "Too long." in raised.value.message
    assert raised.value.response.headers["x-should-retry"] == "false"
    stream = await client.chat.completions.create(model="retinue", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as streamed:
        [chunk async for chunk in stream]
    assert streamed.value.code == "MODEL_CONTEXT_OVERFLOW"


async def test_what_is_not_understood_is_refused_in_openais_shape(mesh: Any) -> None:
    for change, param in (
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "x" * 100_001}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages"),
        ({"user": "a b"}, "user"),
        ({"user": "."}, "user"),
    ):
        body = {"model": "retinue", "messages": HELLO, **change}
        answer = await mesh.http.post("/v1/chat/completions", json=body, headers=mesh.identity())
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


async def test_other_refusals_have_their_statuses(mesh: Any) -> None:
    async def ask(content: bytes | None = None, headers: Any = None, **body: Any) -> tuple[int, Any]:
        json = None if content is not None else {"model": "retinue", "messages": HELLO, **body}
        headers = mesh.identity() if headers is None else headers
        answer = await mesh.http.post("/v1/chat/completions", content=content, json=json, headers=headers)
        return answer.status_code, answer.json()["error"]["code"]

    assert await ask(model="gpt-4") == (404, "model_not_found")
    assert await ask(model="retinue/openclaw") == (404, "model_not_found")
    assert await ask(content=b"{") == (400, None)
    assert await ask(content=b"[1]") == (400, None)
    assert await ask(content=b'{"a":"\xff"}') == (400, None)
    assert await ask(content=b"x" * (1024 * 1024 + 1)) == (413, "BODY_TOO_LARGE")
    assert await ask(headers={}) == (401, "CREDENTIAL_MISSING")
    assert await ask(headers=mesh.identity(scope="other")) == (403, "SCOPE_MISSING")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1200):
            yield b"x" * 1024

    answer = await mesh.http.post("/v1/chat/completions", content=endless(), headers=mesh.identity())
    assert answer.status_code == 413


async def test_a_client_that_leaves_does_not_stop_its_run(mesh: Any, eventually: Any) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[dict[str, Any]]:
        await gate.wait()
        yield {"message_completed": {"text": "late"}}
        yield {"finished": {}}

    mesh.adapter.script = slow
    for stream in (True, False):
        body = {"model": "retinue", "messages": HELLO, "user": "ada", "stream": stream}
        asked = asyncio.create_task(mesh.http.post("/v1/chat/completions", json=body, headers=mesh.identity()))
        await eventually(lambda: mesh.gateway.attendance.count)
        asked.cancel()
        await eventually(lambda: not mesh.gateway.attendance.count)
    gate.set()

    async def both() -> bool:
        asked = edge_service_pb2.ListRunsRequest(contact="ada", state="succeeded")
        return len((await mesh.edge.ListRuns(asked, metadata=mesh.metadata())).runs) == 2

    await eventually(both)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_completion_whose_contact_is_removed_ends_with_a_clear_error(
    mesh: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(events, "RUN_LOOK_S", 0.1)
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.0)
    gate = asyncio.Event()

    async def held(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "Well"}}
        await gate.wait()

    mesh.adapter.script = held
    body = {"model": "retinue", "messages": HELLO, "user": "ada", "stream": stream}
    asked = asyncio.create_task(mesh.http.post("/v1/chat/completions", json=body, headers=mesh.identity()))
    await eventually(lambda: mesh.adapter.requests)
    await mesh.edge.DeleteContact(contact_pb2.DeleteContactRequest(contact="ada"), metadata=mesh.metadata())
    answer = await asked
    assert answer.status_code == (200 if stream else 404)
    assert '"code":"RUN_NOT_FOUND"' in answer.text
    assert "[DONE]" not in answer.text
