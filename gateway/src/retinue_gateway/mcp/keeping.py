"""What a client of MCP keeps for later, as agents themselves do: facts in their memory, a task in their calendar."""

from collections.abc import Sequence
from typing import Any

from retinue.edge.v1 import schedule_service_pb2 as edge
from retinue.router.v1 import (
    memory_service_pb2,
    memory_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from retinue_kit.client import Peer
from retinue_kit.server import validate

from retinue_gateway import fields
from retinue_gateway.mcp.boxes import Ask, Boxes

REMINDER = "reminder"
"""The kind of the tasks, as agents' own tool makes them."""

FOUND_MAX = 10
"""Facts that a search answers, as agents' own tool does."""

MEMORY_TIMEOUT_S = 10.0
"""For facts to be written or found: one transaction, and perhaps a model's vectors before it."""

SCHEDULE_TIMEOUT_S = 10.0
"""For a schedule to be made: one transaction."""


class Keeping:
    """Every method asks policy first, and raises RetinueError only."""

    def __init__(self, boxes: Boxes, router: Peer) -> None:
        self._boxes = boxes
        self._router = router
        self._memory: Any = memory_service_pb2_grpc.MemoryServiceStub(router.channel)
        self._schedules: Any = schedule_service_pb2_grpc.ScheduleServiceStub(router.channel)

    async def remember(self, ask: Ask, contact: str, facts: Sequence[memory_service_pb2.NewFact]) -> list[str]:
        """Remember facts of a contact, or of the tenant without one; answers their ids. Idempotent by text.

        Raises RetinueError: FIELD_INVALID, QUOTA_EXCEEDED.
        """
        request = memory_service_pb2.RememberFactsRequest(tenant_id=ask.caller.tenant_id, contact=contact, facts=facts)
        validate(request)
        for fact in facts:
            fields.check_storable(fact)
        if contact:
            fields.check_contact(contact)
        await self._boxes.allow(ask)
        answer: memory_service_pb2.RememberFactsResponse = await self._router.call(
            self._memory.RememberFacts, request, timeout_s=MEMORY_TIMEOUT_S
        )
        return [fact.fact_id for fact in answer.facts]

    async def search(self, ask: Ask, contact: str, query: str) -> list[memory_service_pb2.Fact]:
        """Find facts of a contact and of the tenant, best first. Raises RetinueError: FIELD_INVALID."""
        request = memory_service_pb2.SearchFactsRequest(
            tenant_id=ask.caller.tenant_id, contact=contact, query=query, page_size=FOUND_MAX
        )
        validate(request)
        fields.check_storable(request)
        await self._boxes.allow(ask)
        answer: memory_service_pb2.SearchFactsResponse = await self._router.call(
            self._memory.SearchFacts, request, timeout_s=MEMORY_TIMEOUT_S
        )
        return [one.fact for one in answer.facts]

    async def schedule(
        self, ask: Ask, contact: str, text: str, cron: str, time_zone: str
    ) -> schedule_service_pb2.Schedule:
        """Make a task that comes again; its contact is told of each end. Not idempotent: each call makes one.

        Raises RetinueError: FIELD_INVALID, QUOTA_EXCEEDED.
        """
        wanted = edge.CreateScheduleRequest(contact=contact, kind=REMINDER, cron=cron, time_zone=time_zone)
        wanted.input.update({"text": text})
        validate(wanted)
        fields.check_storable(wanted)
        fields.check_contact(contact)
        await self._boxes.allow(ask)
        request = schedule_service_pb2.CreateScheduleRequest(
            tenant_id=ask.caller.tenant_id,
            principal=ask.caller.principal[:256],
            contact=wanted.contact,
            kind=wanted.kind,
            input=wanted.input,
            cron=wanted.cron,
            time_zone=wanted.time_zone,
        )
        answer: schedule_service_pb2.CreateScheduleResponse = await self._router.call(
            self._schedules.CreateSchedule, request, timeout_s=SCHEDULE_TIMEOUT_S
        )
        return answer.schedule
