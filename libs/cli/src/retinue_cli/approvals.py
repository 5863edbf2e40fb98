"""Calls for the approvals of one tenant, and for what was allowed for good."""

from typing import Any

from retinue.router.v1 import allowance_service_pb2 as allowances
from retinue.router.v1 import allowance_service_pb2_grpc as allowances_grpc
from retinue.router.v1 import approval_pb2 as approvals
from retinue.router.v1 import router_service_pb2_grpc as router_grpc

from retinue_cli.mesh import OPERATOR, PAGE_SIZE, Mesh, call


class Approvals:
    """The approvals of a tenant, by the mesh's own sockets."""

    def __init__(self, mesh: Mesh, tenant_id: str) -> None:
        channel: Any = mesh.channel("router")
        self._router: Any = router_grpc.RouterServiceStub(channel)
        self._allowances: Any = allowances_grpc.AllowanceServiceStub(channel)
        self._tenant_id = tenant_id

    def newest(self, state: str, count: int) -> list[approvals.Approval]:
        """List the newest approvals, so many at most, in one state where given."""
        found: list[approvals.Approval] = []
        request = approvals.ListApprovalsRequest(tenant_id=self._tenant_id, state=state)
        while len(found) < count:
            request.page_size = min(PAGE_SIZE, count - len(found))
            answer: approvals.ListApprovalsResponse = call(self._router.ListApprovals, request)
            found.extend(answer.approvals)
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found

    def decide(self, approval_id: str, decision: str) -> approvals.Approval:
        """Answer an approval; answers it as it is then. CommandError if it was answered before or its time is over."""
        request = approvals.DecideApprovalRequest(
            tenant_id=self._tenant_id, approval_id=approval_id, decision=decision, principal=OPERATOR
        )
        answer: approvals.DecideApprovalResponse = call(self._router.DecideApproval, request)
        return answer.approval

    def allowed(self) -> list[allowances.Allowance]:
        """List what was allowed for good, newest first."""
        found: list[allowances.Allowance] = []
        request = allowances.ListAllowancesRequest(tenant_id=self._tenant_id, page_size=PAGE_SIZE)
        while True:
            answer: allowances.ListAllowancesResponse = call(self._allowances.ListAllowances, request)
            found.extend(answer.allowances)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def forget(self, allowance_id: str) -> None:
        """Take back what was allowed for good."""
        request = allowances.DeleteAllowanceRequest(tenant_id=self._tenant_id, allowance_id=allowance_id)
        call(self._allowances.DeleteAllowance, request)
