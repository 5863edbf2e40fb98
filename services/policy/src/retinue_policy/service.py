"""The wire: a request to a run, a decision to its message."""

from typing import Any

import grpc
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue.policy.v1 import policy_service_pb2_grpc

from retinue_policy.domain.rules import Decision
from retinue_policy.operations import Policy, Run

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """Implements retinue.policy.v1.PolicyService."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def Decide(self, request: pb.DecideRequest, context: Context) -> pb.DecideResponse:
        has_age = request.HasField("session_runtime_age")
        run = Run(
            kind=request.kind,
            requested_runtime=request.requested_runtime,
            session_runtime=request.session_runtime,
            session_runtime_age_s=request.session_runtime_age.ToMicroseconds() / 1e6 if has_age else None,
            tool_transaction_open=request.tool_transaction_open,
        )
        return pb.DecideResponse(decision=_message(await self._policy.decide(request.tenant_id, run)))


def _message(decision: Decision) -> pb.Decision:
    limits = decision.limits
    message = pb.Decision(
        runtime=decision.runtime,
        model=decision.model,
        switches_runtime=decision.switches_runtime,
        limits=pb.Limits(
            concurrent_run_count=limits.concurrent_run_count,
            attempt_count=limits.attempt_count,
            output_size_bytes=limits.output_size_bytes,
            weight=limits.weight,
        ),
        rules=[pb.FiredRule(rule=fired.rule, effect=fired.effect, reason=fired.reason) for fired in decision.rules],
    )
    message.limits.run_time.FromMilliseconds(round(limits.run_time_s * 1000))
    return message
