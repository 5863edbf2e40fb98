"""What the tools of a caller's agent may do, in the public API: policy explains, the router keeps what was allowed."""

from google.protobuf.message import Message
from retinue.edge.v1 import tool_service_pb2 as edge
from retinue.edge.v1 import tool_service_pb2_grpc as edge_grpc
from retinue.policy.v1 import tool_service_pb2 as policy_wire
from retinue.policy.v1 import tool_service_pb2_grpc as policy_grpc
from retinue.router.v1 import allowance_service_pb2 as router_wire
from retinue.router.v1 import allowance_service_pb2_grpc as router_grpc
from retinue_kit.client import Peer

from retinue_gateway import fields
from retinue_gateway.calls import Context, caller_of

KIND = "chat"
"""The kind of runs that tools are explained for: what a person talks to."""


def _explanation(found: policy_wire.ToolExplanation) -> edge.ToolExplanation:
    decision = found.decision
    return edge.ToolExplanation(
        tool=found.tool,
        effect=decision.effect,
        layer=decision.layer,
        rule=decision.rule,
        reason=decision.reason,
        steps=[edge.LayerStep(layer=step.layer, effect=step.effect, rule=step.rule) for step in found.steps],
    )


def _allowance(found: router_wire.Allowance) -> edge.Allowance:
    return edge.Allowance(
        allowance=found.allowance_id,
        tool=found.tool,
        pattern=found.pattern,
        by=found.principal,
        create_time=found.create_time,
    )


class ToolServicer(edge_grpc.ToolServiceServicer):
    """Serves retinue.edge.v1.ToolService."""

    def __init__(self, policy: Peer, router: Peer) -> None:
        self._policy = policy
        self._tools = policy_grpc.ToolServiceStub(policy.channel)
        self._router = router
        self._allowances = router_grpc.AllowanceServiceStub(router.channel)

    async def ExplainTools(self, request: edge.ExplainToolsRequest, context: Context) -> edge.ExplainToolsResponse:
        asked = policy_wire.ExplainToolsRequest(
            tenant_id=_tenant_of(request, context),
            scope=policy_wire.ToolScope(
                principal=caller_of(context).principal[:256], kind=KIND, runtime=request.runtime, model=request.model
            ),
            tool=request.tool,
        )
        answer: policy_wire.ExplainToolsResponse = await self._policy.call(self._tools.ExplainTools, asked)
        # Which files the rules are of, and what is wrong with newer ones, is the operator's to know.
        return edge.ExplainToolsResponse(tools=map(_explanation, answer.tools), unknown=answer.unknown)

    async def ListAllowances(
        self, request: edge.ListAllowancesRequest, context: Context
    ) -> edge.ListAllowancesResponse:
        asked = router_wire.ListAllowancesRequest(
            tenant_id=_tenant_of(request, context), page_size=request.page_size, page_token=request.page_token
        )
        answer: router_wire.ListAllowancesResponse = await self._router.call(self._allowances.ListAllowances, asked)
        shown = map(_allowance, answer.allowances)
        return edge.ListAllowancesResponse(allowances=shown, next_page_token=answer.next_page_token)

    async def DeleteAllowance(
        self, request: edge.DeleteAllowanceRequest, context: Context
    ) -> edge.DeleteAllowanceResponse:
        asked = router_wire.DeleteAllowanceRequest(
            tenant_id=_tenant_of(request, context), allowance_id=request.allowance
        )
        await self._router.call(self._allowances.DeleteAllowance, asked)
        return edge.DeleteAllowanceResponse()


def _tenant_of(request: Message, context: Context) -> str:
    """Read whose tools they are, from the token alone."""
    fields.check_storable(request)
    return caller_of(context).tenant_id
