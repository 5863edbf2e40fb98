"""The model endpoint for gateways: who may call, whose model answers, and what comes back."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from proxying import END, INSTANCE, TENANT, Proxy, chat, event, proxies, streaming, traceparent, upstream
from retinue_kit import ids, telemetry
from retinue_kit.config import SettingError
from retinue_runtime_adapter.openclaw import model_proxy
from retinue_runtime_adapter.openclaw.proxy import ledger

Make = Callable[..., Awaitable[Proxy]]

TRACE_1, TRACE_2, TRACE_3 = "1" * 32, "2" * 32, "3" * 32


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Answer a maker of endpoints for gateways."""
    async with proxies() as maker:
        yield maker


@pytest_asyncio.fixture
async def proxy(make: Make, offline_model: Any) -> Proxy:
    """An endpoint in front of the offline model."""
    return await make(offline_model.base_url)


def unique(text: str) -> str:
    return f"{text} {ids.new_id('say')}"


async def test_a_runs_call_is_answered_by_its_model(proxy: Proxy, offline_model: Any) -> None:
    text = unique("#tokens=3")
    with proxy.run() as meter:
        answered = await proxy.ask(chat(text, model="another"))
    assert (answered.status, answered.text, answered.is_whole) == (200, "t0 t1 t2", True)
    assert offline_model.requests_of(text)[0]["body"]["model"] == "offline"
    assert (meter.model, meter.calls, meter.output_tokens, meter.trouble) == ("offline", 1, 3, None)
    assert meter.input_tokens > 0


async def test_an_answer_that_is_no_stream_is_passed_on_as_it_is(proxy: Proxy) -> None:
    with proxy.run() as meter:
        answered = await proxy.ask(chat("#tokens=4", stream=False, stream_options=None))
    found = json.loads(answered.body)
    assert found["choices"][0]["message"]["content"] == "t0 t1 t2 t3"
    assert meter.output_tokens == found["usage"]["completion_tokens"] == 4


async def test_a_stream_is_passed_on_byte_by_byte(make: Make) -> None:
    call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a": "é\\n"}'}}
    events = [
        event({"role": "assistant", "content": ""}),
        event({"content": "Grüße, <b>you</b>"}, odd={"big": 12345678901234567890, "float": 1.0}),
        b'data: {"choices":[{"index":0,"delta":{"content":"\\u00e9 <think>"},"logprobs":null}]}\n\n',
        event({"tool_calls": [call]}),
        event({}, "tool_calls"),
        b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"extra":{"cached_tokens":2}}}\n\n',
    ]
    stream = b": a comment\n\n" + b"".join(events) + b"data: [DONE]\n\n"
    for size in (1, 7, 100, len(stream)):
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        async with upstream(streaming(*pieces)) as base_url:
            proxy = await make(base_url)
            with proxy.run() as meter:
                answered = await proxy.ask("hello")
        assert answered.body == b"".join(events) + b"data: [DONE]\n\n"
        assert (meter.input_tokens, meter.output_tokens) == (7, 5)


async def test_each_chunk_is_passed_on_as_it_comes(make: Make) -> None:
    more = asyncio.Event()
    async with upstream(streaming(event({"content": "a"}), more, event({"content": "b"}), END)) as base_url:
        proxy = await make(base_url)
        with proxy.run():
            async with proxy.open(chat("hello")) as response:
                assert await response.content.readuntil(b"\n\n") == event({"content": "a"})
                more.set()
                assert await response.content.readuntil(b"\n\n") == event({"content": "b"})


async def test_what_is_not_ours_to_set_reaches_the_model_as_it_was(proxy: Proxy, offline_model: Any) -> None:
    text = unique("#tokens=1")
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "see"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": text},
    ]
    asked = chat(text, messages=messages, tools=tools, tool_choice="auto", response_format={"type": "text"})
    with proxy.run(parameters={"temperature": 0.5, "max_tokens": 9}):
        await proxy.ask(asked)
    body = offline_model.requests_of(text)[0]["body"]
    del asked["max_completion_tokens"]
    assert body == {**asked, "model": "offline", "temperature": 0.5, "max_tokens": 9}


async def test_a_large_request_reaches_the_model_whole(make: Make) -> None:
    text = "picture " * 400_000
    asked: list[bytes] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(await request.read())
        return web.Response(body=END, content_type="text/event-stream")

    async with upstream(answer) as base_url:
        proxy = await make(base_url)
        with proxy.run():
            assert (await proxy.ask(text)).is_whole
    assert json.loads(asked[0])["messages"] == [{"role": "user", "content": text}]


async def test_the_conversation_before_the_gateways_stands_before_its_messages(
    proxy: Proxy, offline_model: Any
) -> None:
    text = unique("#recall")
    before = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "yes"}]
    with proxy.run(before=before):
        assert (await proxy.ask(text)).text == "one"


async def test_half_a_letter_is_no_reason_to_refuse(proxy: Proxy) -> None:
    body = json.dumps(chat("#echo=HALF \\ud83d\\ude00")).replace("HALF", "a\\\\ud83d \\ud83d").encode()
    with proxy.run():
        answered = await proxy.ask(body)
    assert answered.text.startswith("a\\ud83d \ufffd")


async def test_usage_is_asked_for_and_not_told_to_who_did_not_ask(proxy: Proxy, offline_model: Any) -> None:
    text = unique("#tokens=2")
    with proxy.run() as meter:
        answered = await proxy.ask(chat(text, stream_options=None))
    assert not any("usage" in found for found in answered.events)
    assert meter.output_tokens == 2
    assert offline_model.requests_of(text)[0]["body"]["stream_options"] == {"include_usage": True}


async def test_usage_and_cost_are_summed_over_calls(make: Make, offline_model: Any, run_dir: Path) -> None:
    model = {"name": "m", "provider": "p", "model": "x", "input_price": 2, "output_price": 7.5}
    path = run_dir / "models.json"
    path.write_text(json.dumps({"providers": {"p": {"base_url": offline_model.base_url}}, "models": [model]}))
    proxy = await make("", models_file=str(path))
    with proxy.run() as meter:
        await proxy.ask("#tokens=10 and a few words")
        first = meter.input_tokens
        await proxy.ask("#tokens=5 and a few words")
    assert first > 1
    assert (meter.calls, meter.output_tokens, meter.input_tokens) == (2, 15, first * 2)
    assert meter.cost_micros == round(meter.input_tokens * 2 + 15 * 7.5)


async def test_usage_is_estimated_where_the_model_does_not_count(proxy: Proxy) -> None:
    with proxy.run() as meter:
        answered = await proxy.ask("#tokens=8 #no_usage")
    assert meter.output_tokens == -(-len(answered.text) // 4)
    assert meter.input_tokens == -(-len("#tokens=8 #no_usage") // 4)


@pytest.mark.parametrize(
    ("text", "streamed"),
    [
        ("#reasoning=two words #tokens=2", True),
        ("#think=two words #tokens=2", True),
        ("#think=two words #tokens=2", False),
    ],
)
async def test_what_a_model_thinks_is_heard_and_not_passed_on(proxy: Proxy, text: str, streamed: bool) -> None:
    heard: list[str] = []
    with proxy.run(on_reasoning=heard.append, trace_id=TRACE_1):
        answered = await proxy.ask(chat(text, stream=streamed), trace=TRACE_1)
        assert b"two" not in answered.body
        assert b"t0" in answered.body
        assert "".join(heard) == "two words"
        await proxy.ask(chat(text, stream=streamed), trace=TRACE_2)
    assert "".join(heard) == "two words"


async def test_a_call_is_the_runs_of_its_trace_else_the_tenants_only_ones(proxy: Proxy) -> None:
    with proxy.run(trace_id=TRACE_1) as one, proxy.run(trace_id=TRACE_2) as two:
        await proxy.ask("#tokens=1", trace=TRACE_1)
        assert (one.calls, two.calls) == (1, 0)
        await proxy.ask("#tokens=1", trace=TRACE_2)
        assert (one.calls, two.calls) == (1, 1)
        assert (await proxy.ask("#tokens=1", trace=TRACE_3)).error["code"] == "no_run", "no guess between two"
        assert (one.calls, two.calls) == (1, 1)
    with proxy.run(trace_id=TRACE_1) as one:
        await proxy.ask("#tokens=1", trace=TRACE_3)
        await proxy.ask("#tokens=1")
        assert one.calls == 2


async def test_another_tenants_trace_is_nothing_to_a_tenant(proxy: Proxy) -> None:
    with proxy.run(trace_id=TRACE_1, tenant="ten_b") as other:
        assert (await proxy.ask("#tokens=1", trace=TRACE_1)).error["code"] == "no_run"
        with proxy.run(trace_id=TRACE_2) as own:
            await proxy.ask("#tokens=1", trace=TRACE_1)
        assert (await proxy.ask("#tokens=1", trace=TRACE_1)).status == 400
    assert (other.calls, own.calls) == (0, 1)


async def test_many_tenants_at_once_are_never_mixed(proxy: Proxy) -> None:
    async def talk(number: int) -> None:
        tenant, heard, trace = f"ten_{number}", [], f"{number:032x}"
        with proxy.run(tenant=tenant, trace_id=trace, on_reasoning=heard.append) as meter:
            for turn in range(3):
                own = f"n{number}t{turn}"
                answered = await proxy.ask(f"#reasoning=think-{own} #echo={own}", tenant=tenant, trace=trace)
                assert answered.text == own
        assert "".join(heard) == "".join(f"think-n{number}t{turn}" for turn in range(3))
        assert meter.calls == 3

    await asyncio.gather(*(talk(number) for number in range(20)))


async def test_a_credential_is_good_while_a_run_of_its_tenant_is_under_way(proxy: Proxy) -> None:
    assert (await proxy.ask("#tokens=1")).error["code"] == "no_run"
    with proxy.run():
        assert (await proxy.ask("#tokens=1")).status == 200
    refused = await proxy.ask("#tokens=1")
    assert (refused.status, refused.error["code"]) == (400, "no_run")
    assert (await proxy.get("/models", proxy.proxy.credential(INSTANCE, TENANT))).status == 200


async def test_a_stranger_is_told_so_and_a_credential_that_is_over_ends_only_its_run(proxy: Proxy) -> None:
    old, other = proxy.proxy.credential(INSTANCE, TENANT), proxy.proxy.credential(INSTANCE, "ten_b")
    assert proxy.proxy.credential(INSTANCE, TENANT) == old != other
    with proxy.run(), proxy.run(tenant="ten_b"):
        for credential in ("", "wrong", "Bearer", "ключ"):
            assert (await proxy.ask("#tokens=1", credential=credential)).status == 401
            assert (await proxy.get("/models", credential)).status == 401
        proxy.proxy.forget(INSTANCE, TENANT)
        assert (await proxy.ask("#tokens=1", credential=old)).status == 400
        assert (await proxy.ask("#tokens=1", credential=other)).status == 200
        new = proxy.proxy.credential(INSTANCE, TENANT)
        assert new != old
        assert (await proxy.ask("#tokens=1", credential=new)).status == 200
        proxy.proxy.forget(INSTANCE)
        assert (await proxy.ask("#tokens=1", credential=new)).status == 400
        assert (await proxy.ask("#tokens=1", credential=other)).status == 400


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_warm_up_is_answered_without_a_model(proxy: Proxy, offline_model: Any, streamed: bool) -> None:
    text = unique("#tokens=1")
    with proxy.proxy.warm(INSTANCE, TENANT):
        answered = await proxy.ask(chat(text, stream=streamed))
        assert answered.status == 200
        assert model_proxy.WARM_ANSWER in answered.body.decode()
        assert (await proxy.ask(text, tenant="ten_b")).status == 400
        with proxy.run(trace_id=TRACE_1) as meter:
            assert (await proxy.ask(text, trace=TRACE_2)).text == model_proxy.WARM_ANSWER
            assert meter.calls == 0
            assert (await proxy.ask("#tokens=1", trace=TRACE_1)).text == "t0"
    assert (await proxy.ask(text)).status == 400
    assert offline_model.requests_of(text) == []


async def test_a_model_call_continues_the_runs_trace(proxy: Proxy, offline_model: Any) -> None:
    provider = telemetry.set_up("test", {})
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    text = unique("#tokens=4")
    with telemetry.span("run", traceparent=traceparent(TRACE_1)) as own:
        scope = proxy.run(trace_id=TRACE_1)
    with scope:
        await proxy.ask(text, trace=TRACE_1)
        await proxy.ask("#status=400", trace=TRACE_2)
    spans = {span.name: span for span in exporter.get_finished_spans() if f"{span.context.trace_id:x}" == TRACE_1}
    called, served = spans["model_call"], spans["model_proxy"]
    assert called.parent.span_id == served.context.span_id
    assert served.parent.span_id == own.get_span_context().span_id
    assert (called.attributes["run.id"], called.attributes["model.output_tokens"]) == ("run_a", 4)
    assert offline_model.requests_of(text)[0]["traceparent"] == f"00-{TRACE_1}-{called.context.span_id:016x}-01"
    others = [span for span in exporter.get_finished_spans() if f"{span.context.trace_id:x}" == TRACE_2]
    assert {span.name for span in others} == {"model_call", "model_proxy"}
    assert text not in "".join(span.to_json() for span in spans.values())
    provider.shutdown()


async def test_too_many_calls_of_a_run_at_once_are_refused(make: Make, eventually: Any) -> None:
    release = asyncio.Event()
    async with AsyncExitStack() as stack:
        base_url = await stack.enter_async_context(upstream(streaming(event({"content": "a"}), release, END)))
        proxy = await make(base_url)
        stack.enter_context(proxy.run())
        for _ in range(ledger.CALLS_MAX):
            await stack.enter_async_context(proxy.open(chat("hello")))
        refused = await proxy.ask("hello")
        assert (refused.status, refused.error["code"]) == (400, "too_many_calls")
        release.set()
        await eventually(lambda: _is_served(proxy))


async def _is_served(proxy: Proxy) -> bool:
    return (await proxy.ask("hello")).status == 200


@pytest.mark.parametrize("address", ["", "nowhere", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "a@b:1", "h:1/x"])
async def test_an_address_that_is_none_is_told(make: Make, address: str) -> None:
    with pytest.raises(SettingError, match="RETINUE_OPENCLAW_PROXY_ADDRESS"):
        await make("http://127.0.0.1:1/v1", openclaw_proxy_address=address)


async def test_an_address_that_is_taken_is_told(make: Make, proxy: Proxy) -> None:
    taken = proxy.proxy.base_url.removeprefix("http://").removesuffix("/v1")
    with pytest.raises(SettingError, match="cannot be listened on"):
        await make("http://127.0.0.1:1/v1", openclaw_proxy_address=taken)


async def test_any_address_is_reached_by_loopback(make: Make, offline_model: Any) -> None:
    proxy = await make(offline_model.base_url, openclaw_proxy_address="0.0.0.0:0")
    assert proxy.proxy.base_url.startswith("http://127.0.0.1:")
    with proxy.run():
        assert (await proxy.ask("#tokens=1")).text == "t0"
