"""How the runtime adapter is assembled."""

from contextlib import AsyncExitStack

from retinue_kit import process
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server

from retinue_runtime_adapter import instances
from retinue_runtime_adapter.adapter import Adapter, Registry
from retinue_runtime_adapter.config import Settings, read_models, read_runtimes
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.openclaw import assembly
from retinue_runtime_adapter.openclaw.pool import InstancePool
from retinue_runtime_adapter.service import service
from retinue_runtime_adapter.tools import assembly as tool_assembly


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the runtimes that are on, and the server in front of them."""
    names, models, clock = read_runtimes(settings), read_models(settings), SystemClock()
    adapters: list[Adapter] = []
    pool: InstancePool | None = None
    tools = tool_assembly.assemble(settings, clock, stack)
    if "light" in names:
        light = LightAdapter(settings, models, session(settings), clock, tools)
        stack.push_async_callback(light.close)
        adapters.append(light)
    if "openclaw" in names:
        http = session(settings)
        stack.push_async_callback(http.close)
        openclaw, pool = await assembly.assemble(settings, models, http, clock, stack, tools)
        adapters.append(openclaw)
    return Server(settings.address, [service(Registry(adapters)), instances.service(pool)])


if __name__ == "__main__":
    process.main("runtime-adapter", Settings, assemble)
