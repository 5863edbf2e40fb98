"""The wire of decisions about tools: a request to a call, what was decided to its message."""

from dataclasses import replace
from typing import Any

import grpc
from retinue.policy.v1 import tool_service_pb2 as pb
from retinue.policy.v1 import tool_service_pb2_grpc

from retinue_policy.operations.decisions import Policy
from retinue_policy.operations.tools import Call, Decided, Explained, Scope, Tools
from retinue_policy.structs import plain

Context = grpc.aio.ServicerContext[Any, Any]


class ToolServicer(tool_service_pb2_grpc.ToolServiceServicer):
    """Implements retinue.policy.v1.ToolService."""

    def __init__(self, tools: Tools, policy: Policy) -> None:
        self._tools = tools
        self._policy = policy

    async def AuthorizeTool(self, request: pb.AuthorizeToolRequest, context: Context) -> pb.AuthorizeToolResponse:
        call = Call(
            tool=request.tool,
            arguments=plain(request.arguments),
            allowed=[(each.tool, each.pattern) for each in request.allowed],
            approved=request.approved,
        )
        decided = await self._tools.authorize(request.tenant_id, _scope(request.scope), call)
        return pb.AuthorizeToolResponse(decision=_decision(decided))

    async def ExplainTools(self, request: pb.ExplainToolsRequest, context: Context) -> pb.ExplainToolsResponse:
        scope = _scope(request.scope)
        if not (scope.runtime and scope.model):
            runtime, model = await self._policy.usual(request.tenant_id, scope.kind)
            scope = replace(scope, runtime=scope.runtime or runtime, model=scope.model or model)
        found = await self._tools.explain(request.tenant_id, scope, request.tool)
        tools = [_explanation(each) for each in found.tools]
        return pb.ExplainToolsResponse(tools=tools, unknown=found.unknown, rules=found.rules)


def _scope(scope: pb.ToolScope) -> Scope:
    return Scope(scope.agent_id, scope.principal, scope.kind, scope.runtime, scope.model, scope.subagent)


def _decision(decided: Decided) -> pb.ToolDecision:
    return pb.ToolDecision(
        effect=decided.effect,
        layer=decided.layer,
        rule=decided.rule,
        reason=decided.reason,
        pattern=decided.pattern,
        summary=decided.summary,
        expire_s=decided.expire_s,
    )


def _explanation(explained: Explained) -> pb.ToolExplanation:
    steps = [pb.LayerStep(layer=step.layer, effect=step.said, rule=step.rule) for step in explained.steps]
    return pb.ToolExplanation(tool=explained.tool, decision=_decision(explained.decided), steps=steps)
