"""What policy decides for callers who begin no run."""

import structlog
from retinue.policy.v1 import breaker_pb2, policy_service_pb2, policy_service_pb2_grpc
from retinue_kit import ids
from retinue_kit.client import Peer
from retinue_kit.errors import RetinueError

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Decisions:
    """Asks policy. Every method raises RetinueError only."""

    def __init__(self, policy: Peer) -> None:
        self._peer = policy
        self._stub = policy_service_pb2_grpc.PolicyServiceStub(policy.channel)

    async def decide(self, tenant_id: str, kind: str) -> policy_service_pb2.Decision:
        """Ask what would hold for a run of this kind."""
        asked = policy_service_pb2.DecideRequest(
            tenant_id=tenant_id, run_id=ids.new_id("run"), kind=kind, requested_runtime="auto", attempt=1
        )
        answer: policy_service_pb2.DecideResponse = await self._peer.call(self._stub.Decide, asked)
        if answer.decision.probes:
            await self._leave_probe(asked, answer.decision.runtime)
        return answer.decision

    async def _leave_probe(self, asked: policy_service_pb2.DecideRequest, runtime: str) -> None:
        """Give back the turn of finding out whether the runtime works again: no run of ours will."""
        outcome = breaker_pb2.Outcome(
            tenant_id=asked.tenant_id, runtime=runtime, run_id=asked.run_id, result="abandoned"
        )
        request = policy_service_pb2.ReportOutcomesRequest(outcomes=[outcome])
        try:
            await self._peer.call(self._stub.ReportOutcomes, request)
        except RetinueError as error:  # it runs out by itself
            log.info("probe not given back", runtime=runtime, detail=error.private)
