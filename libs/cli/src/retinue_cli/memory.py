"""Calls for what is remembered of one tenant and its contacts."""

from typing import Any

from retinue.router.v1 import memory_service_pb2 as memory
from retinue.router.v1 import memory_service_pb2_grpc as memory_grpc

from retinue_cli.mesh import PAGE_SIZE, Mesh, call, call_until_told


class Memory:
    """What is remembered, by the mesh's own sockets. An empty contact stands for what concerns the whole tenant."""

    def __init__(self, mesh: Mesh, tenant_id: str) -> None:
        channel: Any = mesh.channel("router")
        self._stub: Any = memory_grpc.MemoryServiceStub(channel)
        self._tenant_id = tenant_id

    def all(self, contact: str) -> list[memory.Fact]:
        """List all that is remembered of a contact, by importance."""
        found: list[memory.Fact] = []
        request = memory.ListFactsRequest(tenant_id=self._tenant_id, contact=contact, page_size=PAGE_SIZE)
        while True:
            answer: memory.ListFactsResponse = call(self._stub.ListFacts, request)
            found.extend(answer.facts)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def search(self, contact: str, query: str, count: int) -> list[memory.Fact]:
        """Find what fits words, best first, so many at most; what concerns the tenant as well."""
        request = memory.SearchFactsRequest(tenant_id=self._tenant_id, contact=contact, query=query, page_size=count)
        answer: memory.SearchFactsResponse = call(self._stub.SearchFacts, request)
        return [one.fact for one in answer.facts]

    def add(self, contact: str, text: str, domain: str, kind: str, importance: int) -> memory.Fact:
        """Remember a fact, once however often it is asked; answers it as it is kept."""
        fact = memory.NewFact(text=text, domain=domain, kind=kind, importance=importance)
        request = memory.RememberFactsRequest(tenant_id=self._tenant_id, contact=contact, facts=[fact])
        answer: memory.RememberFactsResponse = call_until_told(self._stub.RememberFacts, request)
        return answer.facts[0]

    def forget(self, contact: str, fact_id: str) -> None:
        """Forget a fact of a contact."""
        request = memory.ForgetFactRequest(tenant_id=self._tenant_id, contact=contact, fact_id=fact_id)
        call(self._stub.ForgetFact, request)
