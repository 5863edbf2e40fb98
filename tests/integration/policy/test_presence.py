"""Policy beside a runtime-adapter: what can take no runs is not chosen, and nobody waits to learn of it."""

import pytest
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_policy.__main__ import assemble
from retinue_policy.config import Settings
from retinue_policy.operations.presence import LOOK_S

DIRECTORY = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"].full_name
ADAPTER = adapter_pb.DESCRIPTOR.services_by_name["RuntimeAdapterService"].full_name


class Plans(directory_service_pb2_grpc.DirectoryServiceServicer):
    """A directory whose tenants are named after their plans."""

    async def GetTenant(self, request, context):
        plan = request.tenant_id.removeprefix("ten_")
        tenant = directory_service_pb2.Tenant(tenant_id=request.tenant_id, plan=plan)
        return directory_service_pb2.GetTenantResponse(tenant=tenant)


class Adapter(adapter_grpc.RuntimeAdapterServiceServicer):
    """A runtime-adapter that says of its runtimes what a test wants."""

    def __init__(self):
        self.available = {"openclaw": True, "light": True}
        self.asked = 0

    async def DescribeRuntimes(self, request, context):
        self.asked += 1
        runtimes = [adapter_pb.Runtime(name=n, available=there) for n, there in self.available.items()]
        return adapter_pb.DescribeRuntimesResponse(runtimes=runtimes)


@pytest.fixture
def adapter():
    return Adapter()


@pytest.fixture
async def adapter_address(serve, adapter):
    return await serve([Service(adapter_grpc.add_RuntimeAdapterServiceServicer_to_server, adapter, ADAPTER)])


@pytest.fixture
def start(assembled, run_dir, peer, serve, redis_url):
    async def start(address, **more):
        add = directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server
        directory = await serve([Service(add, Plans(), DIRECTORY)])
        settings = Settings(
            f"unix:{run_dir}/policy.sock",
            directory,
            redis_url,
            runtimes="openclaw,light",
            runtime_adapter_address=address,
            **more,
        )
        return peer("policy", await assembled(assemble, settings))

    return start


async def decide(policy, **fields):
    fields = {"tenant_id": "ten_free", "run_id": "run_a", "kind": "chat", "attempt": 1} | fields
    stub = policy_service_pb2_grpc.PolicyServiceStub(policy.channel)
    return (await policy.call(stub.Decide, pb.DecideRequest(**fields))).decision


def chosen(policy, eventually):
    """Wait until chat goes to a runtime; answers the decision."""

    async def wait(runtime):
        async def goes():
            decision = await decide(policy)
            return decision if decision.runtime == runtime else None

        return await eventually(goes)

    return wait


async def test_chat_goes_to_openclaw_while_it_can_take_runs_and_to_light_while_it_cannot(
    start, adapter, adapter_address, eventually
):
    policy = await start(adapter_address)
    to = chosen(policy, eventually)
    assert [rule.rule for rule in (await to("openclaw")).rules] == ["chat_prefers_openclaw"]
    adapter.available["openclaw"] = False
    decision = await to("light")
    assert [(rule.rule, rule.effect) for rule in decision.rules] == [
        ("chat_prefers_openclaw", "prefer"),
        ("openclaw_is_away", "fall_back"),
    ]
    with pytest.raises(RetinueError) as caught:
        await decide(policy, requested_runtime="openclaw")
    assert caught.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert caught.value.retry_after_s == LOOK_S
    assert caught.value.metadata == {"rule": "requested_runtime_away", "runtime": "openclaw"}
    adapter.available["openclaw"] = True
    await to("openclaw")
    assert (await decide(policy, requested_runtime="openclaw")).runtime == "openclaw"


async def test_a_runtime_that_the_adapter_does_not_have_is_away(start, adapter, adapter_address, eventually):
    del adapter.available["openclaw"]
    await chosen(await start(adapter_address), eventually)("light")


async def test_a_runtime_adapter_that_does_not_answer_changes_nothing(start, run_dir):
    policy = await start(f"unix:{run_dir}/nobody.sock")
    assert (await decide(policy)).runtime == "openclaw"
    await policy.check("retinue.policy.v1.PolicyService")


async def test_a_decision_asks_the_adapter_nothing(start, adapter, adapter_address, eventually):
    policy = await start(adapter_address)
    assert await eventually(lambda: adapter.asked > 0)
    asked = adapter.asked
    for _ in range(200):
        await decide(policy)
    assert adapter.asked - asked < 50


@pytest.mark.parametrize(
    ("plan", "isolation", "settings"),
    [
        ("free", "shared", {}),
        ("pro", "cell", {}),
        ("team", "cell", {}),
        ("enterprise", "cell", {}),
        ("pro", "shared", {"cell_plans": "enterprise"}),
        ("enterprise", "cell", {"cell_plans": "enterprise"}),
    ],
)
async def test_the_tenants_plan_says_whether_it_shares(start, adapter_address, plan, isolation, settings):
    policy = await start(adapter_address, **settings)
    decision = await decide(policy, tenant_id=f"ten_{plan}")
    assert decision.isolation == isolation
    assert ("plan_gives_cell" in [rule.rule for rule in decision.rules]) is (isolation == "cell")
