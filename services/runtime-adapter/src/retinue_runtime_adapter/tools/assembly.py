"""How the parts that tools are made of are put together, for every runtime of this process."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.config import Settings, read_mcp_servers
from retinue_runtime_adapter.tools.authority import POLICY, PolicyAuthority
from retinue_runtime_adapter.tools.box import SANDBOX, SandboxBox, SandboxFiles
from retinue_runtime_adapter.tools.builtin_files import file_tools
from retinue_runtime_adapter.tools.builtin_memory import memory_tools
from retinue_runtime_adapter.tools.builtin_notes import schedule_tools
from retinue_runtime_adapter.tools.builtin_run import run_tools
from retinue_runtime_adapter.tools.catalogue import Catalogue
from retinue_runtime_adapter.tools.mcp import McpServers
from retinue_runtime_adapter.tools.ports import Authority, Box, Call, Scope, Tool, Toolbox, Verdict


@dataclass(frozen=True, slots=True)
class Tools:
    """All that a runtime needs for tools."""

    toolbox: Toolbox
    authority: Authority
    box: Box | None = None


class _Nobody:
    """Authorizes nothing."""

    async def authorize(self, scope: Scope, call: Call, *, approved: bool = False) -> Verdict:
        raise RetinueError.unavailable(POLICY, private="there is none")


NONE = Tools(Catalogue(()), _Nobody())
"""Of a process without tools: a run that comes back to it with calls is told that there are none."""


def assemble(settings: Settings, clock: Clock, stack: AsyncExitStack) -> Tools | None:
    """Make the tools that the settings allow; None where nobody could authorize one, so that none is offered."""
    servers = read_mcp_servers(settings)
    if not settings.policy_address:
        return None
    builtin: list[Tool] = []
    box: Box | None = None
    if settings.sandbox_address:
        sandbox = _peer(SANDBOX, settings.sandbox_address, stack)
        files, box = SandboxFiles(sandbox), SandboxBox(sandbox)
        builtin += [*file_tools(files), *run_tools(box)]
    if settings.router_address:
        router = _peer("router", settings.router_address, stack)
        builtin += [*memory_tools(router), *schedule_tools(router)]
    authority = PolicyAuthority(_peer(POLICY, settings.policy_address, stack))
    return Tools(Catalogue(builtin, McpServers(servers, clock) if servers else None), authority, box)


def _peer(name: str, address: str, stack: AsyncExitStack) -> Peer:
    peer = Peer(name, address)
    stack.push_async_callback(peer.close)
    return peer
