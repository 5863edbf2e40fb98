"""How portability is assembled."""

from contextlib import AsyncExitStack

from retinue.portability.v1 import portability_service_pb2, portability_service_pb2_grpc
from retinue_kit import process
from retinue_kit.server import Server, Service

from retinue_portability.config import Settings
from retinue_portability.service import PortabilityServicer

SERVICE = portability_service_pb2.DESCRIPTOR.services_by_name["PortabilityService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server; it depends on nothing."""
    add = portability_service_pb2_grpc.add_PortabilityServiceServicer_to_server
    return Server(settings.address, [Service(add, PortabilityServicer(), SERVICE)])


if __name__ == "__main__":
    process.main("portability", Settings, assemble)
