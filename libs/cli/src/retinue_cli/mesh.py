"""Calls into the mesh by its unix sockets, for whoever may read the state folder: no token needed."""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status
from retinue.directory.v1 import directory_service_pb2 as directory
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.router.v1 import router_service_pb2 as router
from retinue.router.v1 import router_service_pb2_grpc as router_grpc

from retinue_cli.failures import CommandError
from retinue_cli.state import State

R = TypeVar("R")

CALL_TIMEOUT_S = 10.0
"""A person waits; the mesh itself answers in milliseconds, or says that something is away."""


class Mesh:
    """A running mesh. Use it with `with`."""

    def __init__(self, state: State) -> None:
        state.require()
        self._channels = {name: self._connect(state.paths.address(name), name) for name in ("directory", "router")}
        # The stubs are typed for asyncio alone; a command makes one call after another.
        directory_channel: Any = self._channels["directory"]
        router_channel: Any = self._channels["router"]
        self._directory: Any = directory_grpc.DirectoryServiceStub(directory_channel)
        self._router: Any = router_grpc.RouterServiceStub(router_channel)

    @staticmethod
    def _connect(address: str, name: str) -> grpc.Channel:
        return grpc.insecure_channel(address, options=[("grpc.default_authority", name), ("grpc.enable_http_proxy", 0)])

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()

    def make_tenant(self, name: str) -> directory.Tenant:
        """Find a tenant by name, or make it."""
        answer: directory.CreateTenantResponse = call(
            self._directory.CreateTenant, directory.CreateTenantRequest(name=name)
        )
        return answer.tenant

    def read_tenant(self, name: str) -> directory.Tenant:
        """Find a tenant that must be there, by name."""
        answer: directory.GetTenantResponse = call(self._directory.GetTenant, directory.GetTenantRequest(name=name))
        return answer.tenant

    def update_tenant(self, tenant_id: str, plan: str, settings: directory.TenantSettings) -> directory.Tenant:
        """Change a tenant's plan, if one is given, and its settings, whole."""
        request = directory.UpdateTenantRequest(tenant_id=tenant_id, plan=plan, settings=settings)
        answer: directory.UpdateTenantResponse = call(self._directory.UpdateTenant, request)
        return answer.tenant

    def tenants(self) -> list[directory.Tenant]:
        """List all tenants by name."""
        found: list[directory.Tenant] = []
        request = directory.ListTenantsRequest(page_size=200)
        while True:
            answer: directory.ListTenantsResponse = call(self._directory.ListTenants, request)
            found.extend(answer.tenants)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def issue(self, tenant_id: str, user: str, scopes: list[str], ttl_s: int | None) -> str:
        """Have a token signed; the directory's own defaults where user, scopes or time are not given."""
        request = directory.IssueTokenRequest(tenant_id=tenant_id, user=user, scopes=scopes)
        if ttl_s:
            request.ttl.CopyFrom(Duration(seconds=ttl_s))
        answer: directory.IssueTokenResponse = call(self._directory.IssueToken, request)
        return answer.token

    def revoke(self, jti: str, expires: int | None) -> None:
        """Have a token refused from now on; `expires` in seconds since the epoch, if it is known."""
        request = directory.RevokeTokenRequest(jti=jti)
        if expires:
            request.expire_time.CopyFrom(Timestamp(seconds=expires))
        call(self._directory.RevokeToken, request)

    def trace_id(self, tenant_id: str, run_id: str) -> str:
        """Find the trace that a run belongs to; empty if it was not traced."""
        answer: router.GetRunResponse = call(
            self._router.GetRun, router.GetRunRequest(tenant_id=tenant_id, run_id=run_id)
        )
        return answer.run.trace_id


def call(method: Callable[..., R], request: object) -> R:
    """Make a call; whatever it ends with other than an answer becomes a CommandError of one line."""
    try:
        return method(request, timeout=CALL_TIMEOUT_S, wait_for_ready=False)
    except grpc.RpcError as error:
        raise CommandError(sentence(error)) from None


def sentence(error: Any) -> str:
    """Say what a failed call was refused with."""
    status = rpc_status.from_call(error)
    if status is not None and status.message:
        return str(status.message)
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return "The mesh does not answer on its socket: retinue status says what runs."
    return f"The mesh refused: {error.details() or error.code().name}."
