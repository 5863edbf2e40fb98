"""Decisions on the wire."""

from datetime import UTC

from retinue.router.v1 import decision_service_pb2 as wire
from retinue.router.v1 import decision_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.operations.decisions import Decisions


class DecisionServicer(wire_grpc.DecisionServiceServicer):
    """What policy has decided."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions

    async def ListDecisions(self, request: wire.ListDecisionsRequest, context: Serving) -> wire.ListDecisionsResponse:
        since = request.since.ToDatetime(UTC)
        rows, more = await self._decisions.page(since, request.tenant_id, request.page_size, request.page_token)
        return wire.ListDecisionsResponse(decisions=[encoding.decision(row) for row in rows], next_page_token=more)
