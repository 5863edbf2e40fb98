"""Instances in the public API: policy says which kind a tenant's chat runs in, the runtime adapter has them.

Everything here is about the caller's own tenant. What an adapter says of an instance in its own words may name hosts,
processes or other tenants, so none of it is passed on: a client is told states, in fixed sentences.
"""

import re
from collections.abc import Mapping

from retinue.edge.v1 import instance_service_pb2 as edge
from retinue.edge.v1 import instance_service_pb2_grpc as edge_grpc
from retinue.runtime_adapter.v1 import instance_service_pb2 as adapter_wire
from retinue.runtime_adapter.v1 import instance_service_pb2_grpc as adapter_grpc
from retinue_kit.client import Peer
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_kit.server import text_metadata

from retinue_gateway import fields
from retinue_gateway.calls import Context, caller_of
from retinue_gateway.decisions import Decisions

CHANGE_TIMEOUT_S = 30.0
"""Assigning or taking off an agent changes the configuration of a process that may be busy with turns: seconds."""

ASK_AGAIN_S = 60.0
"""Told where the adapter does not say when one may be free: somebody has to give theirs back first."""

RUNTIME = "openclaw"
"""The runtime that runs as processes of its own; the others are part of the adapter and have no instances."""

KIND = "chat"
"""The kind of runs that instances are for."""

AUTHORITY_KEY = "x-retinue-authority"
"""The host that the client's request named; Envoy writes it, and drops what a client sent under this name."""

SCHEME_KEY = "x-forwarded-proto"
"""How the client's connection was made; Envoy overwrites it with what it saw itself."""

SOCKET_PATH = "/v1/ws"

DETAILS = {
    "pending": "It is starting, or being made ready for its first message.",
    "ready": "It waits for messages.",
    "error": "It does not serve at present; messages are answered once it is replaced.",
}

_AUTHORITY = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""A host, with a port or without. Headers may hold more, such as a user name that hides which host follows."""


def chat_url(metadata: Mapping[str, str]) -> str:
    """Say where the WebSocket is for whoever made this request. Raises RetinueError(FIELD_INVALID)."""
    authority = metadata.get(AUTHORITY_KEY, "")
    if not _AUTHORITY.fullmatch(authority):
        raise RetinueError.field("Host", "must be a host, with or without a port.")
    scheme = "wss" if metadata.get(SCHEME_KEY) == "https" else "ws"
    return f"{scheme}://{authority}{SOCKET_PATH}"


def _shown(found: adapter_wire.Instance) -> edge.Instance:
    shown = edge.Instance(
        instance=found.instance_id,
        runtime=found.runtime,
        isolation=found.isolation,
        state=found.state,
        detail=DETAILS.get(found.state, ""),
        version=found.version,
    )
    if found.HasField("create_time"):
        shown.create_time.CopyFrom(found.create_time)
    return shown


def _reported(found: adapter_wire.Instance, tenant_id: str) -> edge.InstanceReport:
    report = edge.InstanceReport(
        instance=_shown(found),
        tenants=[tenant_id],
        tenant_count=1,
        memory_bytes=found.memory_bytes,
        running_count=found.running_count,
        waiting_count=found.waiting_count,
        backend=found.backend,
    )
    if found.HasField("use_time"):
        report.use_time.CopyFrom(found.use_time)
    return report


class InstanceServicer(edge_grpc.InstanceServiceServicer):
    """Serves retinue.edge.v1.InstanceService."""

    def __init__(self, policy: Peer, adapter: Peer) -> None:
        self._decisions = Decisions(policy)
        self._adapter = adapter
        self._instances = adapter_grpc.InstanceServiceStub(adapter.channel)

    async def GetInstanceStatus(
        self, request: edge.GetInstanceStatusRequest, context: Context
    ) -> edge.GetInstanceStatusResponse:
        return edge.GetInstanceStatusResponse(instance=_shown(await self._find(caller_of(context).tenant_id)))

    async def CreateInstance(
        self, request: edge.CreateInstanceRequest, context: Context
    ) -> edge.CreateInstanceResponse:
        tenant_id = caller_of(context).tenant_id
        asked = adapter_wire.CreateInstanceRequest(tenant_id=tenant_id, isolation=await self._isolation(tenant_id))
        try:
            answer: adapter_wire.CreateInstanceResponse = await self._adapter.call(
                self._instances.CreateInstance, asked, timeout_s=CHANGE_TIMEOUT_S
            )
        except RetinueError as error:
            if error.reason is not Reason.RUNTIME_UNAVAILABLE:
                raise
            text = "No instance is free for this tenant at the moment; try again."
            raise RetinueError(
                Reason.RUNTIME_UNAVAILABLE,
                text,
                private=error.message,
                retry_after_s=error.retry_after_s or ASK_AGAIN_S,
                runtime=RUNTIME,
            ) from error
        return edge.CreateInstanceResponse(instance=_shown(answer.instance))

    async def DeleteInstance(
        self, request: edge.DeleteInstanceRequest, context: Context
    ) -> edge.DeleteInstanceResponse:
        asked = adapter_wire.DeleteInstanceRequest(tenant_id=caller_of(context).tenant_id)
        await self._adapter.call(self._instances.DeleteInstance, asked, timeout_s=CHANGE_TIMEOUT_S)
        return edge.DeleteInstanceResponse()

    async def GetChatUrl(self, request: edge.GetChatUrlRequest, context: Context) -> edge.GetChatUrlResponse:
        if request.contact:
            fields.check_contact(request.contact)
        return edge.GetChatUrlResponse(url=chat_url(text_metadata(context)))

    async def ListInstances(self, request: edge.ListInstancesRequest, context: Context) -> edge.ListInstancesResponse:
        tenant_id = caller_of(context).tenant_id
        try:
            found = await self._find(tenant_id)
        except RetinueError as error:
            if error.reason is not Reason.INSTANCE_NOT_FOUND:
                raise
            return edge.ListInstancesResponse()
        return edge.ListInstancesResponse(instances=[_reported(found, tenant_id)])

    async def _find(self, tenant_id: str) -> adapter_wire.Instance:
        """Read the tenant's instance. Raises RetinueError(INSTANCE_NOT_FOUND)."""
        answer: adapter_wire.GetInstanceResponse = await self._adapter.call(
            self._instances.GetInstance, adapter_wire.GetInstanceRequest(tenant_id=tenant_id)
        )
        return answer.instance

    async def _isolation(self, tenant_id: str) -> str:
        """Ask how the tenant's chat is kept apart. Raises RetinueError(RUNTIME_UNAVAILABLE) if it needs no instance."""
        decision = await self._decisions.decide(tenant_id, KIND)
        if decision.runtime != RUNTIME:
            raise RetinueError(
                Reason.RUNTIME_UNAVAILABLE,
                f"Chat of this tenant runs on {decision.runtime}, which needs no instance.",
                code=Code.FAILED_PRECONDITION,  # asking again changes nothing: an operator would have to
                runtime=RUNTIME,
            )
        return decision.isolation
