"""Every trouble that a model can make, and what the run says of it."""

import asyncio
import json
import socket
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import ContextMessage
from retinue_kit import ids, wire
from retinue_kit.errors import Reason


def reason(failed: Any) -> Reason:
    return wire.from_status(failed.error).reason


@pytest.mark.parametrize(
    ("text", "expected", "retryable"),
    [
        ("#status=400", Reason.MODEL_REQUEST_REFUSED, False),
        ("#status=404", Reason.MODEL_REQUEST_REFUSED, False),
        ("#status=400,code=context_length_exceeded", Reason.MODEL_CONTEXT_OVERFLOW, False),
        ("#status=413", Reason.MODEL_CONTEXT_OVERFLOW, False),
        ("#status=400,code=role_order", Reason.MODEL_ROLE_ORDER, False),
        ("#status=401", Reason.MODEL_AUTH, False),
        ("#status=403", Reason.MODEL_AUTH, False),
        ("#status=402", Reason.MODEL_QUOTA, False),
        ("#status=429,code=insufficient_quota", Reason.MODEL_QUOTA, False),
        ("#status=429", Reason.MODEL_RATE_LIMITED, True),
        ("#status=408", Reason.MODEL_TIMEOUT, True),
        ("#status=504", Reason.MODEL_TIMEOUT, True),
        ("#status=500", Reason.MODEL_UNAVAILABLE, True),
        ("#status=503", Reason.MODEL_UNAVAILABLE, True),
        ("#nonsense", Reason.MODEL_RESPONSE_INVALID, True),
        ("#nonsense=stream", Reason.MODEL_RESPONSE_INVALID, True),
        ("#cut=0", Reason.MODEL_RESPONSE_INVALID, True),
        ("#tokens=9 #cut=5 #delay=1", Reason.MODEL_RESPONSE_INVALID, True),
        ("#tokens=9 #error=0", Reason.MODEL_UNAVAILABLE, True),
        ("#tokens=9 #error=3 #delay=1", Reason.MODEL_UNAVAILABLE, True),
    ],
)
async def test_each_trouble_has_its_reason(light: Any, text: str, expected: Reason, retryable: bool) -> None:
    failed = await light().failure(text)
    assert reason(failed) is expected
    assert failed.retryable is retryable


async def test_the_session_is_served_after_any_trouble(light: Any) -> None:
    runtime = light(model_chunk_timeout_s=0.1)
    for text in ("#status=500", "#tokens=9 #cut=3", "#nonsense", "#tokens=9 #hang=2"):
        await runtime.failure(text)
        assert await runtime.text("#tokens=2") == "t0 t1"


async def test_a_silent_model_is_left_in_time_before_the_first_token(light: Any, offline_model: Any) -> None:
    runtime = light(model_first_timeout_s=0.2)
    text = f"#hang {ids.new_id('say')}"
    failed = await runtime.failure(text)
    assert reason(failed) is Reason.MODEL_TIMEOUT
    assert failed.retryable
    assert len(offline_model.requests_of(text)) == 1


async def test_a_model_that_falls_silent_is_left_in_time(light: Any, offline_model: Any, eventually: Any) -> None:
    aborted = offline_model.stats()["aborted"]
    failed = await light(model_chunk_timeout_s=0.2).failure("#tokens=9 #hang=4")
    assert reason(failed) is Reason.MODEL_TIMEOUT
    assert failed.usage.output_tokens > 0
    await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1)


async def test_a_refused_connection_is_unavailable(light: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        runtime = light(model_base_url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        failed = await runtime.failure("hello")
    assert reason(failed) is Reason.MODEL_UNAVAILABLE
    assert failed.retryable


async def test_a_connection_that_nobody_accepts_times_out(light: Any) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        runtime = light(model_base_url=f"http://127.0.0.1:{address[1]}/v1", model_connect_timeout_s=0.2)
        failed = await runtime.failure("hello")
        for filler in fillers:
            filler.close()
    assert reason(failed) is Reason.MODEL_TIMEOUT


async def test_a_server_that_speaks_no_http_is_told(light: Any) -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        failed = await light(model_base_url=f"http://127.0.0.1:{port}/v1").failure("hello")
    assert reason(failed) in (Reason.MODEL_RESPONSE_INVALID, Reason.MODEL_UNAVAILABLE)


async def test_a_line_without_end_is_bounded(light: Any) -> None:
    async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ")
        try:
            for _ in range(1000):
                writer.write(b"x" * 65536)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        failed = await light(model_base_url=f"http://127.0.0.1:{port}/v1").failure("hello")
    assert reason(failed) is Reason.MODEL_RESPONSE_INVALID


async def test_the_time_for_a_run_is_kept(light: Any) -> None:
    for text in ("#hang", "#tokens=1000 #delay=20"):
        failed = await light().failure(text, run_time=Duration(nanos=200_000_000))
        assert reason(failed) is Reason.RUN_TIMEOUT
        assert not failed.retryable


async def test_the_output_of_a_run_is_bounded(light: Any) -> None:
    failed = await light().failure("#tokens=1000", output_size_bytes=100)
    assert reason(failed) is Reason.OUTPUT_TOO_LARGE
    assert not failed.retryable
    assert await light().text("#tokens=20", output_size_bytes=100) == " ".join(f"t{n}" for n in range(20))


async def test_an_error_is_short_and_holds_no_key(light: Any) -> None:
    for status in (400, 401, 429):
        failed = await light(model_api_key="verysecret").failure(f"#status={status}")
        assert "verysecret" not in str(failed)
        assert len(failed.error.message) < 300


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_hiccup_before_the_first_token_is_not_seen(light: Any, offline_model: Any, status: int) -> None:
    key = ids.new_id("key")
    assert await light().text(f"#tokens=2 #fail_times=2,status={status},key={key}") == "t0 t1"
    assert len(offline_model.requests_of(key)) == 3


async def test_tries_are_bounded(light: Any, offline_model: Any) -> None:
    key = ids.new_id("key")
    await light().failure(f"#fail_times=3,key={key}")
    assert len(offline_model.requests_of(key)) == 3


async def test_a_refused_request_is_not_repeated(light: Any, offline_model: Any) -> None:
    key = ids.new_id("key")
    await light().failure(f"#fail_times=1,status=400,key={key}")
    assert len(offline_model.requests_of(key)) == 1


async def test_a_stream_that_broke_off_after_its_first_token_is_not_repeated(light: Any, offline_model: Any) -> None:
    key = ids.new_id("key")
    await light().failure(f"#tokens=5 #cut=2 #delay=1 {key}")
    assert len(offline_model.requests_of(key)) == 1


async def test_a_long_retry_after_is_not_waited_out(light: Any, offline_model: Any) -> None:
    key = ids.new_id("key")
    failed = await light().failure(f"#status=429,retry_after=30,x={key}")
    assert wire.from_status(failed.error).retry_after_s == 30
    assert len(offline_model.requests_of(key)) == 1


async def test_roles_are_made_to_alternate_for_a_model_that_insists(light: Any) -> None:
    context = [ContextMessage(role="user", text="a question that nobody answered")]
    assert await light().text("#tokens=2 #strict_roles", context=context) == "t0 t1"


async def test_a_wrong_key_gives_way_to_the_next(light: Any, offline_model: Any) -> None:
    key = ids.new_id("key")
    runtime = light(model_api_key="bad,good")
    for _ in range(2):
        assert await runtime.text(f"#tokens=2 #refuse_key=bad,x={key}") == "t0 t1"
    assert len(offline_model.requests_of(key)) == 3  # the bad one rests


@pytest.mark.parametrize("status", [401, 402, 429])
async def test_a_key_that_has_rested_is_tried_again(light: Any, offline_model: Any, status: int) -> None:
    class Clock:
        time = 1000.0

        def monotonic(self) -> float:
            return self.time

        def now(self) -> float:
            return self.time

    clock, key = Clock(), ids.new_id("key")
    runtime = light(clock, model_api_key="bad,good")
    assert await runtime.text(f"#tokens=1 #refuse_key=bad,status={status},x={key}") == "t0"
    assert len(offline_model.requests_of(key)) == 2
    assert await runtime.text(f"#tokens=1 {key}") == "t0"  # by the good one, while the bad one rests
    assert len(offline_model.requests_of(key)) == 3
    clock.time += 61
    assert await runtime.text(f"#tokens=1 #refuse_key=good,status={status},x={key}") == "t0"
    assert len(offline_model.requests_of(key)) == 5


async def test_a_fallback_stands_in_for_a_model_that_fails(light: Any, tmp_path: Any, offline_model: Any) -> None:
    entry = {"base_url": offline_model.base_url}
    file = tmp_path / "models.json"
    file.write_text(
        json.dumps(
            {
                "providers": {"one": entry, "gone": {"base_url": "http://127.0.0.1:1/v1"}},
                "models": [
                    {"name": "big", "provider": "one", "model": "big-1", "aliases": ["best"], "fallback": "away"},
                    {"name": "away", "provider": "gone", "model": "x", "fallback": "small"},
                    {"name": "small", "provider": "one", "model": "small-1"},
                ],
                "default": "big",
            }
        )
    )
    runtime = light(models_file=str(file), model_base_url="")
    events = await runtime.invoke("#tokens=2 #refuse_model=big-1,status=404", model="best")
    assert events[-1].finished.usage.model == "small"
    assert (await runtime.invoke("#tokens=2"))[-1].finished.usage.model == "big"
    assert (await runtime.invoke("#tokens=2", model="no-such-model"))[-1].finished.usage.model == "big"
    assert runtime.adapter.describe().models == ["big", "away", "small"]


async def test_a_conversation_that_cannot_fit_is_not_sent(light: Any, tmp_path: Any, offline_model: Any) -> None:
    file = tmp_path / "models.json"
    provider = {"base_url": offline_model.base_url, "window_tokens": 100}
    models = [{"name": "tiny", "provider": "p", "model": "tiny"}]
    file.write_text(json.dumps({"providers": {"p": provider}, "models": models}))
    runtime = light(models_file=str(file), model_base_url="", window_min_tokens=0)
    count = offline_model.stats()["requests"]
    assert reason(await runtime.failure("x" * 1000)) is Reason.MODEL_CONTEXT_OVERFLOW
    assert offline_model.stats()["requests"] == count
    assert await runtime.text("#tokens=1") == "t0"
