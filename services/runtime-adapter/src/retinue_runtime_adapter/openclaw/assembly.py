"""How the parts that drive OpenClaw are put together."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from retinue_kit.clock import Clock
from retinue_kit.config import SettingError

from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.openclaw import tool_policy
from retinue_runtime_adapter.openclaw.adapter import NAME, OpenClawAdapter, Runs
from retinue_runtime_adapter.openclaw.backends.contained import PLUGIN_FOLDER
from retinue_runtime_adapter.openclaw.backends.docker import DockerBackend
from retinue_runtime_adapter.openclaw.backends.kubernetes import KubernetesBackend
from retinue_runtime_adapter.openclaw.backends.process import ProcessBackend
from retinue_runtime_adapter.openclaw.bridge import Bridge
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.gateway_config import Policies, Policy
from retinue_runtime_adapter.openclaw.listening import endpoint
from retinue_runtime_adapter.openclaw.model_proxy import LoopbackModelProxy
from retinue_runtime_adapter.openclaw.pool import InstancePool
from retinue_runtime_adapter.openclaw.ports import Backend
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.ports import Box, Scope, Tool

PROGRAM = Path("node_modules/openclaw/openclaw.mjs")
"""OpenClaw's program, in the folder of an installation; its package says its release beside it."""


class _Package(msgspec.Struct):
    version: str


async def assemble(
    settings: Settings,
    models: Models,
    http: aiohttp.ClientSession,
    clock: Clock,
    stack: AsyncExitStack,
    tools: Tools | None = None,
) -> tuple[OpenClawAdapter, InstancePool]:
    """Begin to keep gateways running. Raises SettingError; that OpenClaw is missing is told by the pool's status.

    Agents have tools where there is a sandbox, somebody who authorizes calls, and a way from gateways to both.
    """
    proxy = LoopbackModelProxy(settings, models, http, clock)
    await proxy.start()
    stack.push_async_callback(proxy.close)
    runs: Runs = {}
    bridge = None
    is_reached = settings.openclaw_backend == "process" or bool(settings.openclaw_bridge_url)
    if settings.openclaw_tools and is_reached and tools is not None and tools.box is not None:
        bridge = await _bridge(settings, tools, tools.box, runs, stack)
    version = _version(settings)

    def connect(address: str, token: str) -> WebSocketGateway:
        return WebSocketGateway(address, token, clock)

    policies = SamePolicies(settings, bridge)
    pool = InstancePool(settings, _backend(settings), proxy, policies, clock, connect=connect, version=version)
    stack.push_async_callback(pool.close)
    await pool.start()
    orphan_s = settings.openclaw_orphan_s
    box = tools.box if tools is not None and bridge is not None else None
    adapter = OpenClawAdapter(
        pool,
        proxy,
        models.catalogue,
        runs,
        orphan_s=orphan_s,
        version=version,
        box=box,
        window_min_tokens=settings.window_min_tokens,
    )
    stack.push_async_callback(adapter.close)
    return adapter, pool


class SamePolicies(Policies):
    """Every instance may do the same; what it calls our tools with is its own."""

    def __init__(self, settings: Settings, bridge: Bridge | None) -> None:
        self._folder = _plugin_dir(settings)
        self._bridge = bridge
        self._url = settings.openclaw_bridge_url or (bridge.base_url if bridge else "")

    def of(self, instance_id: str) -> Policy:
        bridge = self._bridge
        if bridge is None:
            return tool_policy.policy(self._folder, "", "")
        allowed = [*tool_policy.BOX_TOOLS, *bridge.tools]
        tools = [_described(tool) for tool in bridge.tools.values()]
        token = bridge.credential(instance_id)
        return tool_policy.policy(self._folder, self._url, token, allowed=allowed, tools=tools)

    def forget(self, instance_id: str) -> None:
        if self._bridge is not None:
            self._bridge.forget(instance_id)


def _described(tool: Tool) -> dict[str, Any]:
    """Describe a tool as the plugin's configuration does."""
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


async def _bridge(settings: Settings, tools: Tools, box: Box, runs: Runs, stack: AsyncExitStack) -> Bridge:
    nobody = Scope(tenant_id="", session_id="", run_id="", fencing_token=0, runtime=NAME)
    found = [await tools.toolbox.find(nobody, name) for name in tool_policy.MESH_TOOLS]
    known = [tool for tool in found if tool is not None]
    bridge = Bridge(box, tools.authority, lambda *who: runs.get(who), tools=known)
    host, port = endpoint("RETINUE_OPENCLAW_BRIDGE_ADDRESS", settings.openclaw_bridge_address)
    try:
        await bridge.start(host, port)
    except OSError as error:
        raise SettingError(
            f"RETINUE_OPENCLAW_BRIDGE_ADDRESS={settings.openclaw_bridge_address!r}: {error.strerror}."
        ) from None
    stack.push_async_callback(bridge.close)
    return bridge


def _plugin_dir(settings: Settings) -> str:
    """Where a gateway finds our plugin: here, or in its image."""
    return str(tool_policy.PLUGIN_DIR) if settings.openclaw_backend == "process" else PLUGIN_FOLDER


def _backend(settings: Settings) -> Backend:
    if settings.openclaw_backend == "docker":
        return DockerBackend(settings)
    if settings.openclaw_backend == "kubernetes":
        return KubernetesBackend(settings)
    if settings.openclaw_backend != "process":
        found = settings.openclaw_backend
        raise SettingError(f"RETINUE_OPENCLAW_BACKEND={found!r} is none of process, docker, kubernetes.")
    for name in ("openclaw_dir", "openclaw_state_dir"):
        if not getattr(settings, name):
            raise SettingError(f"RETINUE_{name.upper()} is not set, and OpenClaw is switched on.")
    return ProcessBackend(settings)


def _version(settings: Settings) -> str:
    """The release that is installed; "" where it is in an image, or not there."""
    try:
        package = (Path(settings.openclaw_dir) / PROGRAM).with_name("package.json").read_bytes()
        return msgspec.json.decode(package, type=_Package).version
    except (OSError, msgspec.DecodeError):
        return ""
