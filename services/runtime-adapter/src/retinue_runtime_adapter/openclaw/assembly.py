"""How the parts that drive OpenClaw are put together."""

from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import msgspec
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.config import SettingError

from retinue_runtime_adapter.config import Models, Settings
from retinue_runtime_adapter.openclaw import tool_policy
from retinue_runtime_adapter.openclaw.adapter import OpenClawAdapter, Runs
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

PROGRAM = Path("node_modules/openclaw/openclaw.mjs")
"""OpenClaw's program, in the folder of an installation; its package says its release beside it."""


class _Package(msgspec.Struct):
    version: str


async def assemble(
    settings: Settings, models: Models, http: aiohttp.ClientSession, clock: Clock, stack: AsyncExitStack
) -> tuple[OpenClawAdapter, InstancePool]:
    """Begin to keep gateways running. Raises SettingError; that OpenClaw is missing is told by the pool's status."""
    proxy = LoopbackModelProxy(settings, models, http, clock)
    await proxy.start()
    stack.push_async_callback(proxy.close)
    runs: Runs = {}
    bridge = await _bridge(settings, runs, stack) if settings.sandbox_address else None
    version = _version(settings)

    def connect(address: str, token: str) -> WebSocketGateway:
        return WebSocketGateway(address, token, clock)

    policies = SamePolicies(settings, bridge)
    pool = InstancePool(settings, _backend(settings), proxy, policies, clock, connect=connect, version=version)
    stack.push_async_callback(pool.close)
    await pool.start()
    orphan_s = settings.openclaw_orphan_s
    adapter = OpenClawAdapter(pool, proxy, models.catalogue, runs, orphan_s=orphan_s, version=version)
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
        tools = [tool.described() for tool in bridge.tools.values()]
        return tool_policy.policy(self._folder, self._url, bridge.credential(instance_id), tools=tools)

    def forget(self, instance_id: str) -> None:
        if self._bridge is not None:
            self._bridge.forget(instance_id)


async def _bridge(settings: Settings, runs: Runs, stack: AsyncExitStack) -> Bridge:
    sandbox = Peer("sandbox", settings.sandbox_address)
    stack.push_async_callback(sandbox.close)
    bridge = Bridge(sandbox, lambda *who: runs.get(who))
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
