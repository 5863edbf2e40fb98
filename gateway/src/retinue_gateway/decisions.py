"""What policy decides for callers who begin no run, and what their tenants have allowed for good."""

import structlog
from retinue.policy.v1 import breaker_pb2, policy_service_pb2, policy_service_pb2_grpc, tool_service_pb2
from retinue.router.v1 import allowance_service_pb2, allowance_service_pb2_grpc
from retinue_kit import ids
from retinue_kit.client import Peer
from retinue_kit.errors import RetinueError

ALLOWED_MAX = 500
"""Allowances that policy is told with a call, as its contract bounds them; no tenant has more."""

PAGE_SIZE = 200
"""The most that one call answers with, by contract."""

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


class Allowances:
    """Asks the router. Raises RetinueError only."""

    def __init__(self, router: Peer) -> None:
        self._peer = router
        self._stub = allowance_service_pb2_grpc.AllowanceServiceStub(router.channel)

    async def find(self, tenant_id: str) -> list[tool_service_pb2.AllowedTool]:
        """Find what a tenant's people have allowed its tools for good, the newest ALLOWED_MAX, as policy takes it."""
        found: list[tool_service_pb2.AllowedTool] = []
        request = allowance_service_pb2.ListAllowancesRequest(tenant_id=tenant_id)
        while len(found) < ALLOWED_MAX:
            request.page_size = min(PAGE_SIZE, ALLOWED_MAX - len(found))
            answer: allowance_service_pb2.ListAllowancesResponse = await self._peer.call(
                self._stub.ListAllowances, request
            )
            found += [tool_service_pb2.AllowedTool(tool=one.tool, pattern=one.pattern) for one in answer.allowances]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found
