"""Summaries and vectors over the wire, from a real offline model."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from proxying import END, event, streaming, upstream
from retinue.runtime_adapter.v1 import model_service_pb2 as pb
from retinue.runtime_adapter.v1.model_service_pb2_grpc import ModelServiceStub
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import ContextMessage
from retinue_kit import ids
from retinue_kit.clock import SystemClock
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.tokens import estimate
from retinue_kit.wire import from_status
from retinue_runtime_adapter import model_service
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.plain import embedding, metrics
from retinue_runtime_adapter.plain.summarizing import Summarizer

CALL_TIMEOUT_S = 20.0


class Plain:
    """Speaks to the service as portability and the router do."""

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.stub = ModelServiceStub(peer.channel)

    async def sum_up(self, *said: str, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> pb.SummarizeResponse:
        messages = [ContextMessage(role=("user", "assistant")[n % 2], text=text) for n, text in enumerate(said)]
        request = pb.SummarizeRequest(**{"tenant_id": "ten_a", "token_count": 500, "messages": messages, **fields})
        return await self.peer.call(self.stub.Summarize, request, timeout_s=timeout_s)

    async def embed(self, *texts: str) -> pb.EmbedResponse:
        request = pb.EmbedRequest(tenant_id="ten_a", texts=texts)
        return await self.peer.call(self.stub.Embed, request, timeout_s=CALL_TIMEOUT_S)


@pytest_asyncio.fixture
async def plain(offline_model: Any, serve: Any, peer: Any) -> AsyncIterator[Any]:
    """Answer a starter of the service: `await plain(embedding_model="x")` sets settings."""
    async with AsyncExitStack() as stack:

        async def start(**fields: Any) -> Plain:
            settings = Settings(**{"address": "", "model_base_url": offline_model.base_url, **fields})
            models, clock = read_models(settings), SystemClock()
            http = await stack.enter_async_context(session(settings))
            found = embedding.read_models(settings, models)
            embedder = embedding.Embedder(settings, found, http, clock) if found else None
            summarizer = Summarizer(settings, models, http, clock)
            return Plain(peer("runtime-adapter", await serve([model_service.service(summarizer, embedder)])))

        yield start


def used(call: str, direction: str) -> float:
    return metrics.tokens.labels(call, direction)._value.get()


async def refused(asking: Any) -> Reason:
    with pytest.raises(RetinueError) as error:
        await asking
    return error.value.reason


async def test_a_conversation_is_summed_up_with_the_notes_so_far(plain: Any, offline_model: Any) -> None:
    service, key = await plain(), ids.new_id("key")
    before = used("summarize", "input"), used("summarize", "output")
    said = (f"My key is {key}. #status=400", "Noted.", "I live in 北京。And more.")
    found = await service.sum_up(*said, former_summary="Has a cat.\nIs called Anna.")
    assert found.text.split("\n")[1:] == ["Has a cat.", "Is called Anna.", f"My key is {key}.", "I live in 北京。"]
    assert found.model == "offline"
    asked = offline_model.requests_of(key)[-1]["body"]
    assert asked["temperature"] == 0
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert used("summarize", "input") > before[0]
    assert used("summarize", "output") > before[1]


async def test_what_does_not_fit_a_model_is_summed_up_piece_by_piece(
    plain: Any, tmp_path: Path, offline_model: Any
) -> None:
    file, key = tmp_path / "models.json", ids.new_id("key")
    entry = {"base_url": offline_model.base_url}
    models = [{"name": "m", "provider": "p", "model": "x", "window_tokens": 1200}]
    file.write_text(json.dumps({"providers": {"p": entry}, "models": models}))
    service = await plain(model_base_url="", models_file=str(file), window_min_tokens=0)
    said = [text for n in range(8) for text in (f"Fact {n} of {key}. {'word ' * 150}", "Yes.")]
    found = await service.sum_up(*said)
    assert found.text.split("\n")[1:] == [f"Fact {n} of {key}." for n in range(8)]
    assert len(offline_model.requests_of(key)) > 1
    assert await refused(service.sum_up("word " * 2000)) is Reason.MODEL_CONTEXT_OVERFLOW


async def test_bounded_a_model_that_writes_more_than_it_may_is_cut_off(plain: Any) -> None:
    gate = asyncio.Event()
    words = "One sentence more. " * 40
    async with upstream(streaming(event({"content": words}), gate, END)) as base_url:
        found = await (await plain(model_base_url=base_url)).sum_up("hello", token_count=20)
        gate.set()
    assert estimate(found.text) <= 20
    assert found.text.endswith("more.")


async def test_thoughts_are_no_part_of_a_summary(plain: Any) -> None:
    deltas = {"reasoning_content": "hm"}, {"content": "<think>I see</think>\nHas a"}, {"content": " cat."}
    async with upstream(streaming(*map(event, deltas), END)) as base_url:
        assert (await (await plain(model_base_url=base_url)).sum_up("hello")).text == "Has a cat."


async def test_a_model_that_takes_no_temperature_is_asked_without_one(plain: Any) -> None:
    async def answer(request: Any) -> Any:
        if "temperature" in await request.json():
            error = {"message": "Unsupported value: 'temperature' does not support 0 with this model."}
            return web.json_response({"error": error}, status=400)
        return await streaming(event({"content": "Has a cat."}), END)(request)

    async with upstream(answer) as base_url:
        assert (await (await plain(model_base_url=base_url)).sum_up("hello")).text == "Has a cat."


async def test_a_models_trouble_is_told_by_its_reason(plain: Any) -> None:
    async with upstream(streaming(END)) as base_url:
        assert await refused((await plain(model_base_url=base_url)).sum_up("hello")) is Reason.MODEL_RESPONSE_INVALID
    away = await plain(model_base_url=base_url, embedding_model="e")
    assert await refused(away.sum_up("hello")) is Reason.MODEL_UNAVAILABLE
    assert await refused(away.embed("hello")) is Reason.MODEL_UNAVAILABLE


async def test_a_summary_takes_no_longer_than_its_caller_waits(plain: Any) -> None:
    gate = asyncio.Event()
    async with upstream(streaming(gate, END)) as base_url:
        found = await refused((await plain(model_base_url=base_url)).sum_up("hello", timeout_s=0.3))
        gate.set()
    assert found in (Reason.RUN_TIMEOUT, Reason.DEPENDENCY_UNAVAILABLE)


async def test_texts_become_vectors_that_are_near_where_words_are_shared(plain: Any) -> None:
    service, before = await plain(embedding_model="near-1"), used("embed", "input")
    found = await service.embed("my cat is grey", "my cat is white", "五月飞往东京")
    assert found.model == "near-1"
    one, other, far = (list(vector.values) for vector in found.vectors)
    near = sum(a * b for a, b in zip(one, other, strict=True))
    assert near > 0.5 > sum(a * b for a, b in zip(one, far, strict=True))
    assert used("embed", "input") > before


async def test_without_a_model_for_it_there_are_no_vectors(plain: Any) -> None:
    with pytest.raises(RetinueError) as error:
        await (await plain()).embed("hello")
    assert error.value.reason is Reason.CAPABILITY_MISSING
    assert error.value.metadata["capability"] == "embeddings"


@pytest.mark.parametrize(
    "data",
    [
        [{"embedding": [1.0]}],
        [{"embedding": [1.0]}, {"embedding": [1.0, 2.0], "index": 1}],
        [{"embedding": []}, {"embedding": [], "index": 1}],
        [{"embedding": [0.0] * 4097}, {"embedding": [0.0] * 4097, "index": 1}],
        [{"embedding": [1e300]}, {"embedding": [1.0], "index": 1}],
        "odd",
    ],
)
async def test_vectors_that_make_no_sense_are_refused(plain: Any, data: Any) -> None:
    async def answer(request: Any) -> Any:
        return web.json_response({"data": data})

    async with upstream(answer, "/embeddings") as base_url:
        service = await plain(model_base_url=base_url, embedding_model="e")
        assert await refused(service.embed("one", "two")) is Reason.MODEL_RESPONSE_INVALID


async def test_a_provider_of_vectors_that_is_not_there_is_a_wrong_setting(plain: Any) -> None:
    with pytest.raises(SettingError, match="RETINUE_EMBEDDING_PROVIDER"):
        await plain(embedding_model="e", embedding_provider="nobody")


async def test_a_window_that_is_too_small_is_refused_by_name_and_the_next_model_stands_in(
    light: Any, tmp_path: Path, offline_model: Any
) -> None:
    file = tmp_path / "models.json"
    provider = {"base_url": offline_model.base_url, "window_tokens": 8000}
    models = [
        {"name": "tiny", "provider": "p", "model": "x"},
        {"name": "first", "provider": "p", "model": "x", "fallback": "large"},
        {"name": "large", "provider": "p", "model": "x", "window_tokens": 64_000},
    ]
    file.write_text(json.dumps({"providers": {"p": provider}, "models": models}))
    runtime = light(models_file=str(file), model_base_url="")
    failed = await runtime.failure("#tokens=1", model="tiny")
    error = from_status(failed.error, "model")
    assert (error.reason, failed.retryable) == (Reason.MODEL_CONTEXT_OVERFLOW, False)
    assert "8000" in error.message
    assert "16000" in error.message
    assert (await runtime.invoke("#tokens=1", model="first"))[-1].finished.usage.model == "large"
    described = runtime.adapter.describe()
    assert list(zip(described.models, described.window_tokens, strict=True)) == [
        ("tiny", 8000),
        ("first", 8000),
        ("large", 64_000),
    ]
    assert "tiny (reads 8000), first (reads 8000)" in described.detail


async def test_the_window_of_the_model_in_the_environment_is_a_setting(light: Any) -> None:
    runtime = light(model_window_tokens=20_000)
    assert list(runtime.adapter.describe().window_tokens) == [20_000]
    assert await runtime.text("#tokens=1") == "t0"
    failed = await runtime.failure("我" * 20_001)
    assert from_status(failed.error, "model").reason is Reason.MODEL_CONTEXT_OVERFLOW
