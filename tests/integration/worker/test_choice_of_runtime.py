"""A worker between runtimes: what each is told, and what becomes of a run that none can take yet."""

import asyncio
import json

import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_policy.__main__ import assemble as assemble_policy
from retinue_policy.config import Settings as PolicySettings

POLICY = policy_pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
ADAPTER = adapter_pb.DESCRIPTOR.services_by_name["RuntimeAdapterService"].full_name


def failure(*, retry_s=None, reason="RUNTIME_UNAVAILABLE", retryable=True):
    """A `failed` event."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="retinue")]
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return {"failed": {"error": {"code": 14, "message": "Not now.", "details": packed}, "retryable": retryable}}


async def fine(request):
    yield {"text_delta": {"text": f"re: {request.text}"}}
    yield {"message_completed": {"text": f"re: {request.text}"}}
    yield {"finished": {}}


def failing(times, event, *before):
    """A script that fails in its first invocations, and is fine then."""
    left = [times]

    async def script(request):
        if left[0]:
            left[0] -= 1
            for one in (*before, event):
                yield one
            return
        async for one in fine(request):
            yield one

    return script


class Choosing(policy_grpc.PolicyServiceServicer):
    """A policy that chooses what a test says."""

    def __init__(self):
        self.runtime, self.isolation = "openclaw", ""
        self.requests: list[policy_pb.DecideRequest] = []

    async def Decide(self, request, context):
        self.requests.append(request)
        decision = policy_pb.Decision(runtime=self.runtime, isolation=self.isolation)
        decision.switches_runtime = request.session_runtime not in ("", self.runtime)
        decision.limits.attempt_count, decision.limits.concurrent_run_count = 3, 64
        decision.limits.output_size_bytes, decision.limits.weight = 1 << 20, 1.0
        decision.limits.run_time.FromSeconds(60)
        return policy_pb.DecideResponse(decision=decision)

    async def ReportOutcomes(self, request, context):
        return policy_pb.ReportOutcomesResponse()


@pytest.fixture
def choosing():
    return Choosing()


@pytest.fixture
async def policy_address(serve, choosing):
    return await serve([Service(policy_grpc.add_PolicyServiceServicer_to_server, choosing, POLICY)])


@pytest.mark.parametrize("isolation", ["", "shared", "cell"])
async def test_a_runtime_is_told_whom_it_speaks_with_and_whether_alone(
    mesh, choosing, policy_address, when_over, isolation
):
    choosing.isolation = isolation
    await mesh.start_worker(policy_address=policy_address)
    contact = "Ada..Ü:+49 1"
    await when_over(await mesh.submit("x", contact=contact))
    request = mesh.adapter.requests[0]
    assert (request.runtime, request.contact, request.isolation) == ("openclaw", contact, isolation)


async def test_a_runtime_that_has_no_room_yet_costs_no_attempt(mesh, when_over):
    mesh.adapter.script = failing(4, failure(retry_s=0.05))
    await mesh.start_worker()
    run = await mesh.submit("x")
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"], row["dead"]) == ("succeeded", 1, "re: x", None)
    assert row["put_back_s"] >= 4 * 0.05
    assert len(mesh.adapter.requests) == 5, "more than a run has attempts"
    assert (await mesh.types())[-1] == "run.succeeded"


async def test_a_runtime_that_never_has_room_is_waited_for_within_a_bound(mesh, when_over):
    mesh.adapter.script = failing(1_000, failure(retry_s=0.1))
    await mesh.start_worker(put_back_s=0.25)
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], row["dead"]) == ("failed", 3, "open")
    assert 0 < row["put_back_s"] <= 0.25
    assert json.loads(row["error"])["message"] == "Not now."


@pytest.mark.parametrize(
    ("event", "before"),
    [
        (failure(), ()),
        (failure(retry_s=0.05), ({"text_delta": {"text": "I"}},)),
        (failure(retry_s=0.05, reason="MODEL_UNAVAILABLE"), ()),
    ],
    ids=["without a time", "after a word", "a model's trouble"],
)
async def test_a_runtime_that_fails_otherwise_costs_an_attempt(mesh, when_over, event, before):
    mesh.adapter.script = failing(2, event, *before)
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], row["put_back_s"]) == ("succeeded", 3, 0.0)


async def test_a_failure_that_no_attempt_can_mend_ends_the_run(mesh, when_over):
    mesh.adapter.script = failing(1_000, failure(retry_s=0.05, retryable=False))
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], row["put_back_s"]) == ("failed", 1, 0.0)


class Starting(adapter_grpc.RuntimeAdapterServiceServicer):
    """An adapter whose runtimes have to start first."""

    def __init__(self):
        self.there: list[adapter_pb.Runtime] = []
        self.without_room: set[str] = set()
        """Tenants whose runs openclaw has no room for."""

    def serves(self, runtime):
        return any(one.name == runtime and one.available for one in self.there)

    async def DescribeRuntimes(self, request, context):
        return adapter_pb.DescribeRuntimesResponse(runtimes=self.there)

    async def Invoke(self, request, context):
        if not self.serves(request.runtime):
            raise RetinueError(Reason.RUNTIME_UNAVAILABLE, f"The runtime {request.runtime!r} is not switched on.")
        full = request.runtime == "openclaw" and request.tenant_id in self.without_room
        async for event in failing(full, failure(retry_s=0.05))(request):
            yield adapter_pb.InvokeResponse(events=[RuntimeEvent(**event)])


@pytest.fixture
def starting():
    return Starting()


@pytest.fixture
async def start(mesh, serve, assembled, run_dir, redis_url, starting):
    """Start a worker and a real policy beside that adapter; the policy asks it, if it is to."""
    adapter = await serve([Service(adapter_grpc.add_RuntimeAdapterServiceServicer_to_server, starting, ADAPTER)])

    async def start(runtimes, *, asks=True):
        settings = PolicySettings(
            f"unix:{run_dir}/policy.sock",
            mesh.settings["directory_address"],
            redis_url,
            runtimes=runtimes,
            runtime_adapter_address=adapter if asks else "",
        )
        policy = await assembled(assemble_policy, settings)
        await mesh.start_worker(policy_address=policy, runtime_adapter_address=adapter)

    return start


@pytest.fixture
def served_by(mesh, when_over):
    """Have a message answered; answers the runtime that did it."""

    async def served_by(tenant="ten_a"):
        row = await when_over(await mesh.submit("x", contact=ids.new_id("c"), tenant=tenant))
        assert row["state"] == "succeeded"
        return json.loads(row["decision"])["runtime"]

    return served_by


def runtime(name, *, available):
    return adapter_pb.Runtime(name=name, available=available, detail="as the test says")


@pytest.mark.parametrize("there", [[], [runtime("openclaw", available=False)]], ids=["not there", "starting"])
@pytest.mark.parametrize("asks", [True, False])
async def test_a_run_waits_for_the_only_runtime_and_uses_up_no_attempt(
    mesh, starting, start, when_over, eventually, there, asks
):
    starting.there = there
    await start("openclaw", asks=asks)
    run = await mesh.submit("x")

    async def put_back_twice():
        return (await mesh.run(run))["put_back_s"] >= 2

    await eventually(put_back_twice, timeout_s=20)
    starting.there = [runtime("openclaw", available=True)]
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"], row["dead"]) == ("succeeded", 1, "re: x", None)
    assert (await mesh.types())[-1] == "run.succeeded"


async def test_light_stands_in_until_openclaw_can_take_runs(mesh, starting, start, served_by, eventually):
    starting.there = [runtime("openclaw", available=False), runtime("light", available=True)]
    await start("openclaw,light")

    assert await served_by() == "light"
    starting.there = [runtime("openclaw", available=True), runtime("light", available=True)]

    async def openclaw_serves():
        return await served_by() == "openclaw"

    assert await eventually(openclaw_serves, timeout_s=20)


async def test_light_stands_in_for_a_tenant_that_openclaw_has_no_room_for_and_for_nobody_else(
    mesh, starting, start, served_by
):
    starting.there = [runtime("openclaw", available=True), runtime("light", available=True)]
    starting.without_room = {"ten_a", "ten_b", "ten_c"}
    await start("openclaw,light")
    assert await asyncio.gather(*(served_by(tenant) for tenant in sorted(starting.without_room))) == ["light"] * 3
    assert await mesh.redis.get("breaker:openclaw") is None
    assert await served_by("ten_d") == "openclaw"
