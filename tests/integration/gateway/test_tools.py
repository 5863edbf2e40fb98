"""Tools in the public API: what policy explains and what the router keeps, for the caller's own tenant alone."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from retinue.edge.v1 import tool_service_pb2 as edge
from retinue.edge.v1 import tool_service_pb2_grpc as edge_grpc
from retinue.policy.v1 import tool_service_pb2 as policy_wire
from retinue.policy.v1 import tool_service_pb2_grpc as policy_grpc
from retinue.router.v1 import allowance_service_pb2 as router_wire
from retinue.router.v1 import allowance_service_pb2_grpc as router_grpc
from retinue_gateway.tools import ToolServicer
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service


class Policy(policy_grpc.ToolServiceServicer):
    """Explains one tool, and says more than a tenant should hear."""

    def __init__(self) -> None:
        self.asked: list[policy_wire.ExplainToolsRequest] = []

    async def ExplainTools(self, request, context):  # type: ignore[no-untyped-def]
        self.asked.append(request)
        decision = policy_wire.ToolDecision(effect="deny", layer="agent", rule="agent.a.deny: exec", reason="No.")
        steps = [policy_wire.LayerStep(layer="profile", effect="allow", rule="profile.standard.allow: *")]
        explained = policy_wire.ToolExplanation(tool="exec", decision=decision, steps=steps)
        rules = "1234; newer files are refused: /etc/secret/tools.toml"
        return policy_wire.ExplainToolsResponse(tools=[explained], unknown=["agent: exce"], rules=rules)


class Router(router_grpc.AllowanceServiceServicer):
    """Keeps an allowance for each of two tenants."""

    def __init__(self) -> None:
        self.kept = {tenant: f"alw_{tenant}" for tenant in ("ten_a", "ten_b")}
        self.pages: list[tuple[int, str]] = []

    async def ListAllowances(self, request, context):  # type: ignore[no-untyped-def]
        self.pages.append((request.page_size, request.page_token))
        found = router_wire.Allowance(
            allowance_id=self.kept[request.tenant_id], tool="exec", pattern="ls *", principal="usr_1"
        )
        found.create_time.FromSeconds(1_000_000)
        return router_wire.ListAllowancesResponse(allowances=[found], next_page_token="more")

    async def DeleteAllowance(self, request, context):  # type: ignore[no-untyped-def]
        if self.kept.get(request.tenant_id) != request.allowance_id:
            raise RetinueError(Reason.ALLOWANCE_NOT_FOUND, "There is no such allowance.")
        del self.kept[request.tenant_id]
        return router_wire.DeleteAllowanceResponse()


class Edge:
    """The service as Envoy calls it."""

    def __init__(self, channel: grpc.aio.Channel, policy: Policy, router: Router) -> None:
        self._stub = edge_grpc.ToolServiceStub(channel)
        self.policy, self.router = policy, router

    async def call(self, method: str, tenant: str = "ten_a", **fields: Any) -> Any:
        request = getattr(edge, f"{method}Request")(**fields)
        metadata = [("x-retinue-tenant", tenant), ("x-retinue-principal", "usr_1"), ("x-retinue-scope", "chat")]
        return await getattr(self._stub, method)(request, metadata=metadata if tenant else [], timeout=5)

    async def refused(self, method: str, **more: Any) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(method, **more)
        status, info = rpc_status.from_call(raised.value), error_details_pb2.ErrorInfo()
        assert status is not None
        assert status.details[0].Unpack(info)
        return str(info.reason)


@pytest.fixture
async def served(serve: Any, peer: Any) -> Edge:
    policy, router = Policy(), Router()
    policy_address = await serve(
        [Service(policy_grpc.add_ToolServiceServicer_to_server, policy, "retinue.policy.v1.ToolService")]
    )
    router_address = await serve(
        [Service(router_grpc.add_AllowanceServiceServicer_to_server, router, "retinue.router.v1.AllowanceService")]
    )
    servicer = ToolServicer(peer("policy", policy_address), peer("router", router_address))
    address = await serve(
        [Service(edge_grpc.add_ToolServiceServicer_to_server, servicer, "retinue.edge.v1.ToolService")]
    )
    return Edge(peer("gateway", address).channel, policy, router)


async def test_tools_are_explained_for_the_callers_tenant_and_without_what_is_the_operators(served: Edge) -> None:
    answer = await served.call("ExplainTools", tool="exec", runtime="light", model="openai/x")
    (asked,) = served.policy.asked
    assert (asked.tenant_id, asked.tool) == ("ten_a", "exec")
    assert (asked.scope.kind, asked.scope.runtime, asked.scope.model) == ("chat", "light", "openai/x")
    assert (asked.scope.agent_id, asked.scope.principal) == ("", "usr_1")
    (tool,) = answer.tools
    assert (tool.tool, tool.effect, tool.layer, tool.rule, tool.reason) == (
        *("exec", "deny", "agent", "agent.a.deny: exec"),
        "No.",
    )
    assert [(step.layer, step.effect, step.rule) for step in tool.steps] == [
        ("profile", "allow", "profile.standard.allow: *")
    ]
    assert list(answer.unknown) == ["agent: exce"]
    assert "secret" not in str(answer)


async def test_what_was_allowed_for_good_is_listed_and_taken_back(served: Edge) -> None:
    answer = await served.call("ListAllowances", page_size=7, page_token="t")
    (found,) = answer.allowances
    assert (found.allowance, found.tool, found.pattern, found.by) == ("alw_ten_a", "exec", "ls *", "usr_1")
    assert found.create_time.seconds == 1_000_000
    assert (answer.next_page_token, served.router.pages) == ("more", [(7, "t")])
    await served.call("DeleteAllowance", allowance="alw_ten_a")
    assert await served.refused("DeleteAllowance", allowance="alw_ten_a") == "ALLOWANCE_NOT_FOUND"


async def test_no_cross_tenant_an_allowance_of_another_tenant_is_none(served: Edge) -> None:
    assert await served.refused("DeleteAllowance", allowance="alw_ten_b") == "ALLOWANCE_NOT_FOUND"
    assert served.router.kept["ten_b"] == "alw_ten_b"


async def test_without_a_token_and_with_what_cannot_be_stored_nothing_is_asked(served: Edge) -> None:
    for method in ("ExplainTools", "ListAllowances"):
        assert await served.refused(method, tenant="") == "CREDENTIAL_MISSING"
    assert await served.refused("DeleteAllowance", allowance="a\0") == "FIELD_INVALID"
    assert await served.refused("ExplainTools", tool="x" * 129) == "FIELD_INVALID"
    assert served.policy.asked == []
