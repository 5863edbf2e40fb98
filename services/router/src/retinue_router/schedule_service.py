"""Schedules on the wire."""

from retinue.router.v1 import schedule_service_pb2 as wire
from retinue.router.v1 import schedule_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.operations.schedules import Schedules


class ScheduleServicer(wire_grpc.ScheduleServiceServicer):
    """Tasks that come again."""

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules

    async def CreateSchedule(
        self, request: wire.CreateScheduleRequest, context: Serving
    ) -> wire.CreateScheduleResponse:
        row, replayed = await self._schedules.create(encoding.to_schedule(request))
        return wire.CreateScheduleResponse(schedule=encoding.schedule(row), replayed=replayed)

    async def GetSchedule(self, request: wire.GetScheduleRequest, context: Serving) -> wire.GetScheduleResponse:
        row = await self._schedules.get(request.tenant_id, request.schedule_id)
        return wire.GetScheduleResponse(schedule=encoding.schedule(row))

    async def ListSchedules(self, request: wire.ListSchedulesRequest, context: Serving) -> wire.ListSchedulesResponse:
        rows, more = await self._schedules.page(
            request.tenant_id, request.contact, request.page_size, request.page_token
        )
        return wire.ListSchedulesResponse(schedules=[encoding.schedule(row) for row in rows], next_page_token=more)

    async def PauseSchedule(self, request: wire.PauseScheduleRequest, context: Serving) -> wire.PauseScheduleResponse:
        row = await self._schedules.pause(request.tenant_id, request.schedule_id)
        return wire.PauseScheduleResponse(schedule=encoding.schedule(row))

    async def ResumeSchedule(
        self, request: wire.ResumeScheduleRequest, context: Serving
    ) -> wire.ResumeScheduleResponse:
        row = await self._schedules.resume(request.tenant_id, request.schedule_id)
        return wire.ResumeScheduleResponse(schedule=encoding.schedule(row))

    async def DeleteSchedule(
        self, request: wire.DeleteScheduleRequest, context: Serving
    ) -> wire.DeleteScheduleResponse:
        await self._schedules.delete(request.tenant_id, request.schedule_id)
        return wire.DeleteScheduleResponse()
