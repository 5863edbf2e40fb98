"""Tenants as the directory knows them, remembered for a while; runtimes as the runtime-adapter knows them."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from retinue.directory.v1 import directory_service_pb2 as pb
from retinue.directory.v1 import directory_service_pb2_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_policy.domain.snapshot import Load, Tenant
from retinue_policy.operations.presence import Described

FRESH_S = 5.0
"""A changed setting takes effect within this time."""

STALE_S = 600.0
"""If the directory does not answer, what it said this long ago still holds: a restart of it stops nobody."""

RETRY_S = 1.0
"""After a failure the directory is left alone this long, so that a directory that hangs delays one call a second."""

TENANTS_MAX = 20_000
"""Tenants remembered, the least recently used forgotten first; some 10 MB."""

TIMEOUT_S = 1.0
"""A run waits for the directory's answer before its first token; the runtime-adapter has its own at hand."""


@dataclass(slots=True)
class _Known:
    tenant: Tenant
    read_time: float
    ask_time: float


class DirectoryTenants:
    """Implements operations.Tenants; no I/O for a tenant that was read a moment ago."""

    def __init__(self, directory: Peer, clock: Clock) -> None:
        self._peer = directory
        self._stub: Any = directory_service_pb2_grpc.DirectoryServiceStub(directory.channel)
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def tenant(self, tenant_id: str) -> Tenant:
        now = self._clock.monotonic()
        known = self._known.get(tenant_id)
        if known is not None and now < known.ask_time:
            self._known.move_to_end(tenant_id)
            return known.tenant
        try:
            tenant = await self._ask(tenant_id)
        except RetinueError as error:
            return self._remembered(tenant_id, error)
        self._known[tenant_id] = _Known(tenant, now, now + FRESH_S)
        self._known.move_to_end(tenant_id)
        if len(self._known) > TENANTS_MAX:
            self._known.popitem(last=False)
        return tenant

    def _remembered(self, tenant_id: str, error: RetinueError) -> Tenant:
        """Answer what was read before the directory fell silent; raise if it is too old or the tenant is gone."""
        if error.reason is Reason.TENANT_NOT_FOUND:
            self._known.pop(tenant_id, None)
            raise error
        now = self._clock.monotonic()
        known = self._known.get(tenant_id)
        if known is None or now - known.read_time > STALE_S:
            raise RetinueError.unavailable("directory", private=error.private or error.message) from error
        known.ask_time = now + RETRY_S
        return known.tenant

    async def _ask(self, tenant_id: str) -> Tenant:
        request = pb.GetTenantRequest(tenant_id=tenant_id)
        response = await self._peer.call(self._stub.GetTenant, request, timeout_s=TIMEOUT_S)
        found = response.tenant
        return Tenant(
            concurrent_run_count=found.settings.concurrent_run_count,
            preferred_runtime=found.settings.preferred_runtime,
            weight=found.settings.weight,
            model=found.agent.model,
            plan=found.plan,
            agent_id=found.agent.agent_id,
        )


class AdapterRuntimes:
    """Implements presence.Describing."""

    def __init__(self, adapter: Peer) -> None:
        self._peer = adapter
        self._stub: Any = adapter_grpc.RuntimeAdapterServiceStub(adapter.channel)

    async def describe(self) -> dict[str, Described]:
        request = adapter_pb.DescribeRuntimesRequest()
        response = await self._peer.call(self._stub.DescribeRuntimes, request, timeout_s=TIMEOUT_S)
        return {one.name: _described(one) for one in response.runtimes}


def _described(runtime: adapter_pb.Runtime) -> Described:
    windows = dict.fromkeys(runtime.models, 0)
    windows.update(zip(runtime.models, runtime.window_tokens, strict=False))
    return Described(
        away=None if runtime.available else runtime.detail,
        load=Load(runtime.slot_count, runtime.busy_count, runtime.waiting_count),
        tools=runtime.tools,
        windows=windows,
    )
