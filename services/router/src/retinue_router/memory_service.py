"""Memory on the wire."""

from retinue.router.v1 import memory_service_pb2 as wire
from retinue.router.v1 import memory_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.operations.memory import Memory


class MemoryServicer(wire_grpc.MemoryServiceServicer):
    """What is remembered of tenants and their contacts."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def RememberFacts(self, request: wire.RememberFactsRequest, context: Serving) -> wire.RememberFactsResponse:
        wanted = [(fact.domain, fact.kind, fact.importance, fact.text) for fact in request.facts]
        fresh = await self._memory.fresh(request.tenant_id, wanted)
        rows = await self._memory.remember(request.tenant_id, request.contact, request.run_id, fresh)
        return wire.RememberFactsResponse(facts=[encoding.fact(row) for row in rows])

    async def SearchFacts(self, request: wire.SearchFactsRequest, context: Serving) -> wire.SearchFactsResponse:
        rows = await self._memory.search(request.tenant_id, request.contact, request.query, request.page_size)
        found = [wire.FoundFact(fact=encoding.fact(row), score=min(1.0, row["score"])) for row in rows]
        return wire.SearchFactsResponse(facts=found)

    async def ListFacts(self, request: wire.ListFactsRequest, context: Serving) -> wire.ListFactsResponse:
        rows, more = await self._memory.page(request.tenant_id, request.contact, request.page_size, request.page_token)
        return wire.ListFactsResponse(facts=[encoding.fact(row) for row in rows], next_page_token=more)

    async def ForgetFact(self, request: wire.ForgetFactRequest, context: Serving) -> wire.ForgetFactResponse:
        await self._memory.forget(request.tenant_id, request.fact_id, request.contact)
        return wire.ForgetFactResponse()
