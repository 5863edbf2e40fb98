"""The wire: a request to a run, a decision to its message."""

from typing import Any

import grpc
from retinue.policy.v1 import breaker_pb2, policy_service_pb2_grpc
from retinue.policy.v1 import policy_service_pb2 as pb
from retinue_kit import tenancy
from retinue_kit.errors import Reason

from retinue_policy.domain.breaker import Breaker, Result, State
from retinue_policy.operations.breakers import Breakers, Key, Outcome
from retinue_policy.operations.decisions import Decided, Policy, Run
from retinue_policy.operations.replay import Difference, Replaying, Stored
from retinue_policy.structs import plain

PAGE_SIZE = 100
"""Breakers in a list that names no size: what fits on a few screens."""

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """Implements retinue.policy.v1.PolicyService."""

    def __init__(self, policy: Policy, breakers: Breakers, replaying: Replaying) -> None:
        self._policy = policy
        self._breakers = breakers
        self._replaying = replaying

    async def Decide(self, request: pb.DecideRequest, context: Context) -> pb.DecideResponse:
        has_age = request.HasField("session_runtime_age")
        run = Run(
            run_id=request.run_id,
            kind=request.kind,
            requested_runtime=request.requested_runtime,
            session_runtime=request.session_runtime,
            session_runtime_age_s=request.session_runtime_age.ToMicroseconds() / 1e6 if has_age else None,
            tool_transaction_open=request.tool_transaction_open,
            agent_id=request.agent_id,
            principal=tenancy.current().principal,
        )
        return pb.DecideResponse(decision=_message(await self._policy.decide(request.tenant_id, run)))

    async def ReportOutcomes(self, request: pb.ReportOutcomesRequest, context: Context) -> pb.ReportOutcomesResponse:
        await self._breakers.report([_outcome(outcome) for outcome in request.outcomes])
        return pb.ReportOutcomesResponse()

    async def ListBreakers(self, request: pb.ListBreakersRequest, context: Context) -> pb.ListBreakersResponse:
        found = await self._breakers.list()
        listed = found[: request.page_size or PAGE_SIZE]
        return pb.ListBreakersResponse(breakers=[_breaker(*each) for each in listed], total_count=len(found))

    async def ReplayDecisions(self, request: pb.ReplayDecisionsRequest, context: Context) -> pb.ReplayDecisionsResponse:
        # One by one: all of a page at once would keep decisions waiting that runs wait for.
        stored = (Stored(each.tenant_id, each.run_id, plain(each.decision)) for each in request.decisions)
        replayed = await self._replaying.replay(request.rules_toml, stored)
        return pb.ReplayDecisionsResponse(
            differences=[_difference(each) for each in replayed.differences],
            same_count=replayed.same_count,
            skipped_count=replayed.skipped_count,
        )


def _outcome(outcome: breaker_pb2.Outcome) -> Outcome:
    reason = Reason(outcome.reason) if outcome.reason in Reason.__members__ else None
    return Outcome(outcome.tenant_id, outcome.runtime, outcome.run_id, Result(outcome.result), reason)


def _breaker(key: Key, breaker: Breaker, state: State) -> breaker_pb2.Breaker:
    message = breaker_pb2.Breaker(
        runtime=key.runtime, tenant_id=key.tenant_id, state=state, open_count=breaker.open_count
    )
    message.open_time.FromMilliseconds(round(breaker.open_time * 1000))
    message.probe_time.FromMilliseconds(round(breaker.probe_time * 1000))
    return message


def _message(decided: Decided) -> pb.Decision:
    decision, limits = decided.decision, decided.decision.limits
    message = pb.Decision(
        runtime=decision.runtime,
        model=decision.model,
        isolation=decision.isolation,
        switches_runtime=decision.switches_runtime,
        limits=pb.Limits(
            concurrent_run_count=limits.concurrent_run_count,
            attempt_count=limits.attempt_count,
            output_size_bytes=limits.output_size_bytes,
            weight=limits.weight,
        ),
        rules=[pb.FiredRule(rule=fired.rule, effect=fired.effect, reason=fired.reason) for fired in decision.rules],
        probes=decided.probes,
        watched=decided.watched,
        tools=decided.offer.tools,
        sandbox_profile=decided.offer.isolation,
        egress=decided.offer.egress,
        abilities=[
            pb.RuntimeAbility(runtime=each.runtime, tools=each.tools, window_tokens=each.window_tokens)
            for each in decided.abilities
        ],
    )
    message.snapshot.update(decided.snapshot)
    message.limits.run_time.FromMilliseconds(round(limits.run_time_s * 1000))
    return message


def _difference(each: Difference) -> pb.DecisionDifference:
    return pb.DecisionDifference(
        tenant_id=each.tenant_id,
        run_id=each.run_id,
        former_runtime=each.former_runtime,
        runtime=each.runtime,
        former_rule=each.former_rule,
        rule=each.rule,
        reason=each.reason,
        isolation=each.isolation,
    )
