"""A policy that allows what it is not told to forbid, and a router with what was allowed for good."""

from typing import Any

from retinue.policy.v1 import policy_service_pb2, policy_service_pb2_grpc, tool_service_pb2, tool_service_pb2_grpc
from retinue.router.v1 import (
    allowance_service_pb2,
    allowance_service_pb2_grpc,
    memory_service_pb2,
    memory_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from retinue_kit.errors import RetinueError
from retinue_kit.server import Service


class FakeRules(policy_service_pb2_grpc.PolicyServiceServicer, tool_service_pb2_grpc.ToolServiceServicer):
    """Allows all that is not named in `effects`, in a box as `decision` says."""

    def __init__(self) -> None:
        self.decision: dict[str, Any] = {"runtime": "light", "sandbox_profile": "gvisor", "egress": ["a.b:443"]}
        self.effects: dict[str, str] = {}
        self.trouble: RetinueError | None = None
        self.asked: list[tool_service_pb2.AuthorizeToolRequest] = []

    @property
    def services(self) -> list[Service]:
        adds = (
            (policy_service_pb2_grpc.add_PolicyServiceServicer_to_server, "retinue.policy.v1.PolicyService"),
            (tool_service_pb2_grpc.add_ToolServiceServicer_to_server, "retinue.policy.v1.ToolService"),
        )
        return [Service(add, self, name) for add, name in adds]

    async def Decide(self, request: Any, context: Any) -> policy_service_pb2.DecideResponse:
        assert request.kind == "mcp"
        return policy_service_pb2.DecideResponse(decision=policy_service_pb2.Decision(**self.decision))

    async def AuthorizeTool(self, request: Any, context: Any) -> tool_service_pb2.AuthorizeToolResponse:
        self.asked.append(request)
        if self.trouble is not None:
            raise self.trouble
        effect = self.effects.get(request.tool, "allow")
        found = tool_service_pb2.ToolDecision(effect=effect, layer="agent", reason="Not on Sundays.")
        return tool_service_pb2.AuthorizeToolResponse(decision=found)


class FakeRouter(
    allowance_service_pb2_grpc.AllowanceServiceServicer,
    memory_service_pb2_grpc.MemoryServiceServicer,
    schedule_service_pb2_grpc.ScheduleServiceServicer,
):
    """Has allowances, three to a page, remembers facts, finds the newest first, and makes schedules."""

    def __init__(self) -> None:
        self.allowances: list[tuple[str, str]] = []
        self.schedules: list[schedule_service_pb2.CreateScheduleRequest] = []
        self.remembered: list[memory_service_pb2.RememberFactsRequest] = []
        self.trouble: RetinueError | None = None

    @property
    def services(self) -> list[Service]:
        adds = (
            (allowance_service_pb2_grpc.add_AllowanceServiceServicer_to_server, "retinue.router.v1.AllowanceService"),
            (memory_service_pb2_grpc.add_MemoryServiceServicer_to_server, "retinue.router.v1.MemoryService"),
            (schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server, "retinue.router.v1.ScheduleService"),
        )
        return [Service(add, self, name) for add, name in adds]

    async def ListAllowances(self, request: Any, context: Any) -> allowance_service_pb2.ListAllowancesResponse:
        if self.trouble is not None:
            raise self.trouble
        start = int(request.page_token or 0)
        page = [
            allowance_service_pb2.Allowance(tool=tool, pattern=pattern)
            for tool, pattern in self.allowances[start : start + 3]
        ]
        more = str(start + 3) if start + 3 < len(self.allowances) else ""
        return allowance_service_pb2.ListAllowancesResponse(allowances=page, next_page_token=more)

    async def RememberFacts(self, request: Any, context: Any) -> memory_service_pb2.RememberFactsResponse:
        if self.trouble is not None:
            raise self.trouble
        self.remembered.append(request)
        facts = [
            memory_service_pb2.Fact(
                fact_id=f"fct_{number}", contact=request.contact, domain=fact.domain, kind=fact.kind, text=fact.text,
                importance=fact.importance,
            )
            for number, fact in enumerate(request.facts)
        ]  # fmt: skip
        return memory_service_pb2.RememberFactsResponse(facts=facts)

    async def SearchFacts(self, request: Any, context: Any) -> memory_service_pb2.SearchFactsResponse:
        found = [
            memory_service_pb2.FoundFact(fact={"fact_id": "fct_0", "contact": asked.contact, "text": fact.text})
            for asked in reversed(self.remembered)
            if (asked.tenant_id, asked.contact) == (request.tenant_id, request.contact)
            for fact in asked.facts
        ]
        return memory_service_pb2.SearchFactsResponse(facts=found[: request.page_size])

    async def CreateSchedule(self, request: Any, context: Any) -> schedule_service_pb2.CreateScheduleResponse:
        self.schedules.append(request)
        made = schedule_service_pb2.Schedule(schedule_id="sch_1", contact=request.contact)
        made.next_time.FromSeconds(0)
        return schedule_service_pb2.CreateScheduleResponse(schedule=made)
