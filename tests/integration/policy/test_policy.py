"""Policy over gRPC, with a directory beside it: decisions, memory, health, reflection."""

import signal
from datetime import timedelta

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_policy.__main__ import assemble
from retinue_policy.config import Settings
from retinue_policy.domain.tools.catalogue import BUILT_IN

DIRECTORY = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"].full_name


class OneTenant(directory_service_pb2_grpc.DirectoryServiceServicer):
    """A directory that knows one tenant."""

    def __init__(self):
        self.asked = 0

    async def GetTenant(self, request, context):
        self.asked += 1
        if request.tenant_id != "ten_a":
            raise RetinueError(Reason.TENANT_NOT_FOUND, "There is no such tenant.")
        tenant = directory_service_pb2.Tenant(tenant_id="ten_a")
        tenant.settings.concurrent_run_count, tenant.settings.weight, tenant.agent.model = 7, 2.0, "fast"
        return directory_service_pb2.GetTenantResponse(tenant=tenant)


@pytest.fixture
def one_tenant():
    return OneTenant()


@pytest.fixture
async def directory(serve, one_tenant):
    add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
    return await serve([Service(add, one_tenant, DIRECTORY)])


@pytest.fixture
async def policy(assembled, run_dir, peer, directory, redis_url):
    settings = Settings(f"unix:{run_dir}/policy.sock", directory, redis_url, runtimes="light,openclaw")
    return peer("policy", await assembled(assemble, settings))


async def decide(policy, **fields):
    fields = {"tenant_id": "ten_a", "run_id": "run_a", "kind": "chat", "attempt": 1} | fields
    stub = policy_service_pb2_grpc.PolicyServiceStub(policy.channel)
    return (await policy.call(stub.Decide, pb.DecideRequest(**fields))).decision


async def test_a_decision_says_all_that_the_worker_needs(policy):
    decision = await decide(policy, session_runtime="light", session_runtime_age=timedelta(minutes=20))
    assert (decision.runtime, decision.model, decision.switches_runtime) == ("openclaw", "fast", True)
    assert (decision.sandbox_profile, list(decision.egress)) == ("namespace", [])
    assert list(decision.tools) == list(BUILT_IN)
    limits = decision.limits
    assert (limits.concurrent_run_count, limits.attempt_count, limits.weight) == (7, 3, 2.0)
    assert (limits.run_time.ToSeconds(), limits.output_size_bytes) == (600, 1024 * 1024)
    assert [(fired.rule, fired.effect) for fired in decision.rules] == [
        ("tenant_limits_runs", "limit"),
        ("tenant_has_weight", "limit"),
        ("chat_prefers_openclaw", "prefer"),
    ]
    decision = await decide(policy, session_runtime="light", session_runtime_age=timedelta(minutes=10))
    assert (decision.runtime, decision.switches_runtime) == ("light", False)


async def test_a_refusal_keeps_its_reason_and_rule_on_the_wire(policy):
    with pytest.raises(RetinueError) as caught:
        await decide(policy, requested_runtime="openclaw", session_runtime="light", tool_transaction_open=True)
    assert caught.value.reason is Reason.TOOL_TRANSACTION_OPEN
    assert caught.value.metadata == {"rule": "tool_transaction_open", "runtime": "openclaw"}
    with pytest.raises(RetinueError) as caught:
        await decide(policy, requested_runtime="hermes")
    assert caught.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_a_seen_tenant_is_decided_for_while_the_directory_is_away(policy, serve, directory, one_tenant):
    for _ in range(3):
        await decide(policy)
    assert one_tenant.asked == 1
    await serve.server(directory).drain(0)
    assert (await decide(policy)).model == "fast"
    with pytest.raises(RetinueError) as caught:
        await decide(policy, tenant_id="ten_new")
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert caught.value.metadata == {"dependency": "directory"}


async def test_a_tenant_that_is_not_there_is_not_found(policy):
    with pytest.raises(RetinueError) as caught:
        await decide(policy, tenant_id="ten_x")
    assert caught.value.reason is Reason.TENANT_NOT_FOUND


async def test_health_and_reflection_answer(policy):
    await policy.check("retinue.policy.v1.PolicyService")
    stub = reflection_pb2_grpc.ServerReflectionStub(policy.channel)
    call = stub.ServerReflectionInfo(timeout=5)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert {"retinue.policy.v1.PolicyService", "grpc.health.v1.Health"} <= names


async def test_it_serves_as_a_process_and_drains(launch, run_dir, peer, healthy, eventually, directory, redis_url):
    address = f"unix:{run_dir}/policy.sock"
    process = launch(
        "retinue_policy",
        RETINUE_ADDRESS=address,
        RETINUE_DIRECTORY_ADDRESS=directory,
        RETINUE_REDIS_URL=redis_url,
    )
    policy = peer("policy", address)
    await healthy(policy)
    assert (await decide(policy)).runtime == "light", "light alone is on where nothing else is said"
    process.send_signal(signal.SIGTERM)
    assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0, process.log()


async def test_an_unknown_runtime_is_one_line_and_exit_2(launch, eventually):
    process = launch(
        "retinue_policy",
        RETINUE_ADDRESS="unix:/x",
        RETINUE_DIRECTORY_ADDRESS="unix:/y",
        RETINUE_REDIS_URL="unix:///z",
        RETINUE_RUNTIMES="hermes",
    )
    assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 2
    assert process.log() == "RETINUE_RUNTIMES='hermes' must name some of: openclaw, light.\n"
