"""The wire. Without a bundle format there is nothing to do but to say so."""

from typing import Any, NoReturn

import grpc
from retinue.portability.v1 import portability_service_pb2 as pb
from retinue.portability.v1 import portability_service_pb2_grpc
from retinue_kit.errors import Reason, RetinueError

Context = grpc.aio.ServicerContext[Any, Any]


def _refuse() -> NoReturn:
    raise RetinueError(
        Reason.CAPABILITY_MISSING,
        "Bundles are not available in this deployment: a session's context cannot be carried to another runtime.",
        capability="portability",
    )


class PortabilityServicer(portability_service_pb2_grpc.PortabilityServiceServicer):
    """Implements retinue.portability.v1.PortabilityService by refusing."""

    async def BuildBundle(self, request: pb.BuildBundleRequest, context: Context) -> pb.BuildBundleResponse:
        _refuse()

    async def VerifyBundle(self, request: pb.VerifyBundleRequest, context: Context) -> pb.VerifyBundleResponse:
        _refuse()
