"""The wire of instances: each call is one of the pool's. Without a pool there are none."""

from typing import Any

import grpc
from retinue.runtime_adapter.v1 import instance_service_pb2 as wire
from retinue.runtime_adapter.v1 import instance_service_pb2_grpc as wire_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service

from retinue_runtime_adapter.openclaw.ports import Isolation, Pool

LISTED_MAX = 1000
"""Instances in a list, as the contract bounds it; an adapter has a few dozen."""

Context = grpc.aio.ServicerContext[Any, Any]


class InstanceServicer(wire_grpc.InstanceServiceServicer):
    """Serves retinue.runtime_adapter.v1.InstanceService."""

    def __init__(self, pool: Pool | None) -> None:
        self._pool = pool

    async def ListInstances(self, request: wire.ListInstancesRequest, context: Context) -> wire.ListInstancesResponse:
        found = self._pool.instances() if self._pool else []
        return wire.ListInstancesResponse(instances=found[:LISTED_MAX])

    async def GetInstance(self, request: wire.GetInstanceRequest, context: Context) -> wire.GetInstanceResponse:
        if self._pool is None:
            raise _none()
        return wire.GetInstanceResponse(instance=self._pool.instance_of(request.tenant_id))

    async def CreateInstance(
        self, request: wire.CreateInstanceRequest, context: Context
    ) -> wire.CreateInstanceResponse:
        if self._pool is None:
            text = "No runtime that is switched on here runs in instances."
            raise RetinueError(Reason.RUNTIME_UNAVAILABLE, text, runtime="openclaw")
        isolation = Isolation(request.isolation or Isolation.SHARED)
        return wire.CreateInstanceResponse(instance=await self._pool.create(request.tenant_id, isolation))

    async def DeleteInstance(
        self, request: wire.DeleteInstanceRequest, context: Context
    ) -> wire.DeleteInstanceResponse:
        if self._pool is None:
            raise _none()
        await self._pool.delete(request.tenant_id)
        return wire.DeleteInstanceResponse()


def _none() -> RetinueError:
    return RetinueError(Reason.INSTANCE_NOT_FOUND, "No instance serves this tenant.")


def service(pool: Pool | None) -> Service:
    """The service, ready to be added to a server; None where no runtime has instances."""
    name = wire.DESCRIPTOR.services_by_name["InstanceService"].full_name
    return Service(wire_grpc.add_InstanceServiceServicer_to_server, InstanceServicer(pool), name)
