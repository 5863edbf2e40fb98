"""The wire: each call is decoded, done by one operation, and its answer encoded."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from retinue.router.v1 import approval_pb2, load_pb2, router_service_pb2, router_service_pb2_grpc
from retinue.router.v1 import contact_service_pb2 as contact_service
from retinue.router.v1 import contact_service_pb2_grpc as contact_service_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.operations.approvals import Approvals
from retinue_router.operations.contacts import Contacts
from retinue_router.operations.events import Logs
from retinue_router.operations.load import Loads
from retinue_router.operations.runs import Runs

wire = router_service_pb2


class RouterServicer(router_service_pb2_grpc.RouterServiceServicer):
    """Runs, events and approvals, and how much waits."""

    def __init__(self, runs: Runs, logs: Logs, approvals: Approvals, loads: Loads) -> None:
        self._runs = runs
        self._logs = logs
        self._approvals = approvals
        self._loads = loads

    async def SubmitRun(self, request: wire.SubmitRunRequest, context: Serving) -> wire.SubmitRunResponse:
        row, replayed = await self._runs.submit(encoding.to_submission(request))
        return wire.SubmitRunResponse(run=encoding.run(row), replayed=replayed)

    async def GetRun(self, request: wire.GetRunRequest, context: Serving) -> wire.GetRunResponse:
        return wire.GetRunResponse(run=encoding.run(await self._runs.get(request.tenant_id, request.run_id)))

    async def ListRuns(self, request: wire.ListRunsRequest, context: Serving) -> wire.ListRunsResponse:
        state = encoding.state_name(request.state)
        rows, more = await self._runs.page(
            request.tenant_id, request.contact, state, request.page_size, request.page_token
        )
        return wire.ListRunsResponse(runs=[encoding.run(row) for row in rows], next_page_token=more)

    async def CancelRun(self, request: wire.CancelRunRequest, context: Serving) -> wire.CancelRunResponse:
        row = await self._runs.cancel(request.tenant_id, request.run_id, request.principal)
        return wire.CancelRunResponse(run=encoding.run(row))

    async def GetLog(self, request: wire.GetLogRequest, context: Serving) -> wire.GetLogResponse:
        log_id, last = await self._logs.find(request.tenant_id, request.contact)
        return wire.GetLogResponse(log_id=log_id, last_cursor=str(last))

    async def ListEvents(self, request: wire.ListEventsRequest, context: Serving) -> wire.ListEventsResponse:
        entries, more = await self._logs.page(
            request.tenant_id, request.log_id, request.run_id, request.after_cursor, request.page_size
        )
        return wire.ListEventsResponse(events=[encoding.event(entry) for entry in entries], more=more)

    async def WatchEvents(
        self, request: wire.WatchEventsRequest, context: Serving
    ) -> AsyncIterator[wire.WatchEventsResponse]:
        watching = self._logs.watch(request.tenant_id, request.log_id, request.run_id, request.after_cursor)
        async with aclosing(watching) as entries:
            async for entry in entries:
                yield wire.WatchEventsResponse(event=encoding.event(entry))

    async def ListCursors(self, request: wire.ListCursorsRequest, context: Serving) -> wire.ListCursorsResponse:
        found = await self._logs.cursors([(log.tenant_id, log.log_id) for log in request.logs])
        return wire.ListCursorsResponse(
            cursors=[
                wire.LogCursor(tenant_id=tenant_id, log_id=log_id, last_cursor=str(cursor))
                for (tenant_id, log_id), cursor in found.items()
            ]
        )

    async def ListApprovals(
        self, request: approval_pb2.ListApprovalsRequest, context: Serving
    ) -> approval_pb2.ListApprovalsResponse:
        rows, more = await self._approvals.page(request.tenant_id, request.state, request.page_size, request.page_token)
        return approval_pb2.ListApprovalsResponse(
            approvals=[encoding.approval(row) for row in rows], next_page_token=more
        )

    async def DecideApproval(
        self, request: approval_pb2.DecideApprovalRequest, context: Serving
    ) -> approval_pb2.DecideApprovalResponse:
        row = await self._approvals.decide(request.tenant_id, request.approval_id, request.decision, request.principal)
        return approval_pb2.DecideApprovalResponse(approval=encoding.approval(row))

    async def GetLoad(self, request: load_pb2.GetLoadRequest, context: Serving) -> load_pb2.GetLoadResponse:
        return encoding.load(self._loads.last, self._loads.bounds)


class ContactServicer(contact_service_grpc.ContactServiceServicer):
    """Contacts and what was said with them."""

    def __init__(self, contacts: Contacts) -> None:
        self._contacts = contacts

    async def ListContacts(
        self, request: contact_service.ListContactsRequest, context: Serving
    ) -> contact_service.ListContactsResponse:
        rows, more = await self._contacts.page(request.tenant_id, request.page_size, request.page_token)
        return contact_service.ListContactsResponse(
            contacts=[encoding.contact(row) for row in rows], next_page_token=more
        )

    async def GetContact(
        self, request: contact_service.GetContactRequest, context: Serving
    ) -> contact_service.GetContactResponse:
        row = await self._contacts.get(request.tenant_id, request.contact)
        return contact_service.GetContactResponse(contact=encoding.contact(row))

    async def UpdateContact(
        self, request: contact_service.UpdateContactRequest, context: Serving
    ) -> contact_service.UpdateContactResponse:
        row = await self._contacts.update(
            request.tenant_id, request.contact, request.display_name, request.channel,
            encoding.plain(request.profile, "profile"),
        )  # fmt: skip
        return contact_service.UpdateContactResponse(contact=encoding.contact(row))

    async def DeleteContact(
        self, request: contact_service.DeleteContactRequest, context: Serving
    ) -> contact_service.DeleteContactResponse:
        await self._contacts.delete(request.tenant_id, request.contact)
        return contact_service.DeleteContactResponse()

    async def ResetContact(
        self, request: contact_service.ResetContactRequest, context: Serving
    ) -> contact_service.ResetContactResponse:
        session_id = await self._contacts.reset(request.tenant_id, request.contact)
        return contact_service.ResetContactResponse(session_id=session_id)

    async def ListMessages(
        self, request: contact_service.ListMessagesRequest, context: Serving
    ) -> contact_service.ListMessagesResponse:
        rows, more = await self._contacts.messages(
            request.tenant_id, request.contact, request.page_size, request.page_token
        )
        return contact_service.ListMessagesResponse(
            messages=[encoding.message(row) for row in rows], next_page_token=more
        )
