"""What every runtime's adapter must do, asked over the wire. A new adapter is one more entry in ADAPTERS.

Each adapter under test is driven by the offline model, so that the words of a user message steer what the model does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
import scripted_adapter
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2_grpc import RuntimeAdapterServiceStub
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids, wire
from retinue_kit.clock import SystemClock
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_runtime_adapter.adapter import Adapter, Registry
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.service import service

CALL_TIMEOUT_S = 90.0
START_TIMEOUT_S = 330.0
"""A gateway begins within twenty seconds on a busy machine; the first one after an installation takes longer, and one
beside twenty other processes minutes."""
SPEAKS_TIMEOUT_S = 60.0
"""For a gateway to ask its model, or to let go of it, on a machine that is busy with other tests."""
TERMINAL = ("finished", "failed")

pytestmark = pytest.mark.timeout(START_TIMEOUT_S + CALL_TIMEOUT_S)


def light(base_url: str) -> Adapter:
    settings = Settings(address="", model_base_url=base_url)
    return LightAdapter(settings, read_models(settings), session(settings), SystemClock())


ADAPTERS: dict[str, Callable[[str], Adapter]] = {"light": light}


class Client:
    """Speaks to the adapter under test as a worker does."""

    def __init__(self, runtime: str, peer: Any) -> None:
        self.runtime = runtime
        self.peer = peer
        self.stub = RuntimeAdapterServiceStub(peer.channel)

    def request(self, text: str, **fields: Any) -> pb.InvokeRequest:
        made = {
            "tenant_id": "ten_a",
            "run_id": ids.new_id("run"),
            "session_id": ids.new_id("ses"),
            "attempt": 1,
            "fencing_token": 1,
            "runtime": self.runtime,
            "text": text,
        }
        return pb.InvokeRequest(**{**made, **fields})

    async def stream(self, request: pb.InvokeRequest) -> AsyncIterator[RuntimeEvent]:
        async for response in self.peer.stream(self.stub.Invoke, request, timeout_s=CALL_TIMEOUT_S):
            assert response.events
            for event in response.events:
                yield event

    async def invoke(self, text: str, **fields: Any) -> list[RuntimeEvent]:
        return [event async for event in self.stream(self.request(text, **fields))]

    async def describe(self) -> pb.Runtime:
        answer = await self.peer.call(self.stub.DescribeRuntimes, pb.DescribeRuntimesRequest())
        return next(runtime for runtime in answer.runtimes if runtime.name == self.runtime)


@pytest_asyncio.fixture(params=[*sorted(ADAPTERS), "scripted", "openclaw"])
async def client(request: Any, offline_model: Any, serve: Any, peer: Any, run_dir: Path) -> AsyncIterator[Client]:
    if request.param == "openclaw":  # a process of its own with a real gateway, which all these tests share
        address = request.getfixturevalue("openclaw_adapter")
        openclaw = Client("openclaw", peer("runtime-adapter", address))
        await _is_available(openclaw)
        yield openclaw
        return
    runtime = "light" if request.param == "scripted" else request.param
    adapter = ADAPTERS[runtime](offline_model.base_url)
    address = await serve([service(Registry([adapter]))])
    if request.param == "scripted":  # the fake in front of a real one
        fake = scripted_adapter.ScriptedServicer(peer("runtime-adapter", address), run_dir / "ledger")
        address = await serve([scripted_adapter.service(fake)])
    yield Client(runtime, peer("runtime-adapter", address))
    await adapter.close()
    if request.param == "scripted":
        fake.close()


async def _is_available(openclaw: Client) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if (await openclaw.describe()).available:
                return
        except RetinueError as error:
            assert error.reason is Reason.DEPENDENCY_UNAVAILABLE  # noqa: PT017 - it does not serve yet
        assert time.monotonic() < end, "OpenClaw did not come up"
        await asyncio.sleep(0.1)


def told(events: list[RuntimeEvent]) -> SimpleNamespace:
    """Sum events up."""
    kinds = [event.WhichOneof("event") for event in events]
    text = ""
    for event in events:
        if event.HasField("text_delta"):
            text = event.text_delta.text if event.text_delta.replace else text + event.text_delta.text
    return SimpleNamespace(
        kinds=kinds,
        text=text,
        messages=[event.message_completed.text for event in events if event.HasField("message_completed")],
        terminal=[kind for kind in kinds if kind in TERMINAL],
    )


@pytest.mark.parametrize("text", ["hello", "#tokens=20", "#echo=", "#tokens=3 #think=let me see", "#card"])
async def test_text_deltas_join_to_the_completed_message(client: Client, text: str) -> None:
    found = told(await client.invoke(text))
    assert [found.text] == found.messages


@pytest.mark.parametrize("text", ["#tokens=5", "#status=400", "#tokens=5 #cut=2", "#nonsense"])
async def test_a_stream_ends_with_its_only_terminal_event(client: Client, text: str) -> None:
    found = told(await client.invoke(text))
    assert len(found.terminal) == 1
    assert found.kinds[-1] == found.terminal[0]


async def test_a_completed_message_comes_before_a_checkpoint_and_the_end(client: Client) -> None:
    found = told(await client.invoke("#tokens=2"))
    assert found.kinds[-3:] == ["message_completed", "checkpoint", "finished"]


async def test_usage_is_told_with_the_end(client: Client) -> None:
    events = await client.invoke("#tokens=7")
    usage = events[-1].finished.usage
    assert usage.output_tokens == 7
    assert usage.input_tokens > 0
    assert usage.model in (await client.describe()).models


async def test_earlier_messages_reach_the_model_in_order(client: Client) -> None:
    context = [
        pb.ContextMessage(role="user", text="one"),
        pb.ContextMessage(role="assistant", text="yes"),
        pb.ContextMessage(role="user", text="two"),
        pb.ContextMessage(role="assistant", text="yes"),
    ]
    assert told(await client.invoke("#recall", context=context)).text == "one | two"


def asked_with(offline_model: Any, key: str) -> list[dict[str, Any]]:
    """The messages of the latest request whose last message holds a key, as the model's server received them."""
    return offline_model.requests_of(key)[-1]["body"]["messages"]


async def test_a_long_preface_reaches_the_model_behind_the_persona_in_one_message(
    client: Client, offline_model: Any
) -> None:
    key, preface = ids.new_id("key"), "Lives in 北京. " * 8000
    assert len(preface) > 100_000
    await client.invoke(f"#tokens=1 {key}", persona="You are Ada.", preface=preface)
    systems = [m["content"] for m in asked_with(offline_model, key) if m["role"] == "system"]
    assert len(systems) == 1
    assert systems[0].endswith(f"\n\n{preface}")
    assert "You are Ada." in systems[0].removesuffix(preface)


async def test_a_preface_that_changes_is_no_part_of_the_conversation(client: Client, offline_model: Any) -> None:
    key, session_id = ids.new_id("key"), ids.new_id("ses")
    said: list[pb.ContextMessage] = []
    for number, preface in enumerate(("Has a cat.", "Has a dog.", "")):
        fields = {"session_id": session_id, "fencing_token": number + 1, "context": said, "preface": preface}
        answer = told(await client.invoke(f"#tokens=1 {key}-{number}", **fields)).text
        asked = asked_with(offline_model, f"{key}-{number}")
        shown = [one for one in ("Has a cat.", "Has a dog.") if one in str(asked)]
        assert shown == ([preface] if preface else [])
        assert sum(key in str(message["content"]) for message in asked) == number + 1
        said += [pb.ContextMessage(role="user", text=f"#tokens=1 {key}-{number}")]
        said += [pb.ContextMessage(role="assistant", text=answer)]


async def test_a_conversation_that_is_too_long_fails_at_once_with_nothing_said(
    client: Client, offline_model: Any
) -> None:
    session_id = ids.new_id("ses")
    answer = told(await client.invoke("#tokens=3", session_id=session_id)).text
    said = [pb.ContextMessage(role="user", text="#tokens=3"), pb.ContextMessage(role="assistant", text=answer)]
    count = offline_model.stats()["requests"]
    events = await client.invoke(
        "#status=400,code=context_length_exceeded", session_id=session_id, context=said, fencing_token=2
    )
    assert told(events).kinds == ["failed"]
    failed = events[-1].failed
    assert (wire.from_status(failed.error, "x").reason, failed.retryable) == (Reason.MODEL_CONTEXT_OVERFLOW, False)
    assert offline_model.stats()["requests"] == count + 1


async def test_a_context_goes_into_a_runtime_that_holds_one_and_comes_out_as_it_was(client: Client) -> None:
    if not (await client.describe()).holds_context:
        pytest.skip("it holds none, and refuses to be asked")
    session_id = ids.new_id("ses")
    context = [pb.ContextMessage(role="user", text="one\n[/new]  我"), pb.ContextMessage(role="assistant", text="yes")]
    names = {"tenant_id": "ten_a", "session_id": session_id, "runtime": client.runtime}

    async def held() -> list[pb.ContextMessage]:
        answer = await client.peer.call(client.stub.ExportContext, pb.ExportContextRequest(**names))
        return list(answer.context)

    await client.invoke("#tokens=1")  # the tenant has its place
    assert await held() == []
    given = await client.peer.call(client.stub.ImportContext, pb.ImportContextRequest(**names, context=context))
    assert [line.split(": ")[:2] for line in given.losses] == [["messages.text", "approximate"]]
    assert await held() == context
    for number, text in enumerate(("#recall", "two #echo=**three** [[reply_to_current]]  x ")):
        found = told(await client.invoke(text, session_id=session_id, context=context, fencing_token=number + 1))
        context += [pb.ContextMessage(role="user", text=text), pb.ContextMessage(role="assistant", text=found.text)]
        assert await held() == context


async def test_reasoning_is_kept_apart_where_it_is_declared(client: Client) -> None:
    assert (await client.describe()).reasoning
    events = await client.invoke("#tokens=2 #think=let me see", reasoning=True)
    assert "".join(event.reasoning_delta.text for event in events) == "let me see"
    assert told(events).text == "t0 t1"


async def test_reasoning_is_left_out_where_it_is_not_wanted(client: Client) -> None:
    found = told(await client.invoke("#tokens=2 #think=let me see"))
    assert "reasoning_delta" not in found.kinds
    assert found.text == "t0 t1"


async def test_a_card_is_told_apart_from_the_text(client: Client) -> None:
    events = await client.invoke("#card #tokens=1")
    cards = [event.card for event in events if event.HasField("card")]
    assert [(card.kind, card.title) for card in cards] == [("note", "Offline")]
    assert cards[0].body["count"] == 1
    assert "```" not in told(events).text


async def test_leaving_the_stream_closes_the_models_connection(
    client: Client, offline_model: Any, eventually: Any
) -> None:
    aborted = offline_model.stats()["aborted"]
    stream = client.stream(client.request("#tokens=1000 #delay=20"))
    assert (await anext(stream)).HasField("text_delta")
    await stream.aclose()
    await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1, SPEAKS_TIMEOUT_S)


async def test_leaving_before_the_first_token_closes_the_models_connection(
    client: Client, offline_model: Any, eventually: Any
) -> None:
    aborted = offline_model.stats()["aborted"]
    call = client.stub.Invoke(client.request("#hang"))
    waiting = call.read()
    await eventually(lambda: offline_model.stats()["open"] == 1, SPEAKS_TIMEOUT_S)
    call.cancel()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - grpc's own cancellation, of whichever kind
        await waiting
    await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1, SPEAKS_TIMEOUT_S)


async def test_an_aborted_attempt_ends_with_cancelled_and_closes_the_models_connection(
    client: Client, offline_model: Any, eventually: Any
) -> None:
    aborted = offline_model.stats()["aborted"]
    request = client.request("#tokens=1000 #delay=20")
    stream = client.stream(request)
    await anext(stream)
    abort = pb.AbortRunRequest(tenant_id=request.tenant_id, run_id=request.run_id, runtime=client.runtime)
    assert (await client.peer.call(client.stub.AbortRun, abort)).aborted
    last = [event async for event in stream][-1]
    assert last.failed.error.code == Code.CANCELLED
    assert not last.failed.retryable
    await eventually(lambda: offline_model.stats()["aborted"] == aborted + 1, SPEAKS_TIMEOUT_S)


async def test_aborting_what_is_over_or_another_tenants_does_nothing(client: Client) -> None:
    request = client.request("#tokens=1000 #delay=20")
    stream = client.stream(request)
    await anext(stream)
    other = pb.AbortRunRequest(tenant_id="ten_b", run_id=request.run_id, runtime=client.runtime)
    assert not (await client.peer.call(client.stub.AbortRun, other)).aborted
    await stream.aclose()
    unknown = pb.AbortRunRequest(tenant_id="ten_a", run_id="run_unknown", runtime=client.runtime)
    assert not (await client.peer.call(client.stub.AbortRun, unknown)).aborted


async def test_no_stale_write_a_lower_token_is_refused_and_a_higher_one_taken(client: Client) -> None:
    session_id = ids.new_id("ses")
    for token in (5, 5, 6):
        events = await client.invoke("#tokens=1", session_id=session_id, fencing_token=token)
        assert told(events).terminal == ["finished"]
    with pytest.raises(RetinueError) as refused:
        await client.invoke("#tokens=1", session_id=session_id, fencing_token=5)
    assert refused.value.reason is Reason.STALE_FENCING_TOKEN
    assert told(await client.invoke("#tokens=1", fencing_token=1)).terminal == ["finished"]


async def test_a_checkpoint_of_a_whole_message_ends_the_run_without_a_model_call(
    client: Client, offline_model: Any
) -> None:
    first = await client.invoke("#card #tokens=3")
    state = next(event.checkpoint.state for event in first if event.HasField("checkpoint"))
    count = offline_model.stats()["requests"]
    again = await client.invoke("#card #tokens=3", attempt=2, fencing_token=2, checkpoint=state)
    assert offline_model.stats()["requests"] == count
    assert told(again).text == told(first).text
    assert told(again).messages == told(first).messages
    assert [event.card for event in again if event.HasField("card")] == [
        event.card for event in first if event.HasField("card")
    ]
    assert again[-1].finished.usage == first[-1].finished.usage


async def test_a_checkpoint_that_means_nothing_begins_anew(client: Client) -> None:
    assert told(await client.invoke("#tokens=2", checkpoint=b"\xff{")).text == "t0 t1"


async def test_names_of_tools_that_are_not_there_keep_no_run_from_its_answer(client: Client) -> None:
    found = told(await client.invoke("#tokens=2", tools=["exec", "mcp__*", "abacus"]))
    assert (found.text, found.terminal) == ("t0 t1", ["finished"])


async def test_a_description_names_the_runtime_and_its_models(client: Client) -> None:
    described = await client.describe()
    assert described.available
    assert described.detail
    assert described.models


async def test_what_is_not_declared_is_refused(client: Client) -> None:
    described = await client.describe()
    export = pb.ExportContextRequest(tenant_id="ten_a", session_id="ses_a", runtime=client.runtime)
    give = pb.ImportContextRequest(tenant_id="ten_a", session_id="ses_a", runtime=client.runtime)
    if not described.holds_context:
        for method, request in ((client.stub.ExportContext, export), (client.stub.ImportContext, give)):
            with pytest.raises(RetinueError) as refused:
                await client.peer.call(method, request)
            assert refused.value.reason is Reason.CAPABILITY_MISSING
            assert refused.value.metadata["capability"] == "holds_context"
    join = pb.ReattachRequest(
        tenant_id="ten_a", run_id="run_a", session_id="ses_a", runtime=client.runtime, fencing_token=1
    )
    if not described.reattach:
        with pytest.raises(RetinueError) as refused:
            async for _ in client.peer.stream(client.stub.Reattach, join, timeout_s=CALL_TIMEOUT_S):
                pass
        assert refused.value.metadata["capability"] == "reattach"


async def test_an_unknown_runtime_is_unavailable(client: Client) -> None:
    with pytest.raises(RetinueError) as refused:
        await client.invoke("hello", runtime="abacus")
    assert refused.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert refused.value.metadata["runtime"] == "abacus"
