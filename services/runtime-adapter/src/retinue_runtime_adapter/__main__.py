"""How the runtime adapter is assembled."""

from contextlib import AsyncExitStack

from retinue_kit import process
from retinue_kit.clock import SystemClock
from retinue_kit.server import Server

from retinue_runtime_adapter import instances, model_service
from retinue_runtime_adapter.adapter import Adapter, Registry
from retinue_runtime_adapter.config import Settings, read_models, read_runtimes
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.openclaw import assembly
from retinue_runtime_adapter.openclaw.pool import InstancePool
from retinue_runtime_adapter.plain import embedding, windows
from retinue_runtime_adapter.plain.summarizing import Summarizer
from retinue_runtime_adapter.service import service
from retinue_runtime_adapter.tools import assembly as tool_assembly


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Build the runtimes that are on, and the server in front of them."""
    names, models, clock = read_runtimes(settings), read_models(settings), SystemClock()
    windows.warn(models.catalogue, settings)
    adapters: list[Adapter] = []
    pool: InstancePool | None = None
    tools = tool_assembly.assemble(settings, clock, stack)
    http = session(settings)
    stack.push_async_callback(http.close)
    if "light" in names:
        light = LightAdapter(settings, models, session(settings), clock, tools)
        stack.push_async_callback(light.close)
        adapters.append(light)
    if "openclaw" in names:
        openclaw, pool = await assembly.assemble(settings, models, http, clock, stack, tools)
        adapters.append(openclaw)
    embedding_models = embedding.read_models(settings, models)
    embedder = embedding.Embedder(settings, embedding_models, http, clock) if embedding_models else None
    plain = model_service.service(Summarizer(settings, models, http, clock), embedder)
    return Server(settings.address, [service(Registry(adapters)), instances.service(pool), plain])


if __name__ == "__main__":
    process.main("runtime-adapter", Settings, assemble)
