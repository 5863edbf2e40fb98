"""How policy is assembled."""

from contextlib import AsyncExitStack

from retinue.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from retinue_kit import process
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server, Service

from retinue_policy.clients import DirectoryTenants
from retinue_policy.config import Settings
from retinue_policy.domain.rules import Defaults
from retinue_policy.operations import Policy
from retinue_policy.service import PolicyServicer

SERVICE = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server. The directory is no condition of its health: what is remembered goes on without."""
    directory = Peer("directory", settings.directory_address)
    stack.push_async_callback(directory.close)
    defaults = Defaults(
        settings.concurrent_run_count, settings.attempt_count, settings.run_time_s, settings.output_size_bytes
    )
    tenants = DirectoryTenants(directory, SystemClock())
    policy = Policy(tenants, settings.runtimes_on, settings.sticky_window_s, defaults)
    add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
    return Server(settings.address, [Service(add, PolicyServicer(policy), SERVICE)])


if __name__ == "__main__":
    process.main("policy", Settings, assemble)
