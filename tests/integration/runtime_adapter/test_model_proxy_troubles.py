"""The model endpoint for gateways when something goes wrong: at the model, at the gateway, or with time."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from prometheus_client import REGISTRY
from proxying import END, Proxy, chat, event, proxies, streaming, upstream
from retinue_kit import ids
from retinue_kit.errors import Reason
from retinue_runtime_adapter.openclaw import model_proxy
from retinue_runtime_adapter.openclaw.ports import Meter
from retinue_runtime_adapter.openclaw.proxy import exchange, relay

Make = Callable[..., Awaitable[Proxy]]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Answer a maker of endpoints for gateways."""
    async with proxies() as maker:
        yield maker


@pytest_asyncio.fixture
async def proxy(make: Make, offline_model: Any) -> Proxy:
    """An endpoint in front of the offline model."""
    return await make(offline_model.base_url)


def reason(meter: Meter) -> Reason:
    assert meter.trouble is not None
    return meter.trouble.reason


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("retinue_openclaw_model_calls_total", {"outcome": outcome}) or 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#status=400", Reason.MODEL_REQUEST_REFUSED),
        ("#status=400,code=role_order", Reason.MODEL_ROLE_ORDER),
        ("#status=401", Reason.MODEL_AUTH),
        ("#status=403", Reason.MODEL_AUTH),
        ("#status=402", Reason.MODEL_QUOTA),
        ("#status=429", Reason.MODEL_RATE_LIMITED),
        ("#status=500", Reason.MODEL_UNAVAILABLE),
        ("#status=504", Reason.MODEL_TIMEOUT),
        ("#nonsense", Reason.MODEL_RESPONSE_INVALID),
        ("#nonsense=stream", Reason.MODEL_RESPONSE_INVALID),
        ("#cut=0", Reason.MODEL_RESPONSE_INVALID),
        ("#tokens=9 #error=0", Reason.MODEL_UNAVAILABLE),
    ],
)
async def test_whatever_fails_is_told_as_400_and_kept_as_it_is(proxy: Proxy, text: str, expected: Reason) -> None:
    before = counted(expected.lower())
    with proxy.run() as meter:
        answered = await proxy.ask(text)
    assert answered.status == 400
    assert answered.error["type"] == "invalid_request_error"
    assert (answered.error["code"], answered.error["message"]) == ("model_call_failed", "The model call failed.")
    assert reason(meter) is expected
    assert (meter.calls, meter.input_tokens, meter.output_tokens) == (1, 0, 0)
    assert counted(expected.lower()) == before + 1


@pytest.mark.parametrize("text", ["#status=400,code=context_length_exceeded", "#status=413"])
async def test_an_overflow_is_told_in_words_that_a_gateway_knows(proxy: Proxy, text: str) -> None:
    with proxy.run() as meter:
        answered = await proxy.ask(text)
    assert (answered.status, answered.error["code"]) == (400, "context_length_exceeded")
    assert "maximum context length" in answered.error["message"]
    assert reason(meter) is Reason.MODEL_CONTEXT_OVERFLOW


async def test_what_is_surely_too_long_is_not_sent(make: Make, offline_model: Any, run_dir: Path) -> None:
    path = run_dir / "models.json"
    provider = {"base_url": offline_model.base_url, "window_tokens": 50}
    entry = {"name": "m", "provider": "p", "model": "x"}
    path.write_text(json.dumps({"providers": {"p": provider}, "models": [entry]}))
    proxy = await make("", models_file=str(path), window_min_tokens=0)
    key = ids.new_id("key")
    with proxy.run() as meter:
        answered = await proxy.ask(f"#tokens=1 {key} {'word ' * 50}")
        assert answered.error["code"] == "context_length_exceeded"
        assert reason(meter) is Reason.MODEL_CONTEXT_OVERFLOW
        assert (await proxy.ask("#tokens=1")).text == "t0"
        assert meter.trouble is None
    assert offline_model.requests_of(key) == []


async def test_a_hiccup_is_not_seen(proxy: Proxy, offline_model: Any) -> None:
    key = ids.new_id("key")
    with proxy.run() as meter:
        assert (await proxy.ask(f"#tokens=2 #fail_times=2,status=503,key={key}")).text == "t0 t1"
    assert len(offline_model.requests_of(key)) == 3
    assert (meter.calls, meter.trouble) == (1, None)


async def test_another_credential_and_then_another_model_stand_in(
    make: Make, offline_model: Any, run_dir: Path
) -> None:
    path = run_dir / "models.json"
    providers = {"p": {"base_url": offline_model.base_url, "api_keys": ["one", "two"]}}
    models = [
        {"name": "first", "provider": "p", "model": "x", "fallback": "second", "aliases": ["best"]},
        {"name": "second", "provider": "p", "model": "y"},
    ]
    path.write_text(json.dumps({"providers": providers, "models": models}))
    proxy = await make("", models_file=str(path))
    with proxy.run(model="best") as meter:
        assert (await proxy.ask("#tokens=1 #refuse_key=one")).text == "t0"
        assert meter.model == "first"
        assert (await proxy.ask("#tokens=1 #refuse_model=x")).text == "t0"
        assert meter.model == "second"


async def test_an_answer_that_broke_off_in_the_middle_is_not_taken_for_whole(proxy: Proxy) -> None:
    for text, expected in (
        ("#tokens=9 #error=3 #delay=1", Reason.MODEL_UNAVAILABLE),
        ("#tokens=9 #cut=3 #delay=1", Reason.MODEL_RESPONSE_INVALID),
    ):
        with proxy.run() as meter:
            answered = await proxy.ask(text)
        assert answered.status == 200
        assert not answered.is_whole
        assert json.loads(answered.events[-1])["error"]["type"] == "invalid_request_error"
        assert answered.body.count(b"content") > 0
        assert reason(meter) is expected
        assert meter.output_tokens > 0
        assert meter.input_tokens > 0


async def test_a_silent_model_is_left_in_time(make: Make, offline_model: Any, eventually: Any) -> None:
    proxy = await make(offline_model.base_url, model_first_timeout_s=0.2, model_chunk_timeout_s=0.2)
    aborted = offline_model.stats()["aborted"]
    with proxy.run() as meter:
        assert (await proxy.ask("#hang")).status == 400
        assert reason(meter) is Reason.MODEL_TIMEOUT
        meter.trouble = None
        assert not (await proxy.ask("#tokens=9 #hang=3")).is_whole
        assert reason(meter) is Reason.MODEL_TIMEOUT
    await eventually(lambda: offline_model.stats()["aborted"] == aborted + 2)


async def test_a_refused_connection_is_unavailable(make: Make) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        proxy = await make(f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        with proxy.run() as meter:
            assert (await proxy.ask("hello")).status == 400
    assert reason(meter) is Reason.MODEL_UNAVAILABLE


@pytest.mark.parametrize("text", ["#hang", "#tokens=1000 #delay=20"])
async def test_a_gateway_that_leaves_takes_the_models_connection_with_it(
    proxy: Proxy, offline_model: Any, eventually: Any, text: str
) -> None:
    aborted, left = offline_model.stats()["aborted"], counted("left")
    with proxy.run() as meter:
        asking = asyncio.create_task(proxy.ask(text))
        await eventually(lambda: offline_model.stats()["open"] == 1)
        asking.cancel()
        await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1)
        await eventually(lambda: counted("left") == left + 1)
    assert meter.trouble is None


async def test_the_end_of_a_run_ends_a_call_that_waits(proxy: Proxy, offline_model: Any, eventually: Any) -> None:
    aborted = offline_model.stats()["aborted"]
    with proxy.run() as meter:
        asking = asyncio.create_task(proxy.ask("#hang"))
        await eventually(lambda: offline_model.stats()["open"] == 1)
    assert (await asking).status == 400
    await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1)
    assert meter.trouble is None


async def test_the_end_of_a_run_ends_an_answer_under_way_and_no_others(
    proxy: Proxy, offline_model: Any, eventually: Any
) -> None:
    aborted = offline_model.stats()["aborted"]
    async with AsyncExitStack() as stack:
        with proxy.run(), proxy.run(tenant="ten_b") as other:
            others = await stack.enter_async_context(proxy.open(chat("#tokens=20 #delay=5"), tenant="ten_b"))
            with proxy.run(tenant="ten_c") as ended:
                response = await stack.enter_async_context(proxy.open(chat("#tokens=1000 #delay=20"), tenant="ten_c"))
                await response.content.readuntil(b"t0")
            assert b"[DONE]" not in await response.read()
            await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1)
            assert b"[DONE]" in await others.read()
    assert (other.trouble, ended.trouble, other.output_tokens) == (None, None, 20)


async def test_what_was_said_when_a_run_ends_is_counted_at_once_and_once(proxy: Proxy) -> None:
    async with AsyncExitStack() as stack:
        with proxy.run() as meter:
            response = await stack.enter_async_context(proxy.open(chat("#tokens=1000 #delay=5")))
            await response.content.readuntil(b"t3")
        said = meter.output_tokens
        assert said > 0
        assert meter.input_tokens > 0
        await response.read()
    assert meter.output_tokens == said


async def test_a_gateway_that_does_not_read_is_given_up(
    make: Make, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(exchange, "WRITE_TIMEOUT_S", 0.2)
    left = counted("left")
    async with upstream(streaming(*[event({"content": "x" * 65536})] * 1000, END)) as base_url:
        proxy = await make(base_url)
        with proxy.run() as meter:
            async with proxy.open(chat("hello")):
                await eventually(lambda: counted("left") == left + 1)
    assert meter.trouble is None


async def test_a_trouble_is_over_with_the_next_good_call(proxy: Proxy) -> None:
    with proxy.run() as meter:
        await proxy.ask("#status=500")
        assert reason(meter) is Reason.MODEL_UNAVAILABLE
        await proxy.ask("#tokens=1")
        assert meter.trouble is None
        assert meter.calls == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"messages": 1}',
        b'{"messages": ["a"]}',
        b'{"messages": [], "stream_options": 3}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
    ],
)
async def test_a_body_that_is_no_request_is_refused(proxy: Proxy, body: bytes) -> None:
    with proxy.run() as meter:
        answered = await proxy.ask(body)
    assert (answered.status, answered.error["code"]) == (400, "malformed")
    assert reason(meter) is Reason.MODEL_REQUEST_REFUSED


async def test_a_body_that_is_too_large_is_refused(proxy: Proxy, offline_model: Any) -> None:
    count = offline_model.stats()["requests"]
    with proxy.run() as meter:
        answered = await proxy.ask("x" * model_proxy.BODY_SIZE_MAX_BYTES)
    assert (answered.status, answered.error["code"]) == (400, "request_too_large")
    assert reason(meter) is Reason.MODEL_REQUEST_REFUSED
    assert offline_model.stats()["requests"] == count


async def test_a_body_that_does_not_come_is_not_waited_for(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_proxy, "BODY_TIMEOUT_S", 0.1)
    host, _, port = proxy.proxy.base_url.removeprefix("http://").removesuffix("/v1").rpartition(":")
    credential = proxy.proxy.credential("ins_a", "ten_a")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {credential}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    with proxy.run():
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await writer.wait_closed()


async def test_a_path_that_is_not_there_is_told_in_shape(proxy: Proxy) -> None:
    answered = await proxy.get("/nothing", "x")
    assert (answered.status, answered.error["code"]) == (404, "not_here")


async def test_an_answer_that_is_no_stream_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "ANSWER_SIZE_MAX_BYTES", 1000)

    async def answer(_request: web.Request) -> web.Response:
        message = {"role": "assistant", "content": "x" * 2000}
        return web.json_response({"choices": [{"message": message}]})

    async with upstream(answer) as base_url:
        proxy = await make(base_url)
        with proxy.run() as meter:
            assert (await proxy.ask(chat("hello", stream=False))).status == 400
    assert reason(meter) is Reason.MODEL_RESPONSE_INVALID


@pytest.mark.parametrize(
    "answer",
    [{}, {"choices": []}, {"choices": [{}]}, {"choices": 3}, {"error": {"message": "no", "code": 503}}, "text"],
)
async def test_an_answer_that_is_no_stream_and_makes_no_sense_is_told(make: Make, answer: Any) -> None:
    async def say(_request: web.Request) -> web.Response:
        return web.json_response(answer)

    async with upstream(say) as base_url:
        proxy = await make(base_url)
        with proxy.run() as meter:
            assert (await proxy.ask(chat("hello", stream=False))).error["code"] == "model_call_failed"
    assert reason(meter) in (Reason.MODEL_RESPONSE_INVALID, Reason.MODEL_UNAVAILABLE)


async def test_thoughts_of_a_call_that_is_repeated_are_heard_once(make: Make) -> None:
    thought = event({"reasoning_content": "hm"})
    answers = [
        streaming(thought + b'data: {"error": {"message": "busy", "code": 503}}\n\n'),
        streaming(thought, event({"content": "a"}), END),
    ]

    async def answer(request: web.Request) -> web.StreamResponse:
        return await answers.pop(0)(request)

    heard: list[str] = []
    async with upstream(answer) as base_url:
        proxy = await make(base_url)
        with proxy.run(on_reasoning=heard.append):
            assert (await proxy.ask("hello")).text == "a"
    assert heard == ["hm"]


async def test_the_end_is_counted_before_the_gateway_can_know_of_it(make: Make) -> None:
    """A gateway that has the last word may have its run ended while the connection is still open."""
    async with upstream(streaming(event({"content": "a"}), END)) as base_url:
        proxy = await make(base_url)
        with proxy.run() as meter:
            async with proxy.open(chat("hello")) as response:
                await response.content.readuntil(b"[DONE]")
                assert meter.output_tokens == 1
                assert meter.trouble is None
