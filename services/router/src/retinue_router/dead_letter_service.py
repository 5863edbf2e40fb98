"""Dead letters on the wire."""

from retinue.router.v1 import dead_letter_service_pb2 as wire
from retinue.router.v1 import dead_letter_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.operations.dead_letters import DeadLetters


class DeadLetterServicer(wire_grpc.DeadLetterServiceServicer):
    """Runs that were set aside."""

    def __init__(self, dead_letters: DeadLetters) -> None:
        self._dead_letters = dead_letters

    async def ListDeadLetters(
        self, request: wire.ListDeadLettersRequest, context: Serving
    ) -> wire.ListDeadLettersResponse:
        rows, more = await self._dead_letters.page(
            request.tenant_id, request.state, request.contact, request.page_size, request.page_token
        )
        return wire.ListDeadLettersResponse(
            dead_letters=[encoding.dead_letter(row) for row in rows], next_page_token=more
        )

    async def GetDeadLetter(self, request: wire.GetDeadLetterRequest, context: Serving) -> wire.GetDeadLetterResponse:
        row = await self._dead_letters.get(request.tenant_id, request.run_id)
        return wire.GetDeadLetterResponse(dead_letter=encoding.dead_letter(row))

    async def RetryDeadLetter(
        self, request: wire.RetryDeadLetterRequest, context: Serving
    ) -> wire.RetryDeadLetterResponse:
        row = await self._dead_letters.retry(request.tenant_id, request.run_id, request.principal)
        return wire.RetryDeadLetterResponse(run=encoding.run(row))

    async def DropDeadLetter(
        self, request: wire.DropDeadLetterRequest, context: Serving
    ) -> wire.DropDeadLetterResponse:
        row = await self._dead_letters.drop(request.tenant_id, request.run_id)
        return wire.DropDeadLetterResponse(dead_letter=encoding.dead_letter(row))

    async def CountDeadLetters(
        self, request: wire.CountDeadLettersRequest, context: Serving
    ) -> wire.CountDeadLettersResponse:
        rows = await self._dead_letters.count(request.tenant_count)
        counts = [wire.DeadLetterCount(tenant_id=row["tenant_id"], open_count=row["open_count"]) for row in rows]
        return wire.CountDeadLettersResponse(counts=counts)
