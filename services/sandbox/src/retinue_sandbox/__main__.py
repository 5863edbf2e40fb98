"""How the sandbox is assembled."""

from contextlib import AsyncExitStack

from retinue.sandbox.v1 import sandbox_service_pb2, sandbox_service_pb2_grpc
from retinue_kit import process
from retinue_kit.server import Server, Service

from retinue_sandbox.config import Settings
from retinue_sandbox.service import SandboxServicer

SERVICE = sandbox_service_pb2.DESCRIPTOR.services_by_name["SandboxService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server; it depends on nothing."""
    add = sandbox_service_pb2_grpc.add_SandboxServiceServicer_to_server
    return Server(settings.address, [Service(add, SandboxServicer(), SERVICE)])


if __name__ == "__main__":
    process.main("sandbox", Settings, assemble)
