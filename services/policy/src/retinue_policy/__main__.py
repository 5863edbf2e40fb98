"""How policy is assembled."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from retinue.policy.v1 import policy_service_pb2, policy_service_pb2_grpc, tool_service_pb2, tool_service_pb2_grpc
from retinue_kit import process, streams
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.config import SettingError
from retinue_kit.loops import keep
from retinue_kit.server import Server, Service

from retinue_policy import runtimes_toml
from retinue_policy.clients import AdapterRuntimes, DirectoryTenants
from retinue_policy.config import Settings
from retinue_policy.domain.preferences import RuntimeRules
from retinue_policy.domain.snapshot import Defaults
from retinue_policy.operations.breakers import Breakers
from retinue_policy.operations.decisions import Deployment, Policy
from retinue_policy.operations.presence import Presence
from retinue_policy.operations.replay import Replaying
from retinue_policy.operations.rulebook import RUNTIMES, BadRulesError, Rulebook
from retinue_policy.operations.tools import Rules, Tools, Vetoing
from retinue_policy.rule_files import RuleFiles, RuntimeFile
from retinue_policy.service import PolicyServicer
from retinue_policy.store import BreakerStore
from retinue_policy.tool_service import ToolServicer

SERVICE = policy_service_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
TOOLS = tool_service_pb2.DESCRIPTOR.services_by_name["ToolService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the server. No neighbour is a condition of its health: what is known goes on without.

    Raises SettingError if the rules cannot be followed.
    """
    rulebook, runtime_rulebook = _rulebooks(settings)
    directory = Peer("directory", settings.directory_address)
    stack.push_async_callback(directory.close)
    defaults = Defaults(
        settings.concurrent_run_count, settings.attempt_count, settings.run_time_s, settings.output_size_bytes
    )
    clock, client = SystemClock(), streams.connect(settings.redis_url)
    stack.push_async_callback(client.aclose)
    breakers = Breakers(BreakerStore(client), clock, settings.runtimes_on)
    describing = None
    if settings.runtime_adapter_address:
        adapter = Peer("runtime-adapter", settings.runtime_adapter_address)
        stack.push_async_callback(adapter.close)
        describing = AdapterRuntimes(adapter)
    presence = Presence(describing, clock, settings.runtimes_on)
    looking = [
        keep("look", breakers.look_for_ever),
        keep("presence", presence.look_for_ever),
        keep("rules", rulebook.look_for_ever),
        keep("runtime rules", runtime_rulebook.look_for_ever),
    ]

    async def stop() -> None:
        for loop in looking:
            loop.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    stack.push_async_callback(stop)
    tenants = DirectoryTenants(directory, clock)
    tools = Tools(tenants, rulebook, _vetoing(settings, stack))
    deployment = Deployment(settings.runtimes_on, settings.plans_with_cells, settings.sticky_window_s, defaults)
    policy = Policy(tenants, breakers, presence, runtime_rulebook, deployment, tools.offer)
    add = policy_service_pb2_grpc.add_PolicyServiceServicer_to_server
    add_tools = tool_service_pb2_grpc.add_ToolServiceServicer_to_server
    services = [
        Service(add, PolicyServicer(policy, breakers, Replaying(runtimes_toml.parse)), SERVICE),
        Service(add_tools, ToolServicer(tools, policy), TOOLS),
    ]
    return Server(settings.address, services)


def _vetoing(settings: Settings, stack: AsyncExitStack) -> Vetoing | None:
    if not settings.before_tool_call_url:
        return None
    # Imported where it is used: it takes a dozen MiB, and few deployments have such an endpoint.
    from retinue_policy.before_call import Endpoint

    endpoint = Endpoint(settings.before_tool_call_url, settings.before_tool_call_timeout_s)
    stack.push_async_callback(endpoint.close)
    return endpoint


def _rulebooks(settings: Settings) -> tuple[Rulebook[Rules], Rulebook[RuntimeRules]]:
    folder = Path(settings.policy_dir) if settings.policy_dir else None
    try:
        return Rulebook(RuleFiles(folder)), Rulebook(RuntimeFile(folder), RUNTIMES)
    except BadRulesError as error:
        raise SettingError(f"RETINUE_POLICY_DIR={settings.policy_dir!r}: {error}.") from None


if __name__ == "__main__":
    process.main("policy", Settings, assemble)
