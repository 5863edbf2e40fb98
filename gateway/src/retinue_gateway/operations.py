"""The verbs of the public API: one call of the router each, whichever way a client came in."""

from google.protobuf import struct_pb2
from retinue.edge.v1 import approval_pb2, contact_pb2, edge_service_pb2, run_pb2
from retinue.router.v1 import approval_pb2 as router_approval_pb2
from retinue.router.v1 import (
    contact_service_pb2,
    contact_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from retinue.router.v1 import run_pb2 as router_run_pb2
from retinue_kit.client import Peer
from retinue_kit.crashing import reach

from retinue_gateway import encode, fields
from retinue_gateway.crash_points import Point
from retinue_gateway.credentials import Caller

ENQUEUE = "enqueue"
AUTO = "auto"
CHAT = "chat"
TASK_TEXT = "text"
"""The part of a task's input that the agent is told."""

MessageRequest = edge_service_pb2.SendMessageRequest | edge_service_pb2.StreamMessageRequest


class Operations:
    """Asks the router. Every method raises RetinueError only."""

    def __init__(self, router: Peer) -> None:
        self._router = router
        self._runs = router_service_pb2_grpc.RouterServiceStub(router.channel)
        self._contacts = contact_service_pb2_grpc.ContactServiceStub(router.channel)

    async def submit(self, request: router_service_pb2.SubmitRunRequest) -> tuple[router_run_pb2.Run, bool]:
        """Accept a run; answers it, and whether its key was used before."""
        reach(Point.SUBMITTING)
        answer = await self._router.call(self._runs.SubmitRun, request)
        reach(Point.SUBMITTED)
        return answer.run, answer.replayed

    async def send(self, request: MessageRequest, caller: Caller, key: str) -> tuple[router_run_pb2.Run, bool]:
        """Accept a message; answers the run, and whether its key was used before."""
        fields.check_storable(request)
        fields.check_contact(request.contact)
        fields.check_metadata(request.metadata)
        return await self.submit(
            router_service_pb2.SubmitRunRequest(
                tenant_id=caller.tenant_id,
                principal=caller.principal,
                contact=request.contact,
                text=request.text,
                kind=CHAT,
                runtime=request.runtime or AUTO,
                on_busy=request.on_busy or ENQUEUE,
                metadata=request.metadata if request.HasField("metadata") else None,
                reasoning=request.reasoning,
                idempotency_key=fields.check_key(key),
            )
        )

    async def create_task(
        self, request: edge_service_pb2.CreateTaskRequest, caller: Caller, key: str
    ) -> tuple[router_run_pb2.Run, bool]:
        """Accept a task; answers the run, and whether its key was used before."""
        fields.check_storable(request)
        fields.check_contact(request.contact)
        text = request.input.fields.get(TASK_TEXT, struct_pb2.Value()).string_value
        return await self.submit(
            router_service_pb2.SubmitRunRequest(
                tenant_id=caller.tenant_id,
                principal=caller.principal,
                contact=request.contact,
                text=text,
                kind=request.kind,
                runtime=AUTO,
                on_busy=ENQUEUE,
                input=request.input if request.HasField("input") else None,
                run_at=request.run_at if request.HasField("run_at") else None,
                idempotency_key=fields.check_key(key),
            )
        )

    async def find_run(self, run_id: str, caller: Caller) -> router_run_pb2.Run:
        """Read a run as the router tells it."""
        request = router_service_pb2.GetRunRequest(tenant_id=caller.tenant_id, run_id=run_id)
        fields.check_storable(request)
        answer: router_service_pb2.GetRunResponse = await self._router.call(self._runs.GetRun, request)
        return answer.run

    async def get_run(self, request: edge_service_pb2.GetRunRequest, caller: Caller) -> run_pb2.Run:
        """Read a run."""
        return encode.run(await self.find_run(request.run, caller))

    async def list_runs(
        self, request: edge_service_pb2.ListRunsRequest, caller: Caller
    ) -> edge_service_pb2.ListRunsResponse:
        """List runs."""
        fields.check_storable(request)
        answer = await self._router.call(
            self._runs.ListRuns,
            router_service_pb2.ListRunsRequest(
                tenant_id=caller.tenant_id,
                contact=request.contact,
                state=encode.state_number(request.state),
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        shown = [encode.run(run) for run in answer.runs]
        return edge_service_pb2.ListRunsResponse(runs=shown, next_page_token=answer.next_page_token)

    async def cancel_run(self, request: edge_service_pb2.CancelRunRequest, caller: Caller) -> run_pb2.Run:
        """Ask a run to stop; answers it as it is now."""
        fields.check_storable(request)
        answer = await self._router.call(
            self._runs.CancelRun,
            router_service_pb2.CancelRunRequest(
                tenant_id=caller.tenant_id, run_id=request.run, principal=caller.principal
            ),
        )
        reach(Point.CANCELLED)
        return encode.run(answer.run)

    async def list_approvals(
        self, request: approval_pb2.ListApprovalsRequest, caller: Caller
    ) -> approval_pb2.ListApprovalsResponse:
        """List approvals."""
        fields.check_storable(request)
        answer = await self._router.call(
            self._runs.ListApprovals,
            router_approval_pb2.ListApprovalsRequest(
                tenant_id=caller.tenant_id,
                state=request.state,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        shown = [encode.approval(approval) for approval in answer.approvals]
        return approval_pb2.ListApprovalsResponse(approvals=shown, next_page_token=answer.next_page_token)

    async def decide_approval(
        self, request: approval_pb2.DecideApprovalRequest, caller: Caller
    ) -> approval_pb2.Approval:
        """Answer an approval."""
        fields.check_storable(request)
        answer = await self._router.call(
            self._runs.DecideApproval,
            router_approval_pb2.DecideApprovalRequest(
                tenant_id=caller.tenant_id,
                approval_id=request.approval,
                decision=request.decision,
                principal=caller.principal,
            ),
        )
        reach(Point.DECIDED)
        return encode.approval(answer.approval)

    async def list_contacts(
        self, request: contact_pb2.ListContactsRequest, caller: Caller
    ) -> contact_pb2.ListContactsResponse:
        """List contacts."""
        fields.check_storable(request)
        answer = await self._router.call(
            self._contacts.ListContacts,
            contact_service_pb2.ListContactsRequest(
                tenant_id=caller.tenant_id, page_size=request.page_size, page_token=request.page_token
            ),
        )
        shown = [encode.contact(contact) for contact in answer.contacts]
        return contact_pb2.ListContactsResponse(contacts=shown, next_page_token=answer.next_page_token)

    async def get_contact(self, request: contact_pb2.GetContactRequest, caller: Caller) -> contact_pb2.Contact:
        """Read a contact."""
        fields.check_contact(request.contact)
        answer = await self._router.call(
            self._contacts.GetContact,
            contact_service_pb2.GetContactRequest(tenant_id=caller.tenant_id, contact=request.contact),
        )
        return encode.contact(answer.contact)

    async def update_contact(self, request: contact_pb2.UpdateContactRequest, caller: Caller) -> contact_pb2.Contact:
        """Write a contact's profile."""
        fields.check_storable(request)
        fields.check_contact(request.contact)
        answer = await self._router.call(
            self._contacts.UpdateContact,
            contact_service_pb2.UpdateContactRequest(
                tenant_id=caller.tenant_id,
                contact=request.contact,
                display_name=request.display_name,
                channel=request.channel,
                profile=request.profile if request.HasField("profile") else None,
            ),
        )
        return encode.contact(answer.contact)

    async def delete_contact(self, request: contact_pb2.DeleteContactRequest, caller: Caller) -> None:
        """Remove a contact."""
        fields.check_contact(request.contact)
        await self._router.call(
            self._contacts.DeleteContact,
            contact_service_pb2.DeleteContactRequest(tenant_id=caller.tenant_id, contact=request.contact),
        )

    async def reset_contact(self, request: contact_pb2.ResetContactRequest, caller: Caller) -> str:
        """Begin a fresh conversation; answers its id."""
        fields.check_contact(request.contact)
        answer: contact_service_pb2.ResetContactResponse = await self._router.call(
            self._contacts.ResetContact,
            contact_service_pb2.ResetContactRequest(tenant_id=caller.tenant_id, contact=request.contact),
        )
        return answer.session_id

    async def list_messages(
        self, request: contact_pb2.ListMessagesRequest, caller: Caller
    ) -> contact_pb2.ListMessagesResponse:
        """List what was said with a contact."""
        fields.check_storable(request)
        fields.check_contact(request.contact)
        answer = await self._router.call(
            self._contacts.ListMessages,
            contact_service_pb2.ListMessagesRequest(
                tenant_id=caller.tenant_id,
                contact=request.contact,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        shown = [encode.message(message) for message in answer.messages]
        return contact_pb2.ListMessagesResponse(messages=shown, next_page_token=answer.next_page_token)
