"""How policy is assembled."""

import asyncio
from contextlib import AsyncExitStack, suppress

from retinue.policy.v1 import policy_service_pb2, policy_service_pb2_grpc
from retinue_kit import process, streams
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.loops import keep
from retinue_kit.server import Server, Service

from retinue_policy.clients import DirectoryTenants
from retinue_policy.config import Settings
from retinue_policy.domain.rules import Defaults
from retinue_policy.operations.breakers import Breakers
from retinue_policy.operations.decisions import Policy
from retinue_policy.service import PolicyServicer
from retinue_policy.store import BreakerStore

SERVICE = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server. Neither directory nor Redis is a condition of its health: what is known goes on without."""
    directory = Peer("directory", settings.directory_address)
    stack.push_async_callback(directory.close)
    defaults = Defaults(
        settings.concurrent_run_count, settings.attempt_count, settings.run_time_s, settings.output_size_bytes
    )
    clock, client = SystemClock(), streams.connect(settings.redis_url)
    stack.push_async_callback(client.aclose)
    breakers = Breakers(BreakerStore(client), clock, settings.runtimes_on)
    looking = keep("look", breakers.look_for_ever)

    async def stop() -> None:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    stack.push_async_callback(stop)
    tenants = DirectoryTenants(directory, clock)
    policy = Policy(tenants, breakers, settings.runtimes_on, settings.sticky_window_s, defaults)
    add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
    return Server(settings.address, [Service(add, PolicyServicer(policy, breakers), SERVICE)])


if __name__ == "__main__":
    process.main("policy", Settings, assemble)
