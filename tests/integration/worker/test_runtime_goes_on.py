"""A worker and a runtime that goes on by itself when nobody listens: it is joined by the next attempt, or stopped."""

import asyncio
import json

import pytest
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import wire
from retinue_kit.errors import RetinueError
from retinue_kit.server import Service
from retinue_kit.streams import Cursor

ADAPTER = pb.DESCRIPTOR.services_by_name["RuntimeAdapterService"].full_name


def delta(text, **more):
    return {"text_delta": {"text": text, **more}}


class Lasting(adapter_grpc.RuntimeAdapterServiceServicer):
    """Tells each attempt of a run the same from the beginning, in pieces of its own; its second half behind a gate."""

    def __init__(self, gate):
        self.gate = gate
        self.says = "Once upon a time there was a butler."
        self.piece = 3
        self.loses = 0
        """Attempts whose stream breaks in the middle."""
        self.deaf = False
        """Whether it does not hear of an abort."""
        self.requests: list[pb.InvokeRequest] = []
        self.aborted: list[pb.AbortRunRequest] = []
        self.calls: list[tuple[str, str]] = []
        self.left = asyncio.Event()

    async def Invoke(self, request, context):
        await wire.accept(context)
        self.requests.append(request)
        self.calls.append(("invoke", request.run_id))
        try:
            half, size = len(self.says) // 2, self.piece + request.attempt
            for at in range(0, half, size):
                yield self.event(delta(self.says[at : min(at + size, half)]))
            if request.attempt <= self.loses:
                raise RetinueError.unavailable("the connection")
            await self.gate.wait()
            yield self.event(delta(self.says[half:]))
            yield self.event({"message_completed": {"text": self.says}})
            yield self.event({"finished": {}})
        finally:
            self.left.set()

    async def AbortRun(self, request, context):
        self.aborted.append(request)
        self.calls.append(("abort", request.run_id))
        if self.deaf:
            await asyncio.Event().wait()
        return pb.AbortRunResponse(aborted=True)

    @staticmethod
    def event(fields):
        return pb.InvokeResponse(events=[RuntimeEvent(**fields)])


@pytest.fixture
async def runtime(gate):
    return Lasting(gate)


@pytest.fixture
async def address(serve, runtime):
    return await serve([Service(adapter_grpc.add_RuntimeAdapterServiceServicer_to_server, runtime, ADAPTER)])


@pytest.fixture
def half_told(mesh, eventually, runtime):
    """Wait until watchers have seen the first half."""

    async def wait(contact="ada"):
        async def seen():
            return watched(await mesh.told(contact)) == runtime.says[: len(runtime.says) // 2]

        await eventually(seen)

    return wait


def watched(entries):
    """What a watcher who obeys `rewind_to` has on its screen: texts, whole or in pieces, joined."""
    shown: list[tuple[Cursor, str, str]] = []
    for entry in entries:
        if not entry.type:
            continue
        data = json.loads(entry.json)["data"]
        if entry.type == "run.resumed":
            behind = Cursor.parse(data["rewind_to"])
            shown = [one for one in shown if one[0] <= behind]
        elif entry.type == "assistant.delta":
            if data.get("replace"):
                shown = [one for one in shown if one[1] != "delta"]
            shown.append((entry.cursor, "delta", data["text"]))
        elif entry.type == "assistant.message":
            shown = [one for one in shown if one[1] != "delta"]
            shown.append((entry.cursor, "message", data["text"]))
    return "".join(text for _, _, text in shown)


@pytest.mark.parametrize("loses", [1, 2])
async def test_an_attempt_that_is_told_everything_again_leaves_its_watchers_with_one_text(
    mesh, runtime, address, gate, when_over, eventually, loses
):
    runtime.loses = loses
    gate.set()
    await mesh.start_worker(runtime_adapter_address=address)
    run = await mesh.submit("tell me a story")
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1 + loses, runtime.says)
    asked = [(request.run_id, request.attempt, request.contact) for request in runtime.requests]
    assert asked == [(run, attempt, "ada") for attempt in range(1, loses + 2)]
    facts = ["user.message", *["run.resumed"] * loses, "assistant.message", "run.succeeded"]
    assert await mesh.types() == facts

    async def told():
        entries = await mesh.told()
        return watched(entries) if entries[-1].type == "run.succeeded" else None

    assert await eventually(told) == runtime.says
    assert runtime.aborted == [], "the next attempt joins what goes on"


async def test_a_watcher_who_saw_the_first_half_sees_the_second_attempt_begin_anew(
    mesh, runtime, address, gate, when_over, half_told
):
    runtime.loses = 1
    await mesh.start_worker(runtime_adapter_address=address)
    run = await mesh.submit("tell me a story")
    await half_told()
    gate.set()
    await when_over(run)
    texts = [json.loads(e.json)["data"]["text"] for e in await mesh.told() if e.type == "assistant.delta"]
    assert "".join(texts).count(runtime.says[:6]) == 2, "it was told twice"
    assert watched(await mesh.told()) == runtime.says, "and is seen once"


async def test_a_run_that_its_user_cancels_is_stopped_in_the_runtime(mesh, runtime, address, half_told, when_over):
    await mesh.start_worker(runtime_adapter_address=address)
    run = await mesh.submit("tell me a story")
    await half_told()
    await mesh.pool.fetchrow("select * from cancel_run_1('ten_a', $1, 'usr_1')", run)
    assert (await when_over(run))["state"] == "cancelled"
    assert runtime.aborted == [pb.AbortRunRequest(tenant_id="ten_a", run_id=run, runtime="light")]


@pytest.mark.parametrize("busy", ["interrupt", "rollback"])
async def test_a_message_that_stops_another_stops_it_in_the_runtime_before_its_own_run_begins(
    mesh, runtime, address, gate, half_told, when_over, busy
):
    await mesh.start_worker(runtime_adapter_address=address)
    first = await mesh.submit("tell me a story")
    await half_told()
    second = await mesh.submit("enough", busy=busy)
    assert (await when_over(first))["state"] == "cancelled"
    gate.set()
    assert (await when_over(second))["state"] == "succeeded"
    assert runtime.calls == [("invoke", first), ("abort", first), ("invoke", second)]


async def test_a_runtime_that_does_not_hear_of_an_abort_delays_nobody_for_long(
    mesh, runtime, address, half_told, when_over
):
    runtime.deaf = True
    await mesh.start_worker(runtime_adapter_address=address)
    run = await mesh.submit("tell me a story")
    await half_told()
    await mesh.pool.fetchrow("select * from cancel_run_1('ten_a', $1, 'usr_1')", run)
    row = await asyncio.wait_for(when_over(run), 10)
    assert row["state"] == "cancelled"
    assert runtime.calls == [("invoke", run), ("abort", run)]


async def test_a_run_that_is_given_back_is_left_to_go_on(mesh, runtime, address, gate, half_told, when_over):
    first = await mesh.start_worker(runtime_adapter_address=address, lease_s=60, drain_s=0)
    run = await mesh.submit("tell me a story")
    await half_told()
    await mesh.start_worker(runtime_adapter_address=address)
    await first.aclose()
    gate.set()
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, runtime.says)
    assert runtime.calls == [("invoke", run)] * 2
    assert watched(await mesh.told()) == runtime.says


async def test_a_run_whose_worker_lost_its_lease_is_left_to_go_on(mesh, runtime, address, gate, half_told, when_over):
    await mesh.start_worker(runtime_adapter_address=address, lease_s=60, renew_s=0.2)
    run = await mesh.submit("tell me a story")
    await half_told()
    await mesh.admin.execute("update router.logs set holder = 'other:1', token = token + 1 where log_id = 'log_ada'")
    await asyncio.wait_for(runtime.left.wait(), 10)
    await mesh.admin.execute("update router.logs set holder = null, due_time = clock_timestamp()")
    gate.set()
    assert (await when_over(run))["state"] == "succeeded"
    assert ("abort", run) not in runtime.calls


async def test_a_run_that_says_more_than_a_run_may_is_stopped_in_the_runtime(mesh, runtime, address, when_over):
    runtime.says, runtime.piece = "x" * 10_000_000, 1_000_000
    await mesh.start_worker(runtime_adapter_address=address)
    run = await mesh.submit("tell me everything")
    row = await when_over(run)
    assert json.loads(row["error"])["details"][0]["reason"] == "OUTPUT_TOO_LARGE"
    assert runtime.calls == [("invoke", run), ("abort", run)]
