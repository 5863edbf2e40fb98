"""An attempt on OpenClaw: runs outlive their streams, are joined, stopped, and end in the mesh's own words."""

import asyncio

import pytest
from pretend_places import TENANT, FakeGateway, FakePool, FakeProxy, assistant, events_of, final, kinds, request
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_kit.wire import from_status
from retinue_runtime_adapter.domain.models import Catalogue, Model
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import adapter as module
from retinue_runtime_adapter.openclaw import keys, words
from retinue_runtime_adapter.openclaw.adapter import OpenClawAdapter
from retinue_runtime_adapter.openclaw.ports import Frame, Meter
from retinue_runtime_adapter.tools.ports import Scope

AGENT = keys.agent_id(TENANT)


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
def active():
    return {}


@pytest.fixture
async def adapter(pool, proxy, active):
    made = OpenClawAdapter(
        pool, proxy, Catalogue([Model("small", "p", "m")], "small"), active, orphan_s=0.05, version="2026.9.6"
    )
    yield made
    await made.close()


async def test_a_run_ends_with_its_message_a_checkpoint_and_what_was_paid(adapter, gateway, proxy, pool):
    gateway.script = [assistant("Hel"), assistant("Hello", "lo"), final("Hello")]
    proxy.meter = Meter(input_tokens=30, output_tokens=7, cost_micros=11, model="small", calls=2)
    events = await events_of(adapter, request(persona="be kind"))
    assert kinds(events)[-3:] == ["message_completed", "checkpoint", "finished"]
    assert events[-3].message_completed.text == "Hello"
    usage = events[-1].finished.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cost_micros, usage.model) == (30, 7, 11, "small")
    call = gateway.calls[0]
    assert (call.run_id, call.agent_id, call.text, call.system) == ("run_1", AGENT, words.enclose("hello"), "be kind")
    assert keys.belongs(call.session_key, AGENT)
    assert pool.held == 0


async def test_the_checkpoint_tells_the_same_again_without_a_gateway(adapter, gateway):
    gateway.script = [assistant("Hello"), final("Hello")]
    first = await events_of(adapter, request())
    state = next(event.checkpoint.state for event in first if event.HasField("checkpoint"))
    again = await events_of(adapter, request(run_id="run_1", attempt=2, checkpoint=state))
    assert len(gateway.calls) == 1
    assert (again[-3:], again[-1].finished.usage) == (first[-3:], first[-1].finished.usage)


async def test_what_the_session_was_not_told_is_put_in_front_and_what_it_was_is_not(adapter, gateway, proxy):
    gateway.script = [assistant("yes"), final("yes")]
    before = [pb.ContextMessage(role="user", text="one"), pb.ContextMessage(role="assistant", text="two")]
    await events_of(adapter, request("a", context=before))
    more = [*before, pb.ContextMessage(role="user", text="a"), pb.ContextMessage(role="assistant", text="yes")]
    await events_of(adapter, request("b", run_id="run_2", context=more))
    assert gateway.calls[0].session_key == gateway.calls[1].session_key
    assert [[line["content"] for line in run["before"]] for run in proxy.runs] == [["one", "two"]] * 2


async def test_a_stream_that_is_lost_leaves_a_run_that_the_next_attempt_joins(adapter, gateway):
    gateway.script = [assistant("Hel"), None, assistant("Hello", "lo"), final("Hello")]
    first = adapter.invoke(request())
    assert kinds(await anext(first)) == ["text_delta"]
    await first.aclose()
    second = asyncio.create_task(events_of(adapter, request(attempt=2)))
    await asyncio.sleep(0)
    gateway.gate.set()
    events = await second
    assert "".join(event.text_delta.text for event in events) == "Hello"
    assert kinds(events)[-1] == "finished"
    assert len(gateway.calls) == 1
    assert gateway.aborted == []


async def test_a_run_that_nobody_follows_any_more_is_stopped(adapter, gateway, eventually):
    gateway.script = [assistant("Hel"), None, final("Hel")]
    stream = adapter.invoke(request())
    await anext(stream)
    await stream.aclose()
    await eventually(lambda: [run for _, run in gateway.aborted] == ["run_1"])
    assert not adapter.abort(TENANT, "run_1")


async def test_an_abort_stops_the_gateways_run_and_ends_as_cancelled(adapter, gateway, pool):
    gateway.script = [assistant("Hel"), None, final("Hel")]
    stream = adapter.invoke(request())
    await anext(stream)
    assert not adapter.abort("ten_b", "run_1")
    assert adapter.abort(TENANT, "run_1")
    last = [event async for batch in stream for event in batch][-1]
    assert (last.failed.error.code, last.failed.retryable) == (Code.CANCELLED, False)
    assert len(gateway.aborted) == 1
    assert pool.held == 0


async def test_the_time_of_a_run_is_kept_here(adapter, gateway):
    gateway.script = [None]
    asked = request()
    asked.run_time.FromMilliseconds(50)
    last = (await events_of(adapter, asked))[-1]
    assert "RUN_TIMEOUT" in str(last.failed.error)
    assert len(gateway.aborted) == 1


async def test_a_models_trouble_is_told_in_our_words_and_another_attempt_asks_anew(adapter, gateway, proxy):
    proxy.meter = Meter(trouble=Trouble(Reason.MODEL_RATE_LIMITED, "slow down"))
    gateway.script = [Trouble(Reason.RUNTIME_UNAVAILABLE, "LLM request failed")]
    last = (await events_of(adapter, request()))[-1]
    assert "MODEL_RATE_LIMITED" in str(last.failed.error)
    assert last.failed.retryable
    proxy.meter = Meter()
    gateway.script = [assistant("yes"), final("yes")]
    assert kinds(await events_of(adapter, request(attempt=2)))[-1] == "finished"
    assert [call.run_id for call in gateway.calls] == ["run_1", "run_1.1"]
    assert gateway.calls[0].session_key != gateway.calls[1].session_key


async def test_no_place_is_a_failure_that_passes(adapter, pool):
    pool.trouble = Trouble(Reason.RUNTIME_UNAVAILABLE, "No gateway is free.", retry_after_s=2.0)
    last = (await events_of(adapter, request()))[-1]
    assert "RUNTIME_UNAVAILABLE" in str(last.failed.error)
    assert last.failed.retryable


async def test_a_bug_ends_the_run_and_not_the_process(adapter, pool):
    pool.trouble = KeyError("a bug")
    last = (await events_of(adapter, request()))[-1]
    assert last.failed.error.code == Code.INTERNAL


async def test_reasoning_is_told_as_our_endpoint_hears_it(adapter, gateway, proxy):
    gateway.script = [assistant("yes"), None, final("yes")]
    stream = adapter.invoke(request(reasoning=True))
    await anext(stream)
    proxy.runs[0]["on_reasoning"]("let me see")
    gateway.gate.set()
    events = [event for batch in [b async for b in stream] for event in batch]
    assert [event.reasoning_delta.text for event in events if event.HasField("reasoning_delta")] == ["let me see"]


async def test_two_follow_one_run_and_hear_the_same(adapter, gateway):
    gateway.script = [assistant("a"), None, final("a")]
    first, second = (asyncio.create_task(events_of(adapter, request(attempt=n))) for n in (1, 2))
    await asyncio.sleep(0.01)
    gateway.gate.set()
    assert (await first)[-3:] == (await second)[-3:]
    assert len(gateway.calls) == 1


async def test_reattaching_to_a_run_that_is_not_here_is_refused(adapter):
    asked = pb.ReattachRequest(tenant_id=TENANT, run_id="run_9", session_id="ses_1", runtime="openclaw")
    with pytest.raises(RetinueError) as refused:
        await anext(adapter.reattach(asked))
    assert refused.value.reason is Reason.RUN_NOT_FOUND


async def test_runs_are_bounded(adapter, gateway, monkeypatch):
    monkeypatch.setattr(module, "RUNS_MAX", 0)
    last = (await events_of(adapter, request()))[-1]
    assert (last.failed.retryable, gateway.calls) == (True, [])


async def test_tools_are_called_for_the_run_that_is_under_way_and_for_none_afterwards(adapter, gateway, active, proxy):
    gateway.script = [assistant("a"), None, final("a")]
    given = {"tools": ["exec", "read"], "allowances": [pb.Allowance(tool="exec", pattern="ls")], "agent_id": "agt_1"}
    box = pb.ToolBox(min_isolation="gvisor", egress=["a.b:443"])
    stream = adapter.invoke(request(fencing_token=7, kind="chat", model="m", box=box, **given))
    await anext(stream)
    (who, identity), *others = active.items()
    assert not others
    assert who == ("ins_1", AGENT, gateway.calls[0].session_key)
    assert identity.scope == Scope(
        TENANT, "ses_1", "run_1", 7, "openclaw", agent_id="agt_1", contact="anna", kind="chat", model="p/small",
        allowed=(("exec", "ls"),), min_isolation="gvisor", egress=("a.b:443",),
    )  # fmt: skip
    assert identity.tools == {"exec", "read"}
    assert proxy.runs[0]["tools"] == ["exec", "read"]
    gateway.gate.set()
    assert [batch async for batch in stream]
    assert active == {}


async def test_tools_of_a_run_that_is_joined_are_called_under_the_later_attempts_token(adapter, gateway, active):
    gateway.script = [assistant("a"), None, final("a")]
    first = adapter.invoke(request(fencing_token=7))
    await anext(first)
    second = adapter.invoke(request(attempt=2, fencing_token=9))
    await anext(second)
    assert [identity.scope.fencing_token for identity in active.values()] == [9]
    gateway.gate.set()
    assert [batch async for batch in second]
    await first.aclose()


async def test_no_stale_write_a_later_attempt_fences_the_box_before_its_gateway_is_asked(gateway, pool, proxy):
    fenced = []

    class Box:
        async def fence(self, scope):
            fenced.append((scope.fencing_token, len(gateway.calls)))
            if scope.fencing_token == 3:
                raise RetinueError(Reason.STALE_FENCING_TOKEN, "Another attempt has begun.")
            if scope.fencing_token == 2:
                raise RetinueError(Reason.SANDBOX_UNAVAILABLE, "There is no box.", check="box")

    catalogue = Catalogue([Model("small", "p", "m")], "small")
    made = OpenClawAdapter(pool, proxy, catalogue, {}, orphan_s=0.05, version="2026.9.6", box=Box())
    gateway.script = [assistant("a"), final("a")]
    assert made.describe().tools
    for attempt, token, tools in ((1, 1, ["exec"]), (2, 2, ["exec"]), (2, 9, []), (2, 8, ["exec"])):
        asked = request(run_id=f"run_{token}", attempt=attempt, fencing_token=token, tools=tools)
        assert (await events_of(made, asked))[-1].HasField("finished")
    assert fenced == [(2, 1), (8, 3)]
    last = (await events_of(made, request(run_id="run_3", attempt=2, fencing_token=3, tools=["exec"])))[-1]
    assert "STALE_FENCING_TOKEN" in str(last.failed.error)
    assert len(gateway.calls) == 4
    await made.close()


async def test_a_gateway_that_is_lost_with_a_run_names_no_time_to_come_again(adapter, gateway, pool):
    gateway.script = [Trouble(Reason.RUNTIME_UNAVAILABLE, "The connection is lost.", retry_after_s=1.0)]
    last = (await events_of(adapter, request()))[-1]
    assert "RUNTIME_UNAVAILABLE" in str(last.failed.error)
    assert "RetryInfo" not in str(last.failed.error), "its attempt counts: it may be what the gateway died of"
    pool.trouble = Trouble(Reason.RUNTIME_UNAVAILABLE, "No gateway is free.", retry_after_s=2.0)
    last = (await events_of(adapter, request(run_id="run_2")))[-1]
    assert "RetryInfo" in str(last.failed.error)


async def test_runs_have_traces_of_their_own_in_the_gateway(adapter, gateway, proxy):
    gateway.script = [assistant("a"), final("a")]
    for number in range(2):
        await events_of(adapter, request(run_id=f"run_{number}"))
    traces = [call.traceparent.split("-")[1] for call in gateway.calls]
    assert len(set(traces)) == 2
    assert traces == [given["trace_id"] for given in proxy.runs]


async def test_reasoning_without_end_is_too_much_output(adapter, gateway, proxy):
    gateway.script = [assistant("a"), None, final("a")]
    stream = adapter.invoke(request(reasoning=True, output_size_bytes=100))
    await anext(stream)
    for _ in range(3):
        proxy.runs[0]["on_reasoning"]("x" * 50)
    events = [event async for batch in stream for event in batch]
    assert "OUTPUT_TOO_LARGE" in str(events[-1].failed.error)
    assert sum(len(event.reasoning_delta.text) for event in events) == 100


LOCKED = {"code": "UNAVAILABLE", "message": "another OpenClaw process owns state-lifecycle"}


@pytest.mark.parametrize(("calls", "begun", "retry_s"), [(0, False, 1.0), (1, True, None)])
async def test_a_run_that_its_gateway_could_not_begin_may_come_again_and_the_gateway_is_doubted(
    adapter, gateway, pool, proxy, calls, begun, retry_s
):
    proxy.meter.calls = calls
    gateway.script = [Frame("final", {"runId": "run_1", "status": "error", "error": LOCKED})]
    (event,) = await events_of(adapter, request())
    error = from_status(event.failed.error)
    assert (error.reason, error.retry_after_s) == (Reason.RUNTIME_UNAVAILABLE, retry_s)
    assert pool.begun == [begun]


async def test_a_run_that_had_begun_to_speak_is_not_begun_again_because_of_locked_files(adapter, gateway, pool):
    spoken = {"runId": "run_1", "stream": "assistant", "data": {"text": "Half an answer", "itemId": "one:1"}}
    gateway.script = [
        Frame("event", spoken),
        Frame("final", {"runId": "run_1", "status": "error", "error": LOCKED}),
    ]
    *_, event = await events_of(adapter, request())
    error = from_status(event.failed.error)
    assert error.reason is not Reason.RUNTIME_UNAVAILABLE
    assert "state-lifecycle" not in error.message
    assert pool.begun == [True]
