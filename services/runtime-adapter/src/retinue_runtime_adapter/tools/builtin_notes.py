"""Tools that keep something for later: a note in the agent's memory, a task in its calendar."""

import datetime
from typing import Any

from google.protobuf.struct_pb2 import Struct
from retinue.router.v1 import schedule_service_pb2 as pb
from retinue.router.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.tools.box import MEMORY, SandboxFiles, is_missing
from retinue_runtime_adapter.tools.builtin_files import BuiltIn, schema
from retinue_runtime_adapter.tools.ports import Call, Progress, Result, Scope

NOTES = "notes.md"
"""The file that notes are appended to."""

NOTES_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes of it; then the agent is to tidy up first."""

NOTE_LENGTH_MAX = 8000
"""Characters of a note."""

TITLE_LENGTH_MAX = 200
"""Characters of its title."""

TRIES_MAX = 5
"""Times that a note is appended anew because another was faster."""

SCHEDULE_TIMEOUT_S = 10.0
"""For a schedule to be made: one transaction."""

KIND = "reminder"
"""Of the tasks that it makes."""

ABSENT = "absent"
"""In place of a digest: the file must not be there."""


def note_tools(files: SandboxFiles, clock: Clock) -> list[BuiltIn]:
    """Make the one for notes."""
    text = {"type": "string", "minLength": 1, "maxLength": NOTE_LENGTH_MAX}
    title = {"type": "string", "minLength": 1, "maxLength": TITLE_LENGTH_MAX}
    return [
        BuiltIn(
            "memory_note",
            "Keep a note in long-term memory, across all conversations.",
            schema(["title", "text"], title=title, text=text),
            _Notes(files, clock).add,
        )
    ]


def schedule_tools(router: Peer) -> list[BuiltIn]:
    """Make the one for tasks."""
    return [
        BuiltIn(
            "schedule_task",
            "Schedule a task that comes again by the clock, such as a reminder.",
            schema(
                ["text", "cron"],
                text={"type": "string", "minLength": 1, "maxLength": NOTE_LENGTH_MAX, "description": "What to do."},
                cron={"type": "string", "minLength": 1, "maxLength": 128, "description": "When: five fields of cron."},
                time_zone={"type": "string", "maxLength": 64, "description": "Such as Europe/Paris; UTC if left out."},
            ),
            _Schedules(router).add,
            # The call's id is the key: the same schedule is answered again.
            idempotent=True,
        )
    ]


class _Notes:
    def __init__(self, files: SandboxFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock

    async def add(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        today = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC).date().isoformat()
        title = " ".join(call.arguments["title"].split())
        note = f"## {today} {title}\n\n{call.arguments['text'].strip()}\n\n".encode()
        for _ in range(TRIES_MAX):
            held, digest = await self._held(scope)
            if len(held) + len(note) > NOTES_SIZE_MAX_BYTES:
                return Result(False, "The memory is full; ask the user which notes may go.")
            gap = b"" if not held or held.endswith(b"\n") else b"\n\n"
            try:
                await self._files.write(scope, call, NOTES, held + gap + note, root=MEMORY, expected_digest=digest)
            except RetinueError as error:
                if error.reason is not Reason.FILE_CHANGED:
                    raise
            else:
                return Result(True, f"Noted: {title}.")
        return Result(False, "The memory was changed by others all the time; try again.")

    async def _held(self, scope: Scope) -> tuple[bytes, str]:
        """What is there, and the digest that says so."""
        try:
            found = await self._files.read(scope, NOTES, root=MEMORY)
        except RetinueError as error:
            if not is_missing(error):
                raise
            return b"", ABSENT
        return found.data, found.info.digest


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
