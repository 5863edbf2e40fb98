"""The tool that keeps something for later: a task in the agent's calendar."""

import datetime
from typing import Any

from google.protobuf.struct_pb2 import Struct
from retinue.router.v1 import schedule_service_pb2 as pb
from retinue.router.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from retinue_kit.client import Peer

from retinue_runtime_adapter.tools.builtin_files import BuiltIn, schema
from retinue_runtime_adapter.tools.ports import Call, Progress, Result, Scope

TEXT_LENGTH_MAX = 8000
"""Characters of what is to be done."""

SCHEDULE_TIMEOUT_S = 10.0
"""For a schedule to be made: one transaction."""

KIND = "reminder"
"""Of the tasks that it makes."""


def schedule_tools(router: Peer) -> list[BuiltIn]:
    """Make the one for tasks."""
    return [
        BuiltIn(
            "schedule_task",
            "Schedule a task that comes again by the clock, such as a reminder.",
            schema(
                ["text", "cron"],
                text={"type": "string", "minLength": 1, "maxLength": TEXT_LENGTH_MAX, "description": "What to do."},
                cron={"type": "string", "minLength": 1, "maxLength": 128, "description": "When: five fields of cron."},
                time_zone={"type": "string", "maxLength": 64, "description": "Such as Europe/Paris; UTC if left out."},
            ),
            _Schedules(router).add,
            # The call's id is the key: the same schedule is answered again.
            idempotent=True,
        )
    ]


class _Schedules:
    def __init__(self, router: Peer) -> None:
        self._peer = router
        self._stub: Any = ScheduleServiceStub(router.channel)

    async def add(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        if not scope.contact:
            return Result(False, "This run speaks with nobody, so there is nobody to remind.")
        given = Struct()
        given.update({"text": call.arguments["text"]})
        request = pb.CreateScheduleRequest(
            tenant_id=scope.tenant_id,
            principal=scope.principal,
            contact=scope.contact,
            kind=KIND,
            input=given,
            cron=call.arguments["cron"],
            time_zone=call.arguments.get("time_zone", ""),
            idempotency_key=f"{scope.run_id}.{call.call_id}"[:255],
        )
        answer = await self._peer.call(self._stub.CreateSchedule, request, timeout_s=SCHEDULE_TIMEOUT_S)
        found = answer.schedule
        when = found.next_time.ToDatetime(datetime.UTC).isoformat(timespec="minutes")
        return Result(True, f"Scheduled as {found.schedule_id}; it comes next at {when}.")
