"""The wire of instances, before a pool that tells what it was asked, and without one."""

from typing import Any

import grpc
import pytest
from retinue.runtime_adapter.v1 import instance_service_pb2 as wire
from retinue.runtime_adapter.v1 import instance_service_pb2_grpc as wire_grpc
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter import instances
from retinue_runtime_adapter.openclaw.ports import Isolation

COUNT = 1005


class FakePool:
    """Has instances by tenant; the others of its port are not asked here."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.trouble: RetinueError | None = None
        self.held: dict[str, wire.Instance] = {}

    def instances(self) -> list[wire.Instance]:
        return list(self.held.values())

    def instance_of(self, tenant_id: str) -> wire.Instance:
        if tenant_id not in self.held:
            raise RetinueError(Reason.INSTANCE_NOT_FOUND, "No instance serves this tenant.")
        return self.held[tenant_id]

    async def create(self, tenant_id: str, isolation: Isolation) -> wire.Instance:
        self.asked.append(("create", tenant_id, isolation))
        if self.trouble:
            raise self.trouble
        made = wire.Instance(instance_id=f"ins_{tenant_id}", isolation=isolation, state="pending")
        return self.held.setdefault(tenant_id, made)

    async def delete(self, tenant_id: str) -> None:
        self.instance_of(tenant_id)
        del self.held[tenant_id]


class Client:
    """Calls a served pool."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = wire_grpc.InstanceServiceStub(peer.channel)

    async def __call__(self, method: str, **fields: Any) -> Any:
        request = getattr(wire, f"{method}Request")(**fields)
        return await self._peer.call(getattr(self._stub, method), request)

    async def refusal(self, method: str, **fields: Any) -> RetinueError:
        with pytest.raises(RetinueError) as raised:
            await self(method, **fields)
        return raised.value


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def connect(serve: Any, peer: Any) -> Any:
    """Serve a pool, or none; answers a client."""

    async def connected(pool: Any) -> Client:
        return Client(peer("runtime-adapter", await serve([instances.service(pool)])))

    return connected


async def test_an_instance_is_made_read_listed_and_taken_back(connect: Any, pool: FakePool) -> None:
    call = await connect(pool)
    made = (await call("CreateInstance", tenant_id="a", isolation="cell")).instance
    assert (made.instance_id, made.isolation, made.state) == ("ins_a", "cell", "pending")
    assert (await call("CreateInstance", tenant_id="a", isolation="cell")).instance == made
    assert (await call("GetInstance", tenant_id="a")).instance == made
    assert list((await call("ListInstances")).instances) == [made]
    await call("DeleteInstance", tenant_id="a")
    assert (await call.refusal("GetInstance", tenant_id="a")).reason is Reason.INSTANCE_NOT_FOUND
    assert (await call.refusal("DeleteInstance", tenant_id="a")).reason is Reason.INSTANCE_NOT_FOUND


async def test_a_tenant_is_shared_unless_it_is_said(connect: Any, pool: FakePool) -> None:
    call = await connect(pool)
    await call("CreateInstance", tenant_id="a")
    await call("CreateInstance", tenant_id="b", isolation="shared")
    assert pool.asked == [("create", "a", "shared"), ("create", "b", "shared")]
    assert (await call.refusal("CreateInstance", tenant_id="a", isolation="own")).metadata == {"field": "isolation"}
    assert (await call.refusal("CreateInstance")).metadata == {"field": "tenant_id"}


async def test_that_none_is_free_is_told_with_when_to_ask_again(connect: Any, pool: FakePool) -> None:
    pool.trouble = RetinueError(Reason.RUNTIME_UNAVAILABLE, "All cells are taken.", retry_after_s=7.0)
    error = await (await connect(pool)).refusal("CreateInstance", tenant_id="a")
    assert (error.reason, error.message, error.retry_after_s) == (
        Reason.RUNTIME_UNAVAILABLE,
        "All cells are taken.",
        7.0,
    )


async def test_a_list_is_bounded(connect: Any, pool: FakePool) -> None:
    pool.held = {str(n): wire.Instance(instance_id=f"ins_{n}") for n in range(COUNT)}
    found = (await (await connect(pool))("ListInstances")).instances
    assert (len(found), found[0].instance_id) == (instances.LISTED_MAX, "ins_0")


async def test_without_a_pool_there_are_no_instances(connect: Any) -> None:
    call = await connect(None)
    assert list((await call("ListInstances")).instances) == []
    for method in ("GetInstance", "DeleteInstance"):
        assert (await call.refusal(method, tenant_id="a")).reason is Reason.INSTANCE_NOT_FOUND
    error = await call.refusal("CreateInstance", tenant_id="a")
    assert (error.reason, error.retry_after_s) == (Reason.RUNTIME_UNAVAILABLE, None)
    assert "switched on" in error.message


async def test_another_tenants_instance_is_out_of_reach_for_a_caller_with_an_identity(
    serve: Any, peer: Any, pool: FakePool
) -> None:
    await pool.create("b", Isolation.SHARED)
    stub = wire_grpc.InstanceServiceStub(peer("runtime-adapter", await serve([instances.service(pool)])).channel)
    identity = (("x-retinue-tenant", "a"),)
    for method, request in (("Get", wire.GetInstanceRequest), ("Delete", wire.DeleteInstanceRequest)):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await getattr(stub, f"{method}Instance")(request(tenant_id="b"), metadata=identity, timeout=5)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "b" in pool.held
