"""The public API on the wire: decode, one operation, encode; streams of events as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from google.api import httpbody_pb2
from retinue.edge.v1 import approval_pb2, contact_pb2, edge_service_pb2, edge_service_pb2_grpc
from retinue.router.v1 import run_pb2
from retinue_kit.crashing import reach
from retinue_kit.server import text_metadata
from retinue_kit.streams import Cursor

from retinue_gateway import encode, fields, sse
from retinue_gateway.calls import REPLAY_HEADER, Context, caller_of, key_of
from retinue_gateway.crash_points import Point
from retinue_gateway.credentials import Caller
from retinue_gateway.events import TERMINAL, Events
from retinue_gateway.operations import MessageRequest, Operations

LAST_EVENT_ID = "last-event-id"

WAIT_DEFAULT_S = 30


def _after(request: Any, context: Context) -> Cursor | None:
    """Read the cursor to begin after; None if there is none. Raises RetinueError(CURSOR_INVALID)."""
    after = text_metadata(context).get(LAST_EVENT_ID) or request.after
    return Cursor.parse(after) if after else None


def _body(data: bytes) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=sse.CONTENT_TYPE, data=data)


class EdgeServicer(edge_service_pb2_grpc.EdgeServiceServicer):
    """Serves retinue.edge.v1.EdgeService."""

    def __init__(self, operations: Operations, events: Events) -> None:
        self._operations = operations
        self._events = events

    async def SendMessage(
        self, request: edge_service_pb2.SendMessageRequest, context: Context
    ) -> edge_service_pb2.SendMessageResponse:
        run, replayed = await self._operations.send(request, caller_of(context), key_of(context))
        if replayed:
            await context.send_initial_metadata((REPLAY_HEADER,))
        return edge_service_pb2.SendMessageResponse(run=encode.run(run))

    async def StreamMessage(
        self, request: edge_service_pb2.StreamMessageRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        run, replayed = await self._send(request, context)
        yield _body(sse.queued(run))
        after = Cursor.parse(run.after_cursor or "0-0")
        known = None if replayed else after
        async for body in self._tell_run(caller_of(context), run, after, known):
            yield body

    async def _send(self, request: MessageRequest, context: Context) -> tuple[run_pb2.Run, bool]:
        run, replayed = await self._operations.send(request, caller_of(context), key_of(context))
        await context.send_initial_metadata((*sse.HEADERS, REPLAY_HEADER) if replayed else sse.HEADERS)
        return run, replayed

    async def WatchContact(
        self, request: edge_service_pb2.WatchContactRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        caller = caller_of(context)
        fields.check_contact(request.contact)
        after = _after(request, context)
        log_id, last = await self._events.find_log(caller.tenant_id, request.contact)
        await context.send_initial_metadata(sse.HEADERS)
        yield _body(sse.KEEP_ALIVE)  # headers leave with the first message
        try:
            with await self._events.open(caller, log_id, after or last, known=last, lasting=True) as stream:
                reach(Point.STREAM_OPENED)
                while True:
                    entries = await stream.next()
                    reach(Point.STREAM_TELLING)
                    for piece in sse.pieces(sse.frames(entries) or sse.KEEP_ALIVE):
                        yield _body(piece)
                    reach(Point.STREAM_TOLD)
        except Exception as error:
            yield _body(sse.failure(encode.error(error)))

    async def WatchRun(
        self, request: edge_service_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        caller = caller_of(context)
        after = _after(request, context)
        run = await self._operations.find_run(request.run, caller)
        start = Cursor.parse(run.after_cursor or "0-0")
        ended = None
        if after is not None and after > start:
            start = after
            if encode.is_over(run):
                ended = await self._events.terminal_cursor(run)
        await context.send_initial_metadata(sse.HEADERS)
        yield _body(sse.KEEP_ALIVE)
        if ended is None or ended > start:
            async for body in self._tell_run(caller, run, start, None):
                yield body

    async def _tell_run(
        self, caller: Caller, run: run_pb2.Run, after: Cursor, known: Cursor | None
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Tell a run's events to its terminal one; an error is told, too, and ends the stream."""
        try:
            with await self._events.open(caller, run.log_id, after, known=known) as stream:
                reach(Point.STREAM_OPENED)
                over = False
                while not over:
                    entries = await stream.next()
                    data = b""
                    if not entries:
                        # A run that was removed with its contact ends without a word.
                        await self._operations.find_run(run.run_id, caller)
                        data = sse.KEEP_ALIVE
                    for entry in entries:
                        if entry.run_id == run.run_id and not over:
                            data += sse.frame(entry)
                            over = entry.type in TERMINAL
                    reach(Point.STREAM_TELLING)
                    for piece in sse.pieces(data):
                        yield _body(piece)
                    reach(Point.STREAM_TOLD)
        except Exception as error:
            yield _body(sse.failure(encode.error(error)))

    async def WaitRun(
        self, request: edge_service_pb2.WaitRunRequest, context: Context
    ) -> edge_service_pb2.WaitRunResponse:
        caller = caller_of(context)
        timeout_s = request.timeout_s if request.HasField("timeout_s") else WAIT_DEFAULT_S
        run = await self._operations.find_run(request.run, caller)
        if timeout_s and not encode.is_over(run):
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    run = await self._wait(caller, run)
                    reach(Point.WAITED)
                    return edge_service_pb2.WaitRunResponse(run=encode.run(run))
            run = await self._operations.find_run(request.run, caller)
        reach(Point.WAITED)
        return edge_service_pb2.WaitRunResponse(run=encode.run(run))

    async def _wait(self, caller: Caller, run: run_pb2.Run) -> run_pb2.Run:
        after = Cursor.parse(run.after_cursor or "0-0")
        with await self._events.open(caller, run.log_id, after) as stream:
            return await stream.wait_for_end(run.run_id, partial(self._operations.find_run, run.run_id, caller))

    async def ListContacts(
        self, request: contact_pb2.ListContactsRequest, context: Context
    ) -> contact_pb2.ListContactsResponse:
        return await self._operations.list_contacts(request, caller_of(context))

    async def GetContact(self, request: contact_pb2.GetContactRequest, context: Context) -> contact_pb2.Contact:
        return await self._operations.get_contact(request, caller_of(context))

    async def UpdateContact(self, request: contact_pb2.UpdateContactRequest, context: Context) -> contact_pb2.Contact:
        return await self._operations.update_contact(request, caller_of(context))

    async def DeleteContact(
        self, request: contact_pb2.DeleteContactRequest, context: Context
    ) -> contact_pb2.DeleteContactResponse:
        await self._operations.delete_contact(request, caller_of(context))
        return contact_pb2.DeleteContactResponse()

    async def ResetContact(
        self, request: contact_pb2.ResetContactRequest, context: Context
    ) -> contact_pb2.ResetContactResponse:
        session_id = await self._operations.reset_contact(request, caller_of(context))
        return contact_pb2.ResetContactResponse(session_id=session_id)

    async def ListMessages(
        self, request: contact_pb2.ListMessagesRequest, context: Context
    ) -> contact_pb2.ListMessagesResponse:
        return await self._operations.list_messages(request, caller_of(context))

    async def ListRuns(
        self, request: edge_service_pb2.ListRunsRequest, context: Context
    ) -> edge_service_pb2.ListRunsResponse:
        return await self._operations.list_runs(request, caller_of(context))

    async def GetRun(
        self, request: edge_service_pb2.GetRunRequest, context: Context
    ) -> edge_service_pb2.GetRunResponse:
        return edge_service_pb2.GetRunResponse(run=await self._operations.get_run(request, caller_of(context)))

    async def CancelRun(
        self, request: edge_service_pb2.CancelRunRequest, context: Context
    ) -> edge_service_pb2.CancelRunResponse:
        return edge_service_pb2.CancelRunResponse(run=await self._operations.cancel_run(request, caller_of(context)))

    async def ListApprovals(
        self, request: approval_pb2.ListApprovalsRequest, context: Context
    ) -> approval_pb2.ListApprovalsResponse:
        return await self._operations.list_approvals(request, caller_of(context))

    async def DecideApproval(
        self, request: approval_pb2.DecideApprovalRequest, context: Context
    ) -> approval_pb2.DecideApprovalResponse:
        approval = await self._operations.decide_approval(request, caller_of(context))
        return approval_pb2.DecideApprovalResponse(approval=approval)

    async def CreateTask(
        self, request: edge_service_pb2.CreateTaskRequest, context: Context
    ) -> edge_service_pb2.CreateTaskResponse:
        run, replayed = await self._operations.create_task(request, caller_of(context), key_of(context))
        if replayed:
            await context.send_initial_metadata((REPLAY_HEADER,))
        return edge_service_pb2.CreateTaskResponse(run=encode.run(run))
