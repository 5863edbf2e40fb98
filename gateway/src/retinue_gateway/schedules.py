"""Schedules in the public API: each call is one of the router's."""

from retinue.edge.v1 import schedule_service_pb2 as edge
from retinue.edge.v1 import schedule_service_pb2_grpc as edge_grpc
from retinue.router.v1 import schedule_service_pb2 as router_wire
from retinue.router.v1 import schedule_service_pb2_grpc as router_grpc
from retinue_kit.client import Peer
from retinue_kit.crashing import reach

from retinue_gateway import fields
from retinue_gateway.calls import REPLAY_HEADER, Context, caller_of, key_of
from retinue_gateway.crash_points import Point


def _shown(found: router_wire.Schedule) -> edge.Schedule:
    """Show a schedule; the messages have the same fields, by design of the contract."""
    return edge.Schedule.FromString(found.SerializeToString())


class ScheduleServicer(edge_grpc.ScheduleServiceServicer):
    """Serves retinue.edge.v1.ScheduleService."""

    def __init__(self, router: Peer) -> None:
        self._router = router
        self._stub = router_grpc.ScheduleServiceStub(router.channel)

    async def CreateSchedule(
        self, request: edge.CreateScheduleRequest, context: Context
    ) -> edge.CreateScheduleResponse:
        caller = caller_of(context)
        fields.check_storable(request)
        fields.check_contact(request.contact)
        answer: router_wire.CreateScheduleResponse = await self._router.call(
            self._stub.CreateSchedule,
            router_wire.CreateScheduleRequest(
                tenant_id=caller.tenant_id,
                principal=caller.principal,
                contact=request.contact,
                kind=request.kind,
                input=request.input if request.HasField("input") else None,
                cron=request.cron,
                time_zone=request.time_zone,
                idempotency_key=key_of(context),
            ),
        )
        reach(Point.SCHEDULE_CHANGED)
        if answer.replayed:
            await context.send_initial_metadata((REPLAY_HEADER,))
        return edge.CreateScheduleResponse(schedule=_shown(answer.schedule))

    async def GetSchedule(self, request: edge.GetScheduleRequest, context: Context) -> edge.GetScheduleResponse:
        fields.check_storable(request)
        answer: router_wire.GetScheduleResponse = await self._router.call(
            self._stub.GetSchedule,
            router_wire.GetScheduleRequest(tenant_id=caller_of(context).tenant_id, schedule_id=request.schedule),
        )
        return edge.GetScheduleResponse(schedule=_shown(answer.schedule))

    async def ListSchedules(self, request: edge.ListSchedulesRequest, context: Context) -> edge.ListSchedulesResponse:
        fields.check_storable(request)
        if request.contact:
            fields.check_contact(request.contact)
        answer: router_wire.ListSchedulesResponse = await self._router.call(
            self._stub.ListSchedules,
            router_wire.ListSchedulesRequest(
                tenant_id=caller_of(context).tenant_id,
                contact=request.contact,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        shown = [_shown(found) for found in answer.schedules]
        return edge.ListSchedulesResponse(schedules=shown, next_page_token=answer.next_page_token)

    async def PauseSchedule(self, request: edge.PauseScheduleRequest, context: Context) -> edge.PauseScheduleResponse:
        fields.check_storable(request)
        answer: router_wire.PauseScheduleResponse = await self._router.call(
            self._stub.PauseSchedule,
            router_wire.PauseScheduleRequest(tenant_id=caller_of(context).tenant_id, schedule_id=request.schedule),
        )
        reach(Point.SCHEDULE_CHANGED)
        return edge.PauseScheduleResponse(schedule=_shown(answer.schedule))

    async def ResumeSchedule(
        self, request: edge.ResumeScheduleRequest, context: Context
    ) -> edge.ResumeScheduleResponse:
        fields.check_storable(request)
        answer: router_wire.ResumeScheduleResponse = await self._router.call(
            self._stub.ResumeSchedule,
            router_wire.ResumeScheduleRequest(tenant_id=caller_of(context).tenant_id, schedule_id=request.schedule),
        )
        reach(Point.SCHEDULE_CHANGED)
        return edge.ResumeScheduleResponse(schedule=_shown(answer.schedule))

    async def DeleteSchedule(
        self, request: edge.DeleteScheduleRequest, context: Context
    ) -> edge.DeleteScheduleResponse:
        fields.check_storable(request)
        await self._router.call(
            self._stub.DeleteSchedule,
            router_wire.DeleteScheduleRequest(tenant_id=caller_of(context).tenant_id, schedule_id=request.schedule),
        )
        reach(Point.SCHEDULE_CHANGED)
        return edge.DeleteScheduleResponse()
