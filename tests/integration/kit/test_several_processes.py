"""Several processes of one service behind one address: which of them serves a tenant, and what if it is away."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc
from retinue_kit import tenancy
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Server, Service

POLICY = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
TENANTS = [f"ten_{number}" for number in range(24)]
COUNT = 3


class Named(policy_service_pb2_grpc.PolicyServiceServicer):
    """Says which of them it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def Decide(self, request: pb.DecideRequest, context: Any) -> pb.DecideResponse:
        return pb.DecideResponse(decision=pb.Decision(runtime=self.name))


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[dict[str, tuple[Server, int]]]:
    started = {}
    for number in range(COUNT):
        add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
        server = Server("127.0.0.1:0", [Service(add, Named(f"p{number}"), POLICY)])
        started[f"p{number}"] = server, await server.start()
    yield started
    for server, _ in started.values():
        await server.drain(0)


@pytest.fixture
def address(servers: dict[str, tuple[Server, int]]) -> str:
    return "ipv4:" + ",".join(f"127.0.0.1:{port}" for _, port in servers.values())


async def served(peer: Peer, tenant_id: str) -> str:
    """Say which process serves a tenant."""
    stub = policy_service_pb2_grpc.PolicyServiceStub(peer.channel)
    tenancy.enter(tenancy.Identity(tenant_id))
    request = pb.DecideRequest(tenant_id=tenant_id or "ten_a", run_id="run_a", kind="chat")
    return str((await peer.call(stub.Decide, request)).decision.runtime)


async def test_each_caller_finds_a_tenant_in_the_same_process(peer: Callable[..., Peer], address: str) -> None:
    worker, gateway = peer("policy", address), peer("policy", address)
    first = {tenant_id: await served(worker, tenant_id) for tenant_id in TENANTS}
    assert {tenant_id: await served(gateway, tenant_id) for tenant_id in reversed(TENANTS)} == first
    assert {tenant_id: await served(worker, tenant_id) for tenant_id in TENANTS} == first
    assert set(first.values()) == {f"p{number}" for number in range(COUNT)}, "all of them serve somebody"


async def test_a_call_for_no_tenant_goes_to_any(peer: Callable[..., Peer], address: str) -> None:
    caller = peer("policy", address)
    assert (await served(caller, "")).startswith("p")
    await caller.check()
    await caller.ready(5)


async def test_one_that_is_not_there_is_waited_for_and_not_for_ever(
    peer: Callable[..., Peer], servers: dict[str, tuple[Server, int]], address: str
) -> None:
    await peer("policy", address).ready(5)
    port = servers["p0"][1]
    for server, _ in servers.values():
        await server.drain(0)
    caller = peer("policy", address)
    with pytest.raises(RetinueError) as raised:
        await caller.ready(0.2)
    assert raised.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    servers["p0"] = Server(f"127.0.0.1:{port}", []), port
    await servers["p0"][0].start()
    await caller.ready(5)


async def test_one_that_is_away_moves_its_own_tenants_alone(
    peer: Callable[..., Peer], servers: dict[str, tuple[Server, int]], address: str, eventually: Any
) -> None:
    caller = peer("policy", address)
    first = {tenant_id: await served(caller, tenant_id) for tenant_id in TENANTS}
    server, _ = servers.pop("p1")
    await server.drain(0)

    async def moved() -> dict[str, str] | None:
        try:
            return {tenant_id: await served(caller, tenant_id) for tenant_id in TENANTS}
        except RetinueError:
            return None

    second = await eventually(moved)
    assert "p1" not in second.values()
    assert {t: name for t, name in second.items() if first[t] != "p1"} == {
        t: name for t, name in first.items() if name != "p1"
    }
