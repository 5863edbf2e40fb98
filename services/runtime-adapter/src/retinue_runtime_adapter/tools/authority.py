"""Whether a call may be made: policy's word, and without it none."""

from typing import Any, cast

from google.protobuf.struct_pb2 import Struct
from retinue.policy.v1 import tool_service_pb2 as pb
from retinue.policy.v1.tool_service_pb2_grpc import ToolServiceStub
from retinue_kit.client import Peer
from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.tools.ports import SUMMARY_LENGTH_MAX, Call, Scope, Verdict

AUTHORIZE_TIMEOUT_S = 5.0
"""For policy's answer, which takes a millisecond or two."""

ALLOWED_MAX = 500
"""Allowances that go along, as the contract bounds them."""

POLICY = "policy"
"""The service's name in errors."""

_EFFECTS = ("allow", "ask", "deny")


class PolicyAuthority:
    """Asks the policy service. Implements ports.Authority."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub: Any = ToolServiceStub(peer.channel)

    async def authorize(self, scope: Scope, call: Call, *, approved: bool = False) -> Verdict:
        arguments = Struct()
        arguments.update(call.arguments)
        request = pb.AuthorizeToolRequest(
            tenant_id=scope.tenant_id,
            scope=pb.ToolScope(
                agent_id=scope.agent_id,
                principal=scope.principal,
                kind=scope.kind,
                runtime=scope.runtime,
                model=scope.model[:200],
            ),
            tool=call.tool,
            arguments=arguments,
            allowed=[pb.AllowedTool(tool=tool, pattern=pattern) for tool, pattern in scope.allowed[:ALLOWED_MAX]],
            approved=approved,
        )
        answer = await self._peer.call(self._stub.AuthorizeTool, request, timeout_s=AUTHORIZE_TIMEOUT_S)
        found = answer.decision
        if found.effect not in _EFFECTS:
            raise RetinueError.unavailable(POLICY, private=f"a decision without an effect: {found.effect!r}")
        return Verdict(
            effect=cast("Any", found.effect),
            layer=found.layer,
            rule=found.rule,
            reason=found.reason,
            pattern=found.pattern,
            summary=found.summary[:SUMMARY_LENGTH_MAX],
            expire_s=found.expire_s,
        )
