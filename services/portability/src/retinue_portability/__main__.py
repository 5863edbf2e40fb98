"""How portability is assembled."""

from contextlib import AsyncExitStack

from retinue.portability.v1 import portability_service_pb2, portability_service_pb2_grpc
from retinue_kit import process
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server, Service

from retinue_portability.clients import AdapterModel, DirectoryAgents, RouterLogs, RouterMemory
from retinue_portability.config import Settings
from retinue_portability.format.signing import Signer
from retinue_portability.operations.building import Building, Reading
from retinue_portability.operations.checking import Checking
from retinue_portability.operations.importing import Importing
from retinue_portability.operations.summing_up import SummingUp
from retinue_portability.service import PortabilityServicer

SERVICE = portability_service_pb2.DESCRIPTOR.services_by_name["PortabilityService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server. No neighbour is a condition of its health: bundles can be checked without any.

    Raises SettingError if the key cannot be used.
    """
    signer = Signer.load(settings.bundle_signing_key_file, settings.bundle_former_keys)
    router, directory = Peer("router", settings.router_address), Peer("directory", settings.directory_address)
    stack.push_async_callback(router.close)
    stack.push_async_callback(directory.close)
    model = None
    if settings.runtime_adapter_address:
        adapter = Peer("runtime-adapter", settings.runtime_adapter_address)
        stack.push_async_callback(adapter.close)
        model = AdapterModel(adapter)
    logs, memory, clock = RouterLogs(router), RouterMemory(router), SystemClock()
    reading, checking = Reading(logs), Checking(signer)
    budget = settings.bundle_token_budget
    servicer = PortabilityServicer(
        Building(reading, memory, DirectoryAgents(directory), signer, budget),
        checking,
        Importing(checking, logs, memory),
        SummingUp(reading, model, clock, budget),
    )
    add = portability_service_pb2_grpc.add_PortabilityServiceServicer_to_server
    return Server(settings.address, [Service(add, servicer, SERVICE)])


if __name__ == "__main__":
    process.main("portability", Settings, assemble)
