"""How the runtime adapter is assembled."""

from contextlib import AsyncExitStack

from retinue_kit import process
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server

from retinue_runtime_adapter.adapter import Adapter, Registry
from retinue_runtime_adapter.config import Settings, read_models, read_runtimes
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.service import service


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the runtimes that are on, and the server in front of them."""
    adapters: list[Adapter] = []
    if "light" in read_runtimes(settings):
        adapters.append(LightAdapter(settings, read_models(settings), session(settings), SystemClock()))
    for adapter in adapters:
        stack.push_async_callback(adapter.close)
    return Server(settings.address, [service(Registry(adapters))])


if __name__ == "__main__":
    process.main("runtime-adapter", Settings, assemble)
