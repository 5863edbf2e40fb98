"""The wire. Without a box nothing is executed: each call is refused."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue.sandbox.v1 import sandbox_service_pb2_grpc
from retinue_kit.errors import Reason, RetinueError

Context = grpc.aio.ServicerContext[Any, Any]


class SandboxServicer(sandbox_service_pb2_grpc.SandboxServiceServicer):
    """Implements retinue.sandbox.v1.SandboxService by refusing."""

    def Exec(self, request: pb.ExecRequest, context: Context) -> AsyncIterator[pb.ExecResponse]:
        raise RetinueError(
            Reason.CAPABILITY_MISSING,
            "There is no sandbox in this deployment, and nothing is executed outside of one.",
            capability="sandbox",
        )
