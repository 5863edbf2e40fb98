"""What OpenClaw is given beside a conversation, what it holds of one, and what is too long for its model."""

import asyncio

import pytest
from pretend_places import TENANT, FakeGateway, FakePool, FakeProxy, assistant, events_of, final, kinds, request
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.wire import from_status
from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import contexts, words
from retinue_runtime_adapter.openclaw.adapter import OpenClawAdapter

OVERFLOW = Trouble(Reason.MODEL_CONTEXT_OVERFLOW, "Too long.")


@pytest.fixture
def gateway():
    return FakeGateway()


@pytest.fixture
def pool(gateway):
    return FakePool(gateway)


@pytest.fixture
def proxy():
    return FakeProxy()


@pytest.fixture
async def adapter(pool, proxy):
    models = Catalogue([Model("small", "p", "m", window_tokens=8_000)], "small")
    made = OpenClawAdapter(pool, proxy, models, {}, orphan_s=0.05, version="1", window_min_tokens=16_000)
    yield made
    await made.close()


def lines(*said):
    return [pb.ContextMessage(role=role, text=text) for role, text in said]


def names(**fields):
    return {"tenant_id": TENANT, "session_id": "ses_1", "runtime": "openclaw", **fields}


async def held(adapter):
    return list(await adapter.export_context(pb.ExportContextRequest(**names())))


async def test_a_description_tells_slots_windows_and_what_is_refused(adapter):
    found = adapter.describe()
    assert (found.slot_count, found.busy_count, found.waiting_count) == (4, 0, 2)
    assert list(found.window_tokens) == [8_000]
    assert found.holds_context
    assert "small (reads 8000)" in found.detail


async def test_a_preface_goes_by_the_model_endpoint_and_opens_no_session(adapter, gateway, proxy):
    gateway.script = [assistant("hi"), final("hi")]
    await events_of(adapter, request(persona="be kind", preface="Has a cat."))
    said = lines(("user", "hello"), ("assistant", "hi"))
    await events_of(adapter, request(run_id="run_2", context=said, preface="Has a dog."))
    assert [given["preface"] for given in proxy.runs] == ["Has a cat.", "Has a dog."]
    assert [call.system for call in gateway.calls] == ["be kind", ""]
    assert len({call.session_key for call in gateway.calls}) == 1


async def test_a_run_whose_conversation_is_too_long_ends_at_once_with_nothing_said(adapter, gateway, proxy):
    gateway.script = [None]
    running = asyncio.create_task(events_of(adapter, request()))
    while not proxy.runs:
        await asyncio.sleep(0)
    proxy.runs[0]["on_overflow"](OVERFLOW)
    events = await running
    assert kinds(events) == ["failed"]
    error = from_status(events[0].failed.error, "x")
    assert (error.reason, events[0].failed.retryable) == (Reason.MODEL_CONTEXT_OVERFLOW, False)
    assert [run_id for _, run_id in gateway.aborted] == ["run_1"]


async def test_a_run_that_has_said_something_is_left_to_its_gateway_when_it_grows_too_long(adapter, gateway, proxy):
    gateway.script = [assistant("hi"), None, final("hi")]
    stream = adapter.invoke(request())
    assert kinds(await anext(stream)) == ["text_delta"]
    proxy.runs[0]["on_overflow"](OVERFLOW)
    gateway.gate.set()
    events = [event async for batch in stream for event in batch]
    assert kinds(events)[-1] == "finished"
    assert gateway.aborted == []


async def test_what_is_held_is_what_stands_before_a_session_and_its_own_transcript(adapter, gateway):
    gateway.script = [assistant("hi"), final("hi")]
    before = lines(("system", "Summary."), ("user", "one"))
    await events_of(adapter, request(context=before))
    rows = [
        {"role": "user", "content": f"[Sat 10:00] {words.enclose(' two ')} Runtime: x"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]},
        {"role": "toolResult", "content": [{"type": "text", "text": "secret"}]},
        {"role": "assistant", "content": [{"type": "toolCall", "name": "read"}]},
        "odd",
        {"role": "user", "content": {"odd": 1}},
    ]
    gateway.history = {"messages": rows}
    assert await held(adapter) == [*before, *lines(("user", " two "), ("assistant", "hi"))]
    ((method, params),) = gateway.asked
    assert method == "chat.history"
    assert params["sessionKey"] == gateway.calls[0].session_key
    assert contexts.transcript({"messages": "odd"}) == []


async def test_nothing_is_held_of_another_conversation_or_where_there_is_no_place(adapter, gateway, pool):
    gateway.script = [assistant("hi"), final("hi")]
    await events_of(adapter, request())
    assert await adapter.export_context(pb.ExportContextRequest(**names(session_id="ses_2"))) == []
    pool.is_serving = False
    assert await held(adapter) == []
    assert gateway.asked == []


async def test_a_gateway_that_does_not_answer_is_unavailable(adapter, gateway):
    gateway.script = [assistant("hi"), final("hi")]
    await events_of(adapter, request())
    gateway.history = Trouble(Reason.RUNTIME_UNAVAILABLE, "lost")
    with pytest.raises(RetinueError) as refused:
        await held(adapter)
    assert refused.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_a_context_that_is_put_in_is_held_and_the_next_run_with_the_same_begins_with_it(adapter, gateway, proxy):
    context = lines(("user", "one"), ("assistant", "yes"))
    losses = await adapter.import_context(pb.ImportContextRequest(**names(context=context)))
    assert [loss.split(": ")[:2] for loss in losses] == [["messages.text", "approximate"]]
    assert await held(adapter) == context
    assert gateway.asked == []
    gateway.script = [assistant("hi"), final("hi")]
    await events_of(adapter, request(context=context))
    assert [message["content"] for message in proxy.runs[0]["before"]] == ["one", "yes"]
    assert ":direct:c-anna:" in gateway.calls[0].session_key


async def test_a_run_that_comes_with_another_context_than_was_put_in_has_its_own(adapter, gateway, proxy):
    await adapter.import_context(pb.ImportContextRequest(**names(context=lines(("user", "one")))))
    gateway.script = [assistant("hi"), final("hi")]
    await events_of(adapter, request(context=lines(("user", "two"))))
    assert [message["content"] for message in proxy.runs[0]["before"]] == ["two"]


async def test_bounded_the_oldest_of_a_context_that_is_too_long_is_left_out_and_that_is_said(adapter):
    long = "x" * (contexts.IMPORT_SIZE_MAX_CHARS // 2)
    context = lines(("user", "first"), ("user", long), ("assistant", long))
    losses = await adapter.import_context(pb.ImportContextRequest(**names(context=context)))
    assert losses[0].startswith("messages.text: lost: the oldest 1 ")
    assert await held(adapter) == context[1:]


async def test_nothing_is_put_in_where_the_tenant_has_no_instance(adapter, pool):
    pool.is_serving = False
    with pytest.raises(RetinueError) as refused:
        await adapter.import_context(pb.ImportContextRequest(**names()))
    assert refused.value.reason is Reason.INSTANCE_NOT_FOUND
