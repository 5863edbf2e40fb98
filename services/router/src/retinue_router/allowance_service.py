"""Allowances on the wire."""

from retinue.router.v1 import allowance_service_pb2 as wire
from retinue.router.v1 import allowance_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.operations.allowances import Allowances


class AllowanceServicer(wire_grpc.AllowanceServiceServicer):
    """What tools were allowed for good."""

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances

    async def ListAllowances(
        self, request: wire.ListAllowancesRequest, context: Serving
    ) -> wire.ListAllowancesResponse:
        rows, more = await self._allowances.page(request.tenant_id, request.page_size, request.page_token)
        return wire.ListAllowancesResponse(allowances=[encoding.allowance(row) for row in rows], next_page_token=more)

    async def DeleteAllowance(
        self, request: wire.DeleteAllowanceRequest, context: Serving
    ) -> wire.DeleteAllowanceResponse:
        await self._allowances.delete(request.tenant_id, request.allowance_id)
        return wire.DeleteAllowanceResponse()
