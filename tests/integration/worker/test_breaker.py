"""A worker and a real policy: what fails is kept away from, others go on, and a probe finds out when it works again."""

import json

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from retinue.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from retinue.policy.v1.breaker_pb2 import Outcome
from retinue_policy.__main__ import assemble as assemble_policy
from retinue_policy.config import Settings as PolicySettings
from retinue_policy.domain.breaker import FAILURES_MAX


def details(reason):
    """Say a reason as a status does."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="retinue"))
    return [packed]


@pytest.fixture
async def policy(mesh, assembled, run_dir, redis_url):
    """A real policy beside the same Redis; answers its address."""
    settings = PolicySettings(f"unix:{run_dir}/policy.sock", mesh.settings["directory_address"], redis_url)
    return await assembled(assemble_policy, settings)


@pytest.fixture
def broken(mesh):
    """A runtime that fails for the tenants in the set, which tests change."""
    tenants = {"ten_a"}

    async def script(request):
        if request.tenant_id in tenants:
            error = {"code": 14, "message": "The model is away.", "details": details("MODEL_UNAVAILABLE")}
            yield {"failed": {"error": error, "retryable": True}}
            return
        yield {"text_delta": {"text": "fine"}}
        yield {"message_completed": {"text": "fine"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    return tenants


@pytest.fixture
def opened(mesh, policy, peer):
    """Start a worker beside a policy that has heard of so many failures of ten_a that its breaker is open."""

    async def open_breaker(**settings):
        to_policy = peer("policy", policy)
        failure = {"tenant_id": "ten_a", "runtime": "light", "run_id": "run_x", "result": "failed"}
        outcomes = [Outcome(**failure, reason="MODEL_UNAVAILABLE") for _ in range(FAILURES_MAX)]
        stub = policy_service_pb2_grpc.PolicyServiceStub(to_policy.channel)
        await to_policy.call(stub.ReportOutcomes, policy_service_pb2.ReportOutcomesRequest(outcomes=outcomes))
        await mesh.start_worker(policy_address=policy, **settings)

    return open_breaker


async def test_failing_runs_open_the_breaker_and_are_set_aside(mesh, policy, broken, when_over, eventually):
    await mesh.start_worker(policy_address=policy)
    for run in [await mesh.submit("x", contact=f"c{n}") for n in range(2)]:
        row = await when_over(run)
        assert (row["state"], row["attempt"], row["dead"]) == ("failed", 3, "open")

    async def opened():
        kept = await mesh.redis.get("t:ten_a:breaker:light")
        return kept and json.loads(kept)["open_count"] >= 1

    await eventually(opened)


async def test_a_run_that_meets_an_open_breaker_waits_without_using_up_attempts_and_succeeds_later(
    mesh, opened, broken, when_over, eventually
):
    await opened()
    run = await mesh.submit("y", contact="late")

    async def put_back():
        row = await mesh.run(run)
        return row["put_back_s"] > 0 and row["state"] == "queued" and row["attempt"] == 0

    await eventually(put_back)
    assert len(mesh.adapter.requests) <= 1, "at most the probe came through"
    broken.clear()
    row = await when_over(run)
    assert (row["state"], row["output"]) == ("succeeded", "fine")
    types = await mesh.types("late")
    assert types.count("run.started") <= 1
    assert types.count("user.message") == 1
    assert types[-1] == "run.succeeded"


async def test_other_tenants_are_served_while_one_tenants_breaker_is_open(mesh, opened, broken, when_over):
    await opened()
    run = await mesh.submit("hello", tenant="ten_b")
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["put_back_s"]) == ("succeeded", 1, 0.0)


async def test_a_probes_first_sign_of_life_closes_the_breaker_for_those_that_wait(
    mesh, opened, broken, when_over, eventually, gate
):
    await opened()
    broken.clear()
    fine = mesh.adapter.script

    async def slow(request):
        if request.text == "slow":
            yield {"text_delta": {"text": "I live"}}
            await gate.wait()
        async for event in fine(request):
            yield event

    mesh.adapter.script = slow
    first = await mesh.submit("slow", contact="slow")

    async def closed():
        return not await mesh.redis.exists("t:ten_a:breaker:light")

    await eventually(closed)
    assert (await when_over(await mesh.submit("quick", contact="quick")))["state"] == "succeeded"
    assert (await mesh.run(first))["state"] == "running"
    gate.set()
    assert (await when_over(first))["state"] == "succeeded"


async def test_a_run_waits_for_a_bounded_time_and_is_set_aside_then(mesh, opened, broken, when_over):
    await opened(put_back_s=0.5)
    row = await when_over(await mesh.submit("y", contact="late"))
    error = json.loads(row["error"])
    assert row["state"] == "failed"
    assert row["dead"] == "open"
    assert error["details"][0]["reason"] in ("RUNTIME_UNAVAILABLE", "MODEL_UNAVAILABLE")


async def test_what_the_request_caused_is_not_set_aside_and_opens_nothing(mesh, policy, when_over):
    async def refusing(request):
        yield {"failed": {"error": {"code": 9, "message": "Too long.", "details": details("MODEL_CONTEXT_OVERFLOW")}}}

    mesh.adapter.script = refusing
    await mesh.start_worker(policy_address=policy)
    for number in range(FAILURES_MAX + 1):
        row = await when_over(await mesh.submit("x", contact=f"c{number}"))
        assert (row["state"], row["dead"], row["put_back_s"]) == ("failed", None, 0.0)


async def test_an_unknown_runtime_is_the_requests_own_fault(mesh, policy, when_over):
    await mesh.start_worker(policy_address=policy)
    row = await when_over(await mesh.submit("x", runtime="hermes"))
    assert (row["state"], row["dead"], row["put_back_s"]) == ("failed", None, 0.0)
