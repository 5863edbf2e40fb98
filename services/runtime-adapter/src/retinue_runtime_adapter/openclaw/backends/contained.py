"""What instances in containers have in common, whoever runs those: what is in them, and what they may do.

Inside, `entry.mjs` begins the gateway on loopback and relays to it. State lies in memory: no token and nothing that a
tenant said is written to a disk. So nothing of the folder that a specification names is used.
"""

import asyncio
import hashlib
import ipaddress
import math
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import structlog
from retinue_kit.errors import RETRY_AFTER_S, Reason, RetinueError

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.ports import InstanceSpec

log: structlog.stdlib.BoundLogger = structlog.get_logger()

INSTANCE_LABEL = "retinue.instance"
OWNER_LABEL = "retinue.owner"

GATEWAY_PORT = 18789
"""Port of the gateway on the container's loopback; each container has its own."""

RELAY_PORT = 18790
"""Port of the relay in front of it."""

USER = 10001
"""User and group of all its processes; nobody in the image, with no right to anything there."""

STATE_FOLDER = "/var/lib/retinue"
"""Where memory is mounted for its state; entry.mjs makes the instance's own folder in it."""

PLUGIN_FOLDER = "/opt/retinue/plugin"
"""Where the image has our plugin, for the configuration."""

STATE_MIB = 512
"""Room of its state. A busy gateway's databases and logs take a tenth of it."""

SCRATCH_MIB = 64
"""Room of /tmp, where OpenClaw keeps locks."""

ABANDONED_S = 300
"""An instance to which nobody is connected for so long ends itself: its adapter always is, while it lives."""

ENDED_AGE_S = 300.0
"""Age at which an ended instance of any owner is removed; a younger one may just be on its way up."""

LISTED_MAX = 500
"""Instances asked for at once; more than one engine or namespace is meant to hold."""

SWEEP_TIMEOUT_S = 60.0
"""For leftovers to be removed before the first instance is begun; what is left then, the next start removes."""

CALL_TIMEOUT_S = 10.0
"""For one call to an engine or API server: a slow disk, not a hung one."""

GONE_TIMEOUT_S = 20.0
"""For a container or pod to be gone after it was killed."""

CLOSE_GRACE_S = 5.0
"""Grace of each instance when the adapter itself ends; runs are over by then."""

POLL_S = 0.2
"""Between two looks at something that is coming up or going away."""

GATEWAY_ENVIRONMENT = {
    "OPENCLAW_DISABLE_BONJOUR": "1",
    "OPENCLAW_NO_AUTO_UPDATE": "1",
    "OPENCLAW_NO_RESPAWN": "1",
    # Else the gateway begins itself once more, as a child of a process that then only waits.
    "OPENCLAW_PACKAGED_COMPILE_CACHE_RESPAWNED": "1",
    "OPENCLAW_EXEC_SHELL_SNAPSHOT": "0",
    "OPENCLAW_SKIP_CHANNELS": "1",
    "OPENCLAW_SKIP_CANVAS_HOST": "1",
    "OPENCLAW_SKIP_CRON": "1",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    "NO_COLOR": "1",
}
"""Switches off what no instance needs. No secret is ever among them: an engine shows them to whoever may look."""

_OWNER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


def unavailable(message: str, private: str = "") -> RetinueError:
    """Say that instances cannot be begun, or not be seen, for the moment; what an engine said of it goes to the log."""
    if private:
        log.warning("an engine or cluster did not do as asked", error=message, detail=private)
    return RetinueError(Reason.RUNTIME_UNAVAILABLE, message, private=private, retry_after_s=RETRY_AFTER_S)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(settings: Settings) -> None:
    """Refuse settings with which no container could work. Raises RUNTIME_UNAVAILABLE."""
    if not settings.openclaw_image:
        raise unavailable("RETINUE_OPENCLAW_IMAGE is not set: it names the image of an instance.")
    host = urlsplit(settings.openclaw_proxy_url).hostname
    if not host or _is_loopback(host):
        raise unavailable(
            "RETINUE_OPENCLAW_PROXY_URL must say how a container reaches the model endpoint of this process."
        )
    if settings.openclaw_owner and not _OWNER.fullmatch(settings.openclaw_owner):
        raise unavailable("RETINUE_OPENCLAW_OWNER may hold up to 63 letters, digits, dots and dashes.")


def owner(settings: Settings, *, of_folder: bool) -> str:
    """Name this adapter. A host may have several with a state folder each; a pod's name is its own."""
    if settings.openclaw_owner:
        return settings.openclaw_owner
    host = socket.gethostname()
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", host)
    if not of_folder:
        return plain[:63].strip(".-") or "adapter"
    digest = hashlib.sha256(f"{host}\n{settings.openclaw_state_dir}".encode()).hexdigest()[:8]
    return f"{plain[:50].strip('.-') or 'adapter'}-{digest}"


def name_of(instance_id: str) -> str:
    """Name an instance's container or pod: a DNS label."""
    return "retinue-" + instance_id.lower().replace("_", "-")


def labels(instance_id: str, of: str) -> dict[str, str]:
    """Say on a container or pod whose it is."""
    return {INSTANCE_LABEL: instance_id, OWNER_LABEL: of, "app.kubernetes.io/name": "retinue-instance"}


def environment(spec: InstanceSpec, more: Mapping[str, str]) -> dict[str, str]:
    """What entry.mjs and the gateway read."""
    return {
        **GATEWAY_ENVIRONMENT,
        "RETINUE_STATE_DIR": f"{STATE_FOLDER}/{spec.instance_id}",
        "RETINUE_RELAY_PORT": str(RELAY_PORT),
        "RETINUE_GATEWAY_PORT": str(GATEWAY_PORT),
        "RETINUE_HEAP_MIB": str(spec.heap_mib),
        "RETINUE_ABANDONED_S": str(ABANDONED_S),
        **more,
    }


def memory_mib(spec: InstanceSpec) -> int:
    """The limit: that of its processes, and what its state may take, which lies in memory too."""
    return spec.memory_mib + STATE_MIB + SCRATCH_MIB


def configuration(spec: InstanceSpec) -> bytes:
    """Write openclaw.json for the inside of a container."""
    return spec.config("127.0.0.1", GATEWAY_PORT)


def joined(host: str, port: int) -> str:
    """Write `host:port`; addresses with colons get brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def whole_seconds(grace_s: float) -> int:
    """Round a grace up, as engines count whole seconds."""
    return max(0, math.ceil(grace_s))


async def remove_all(names: list[str], remove: Callable[[str], Awaitable[None]]) -> None:
    """Remove leftovers. One that will not go holds up nobody."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SWEEP_TIMEOUT_S):
            for name in names:
                try:
                    await remove(name)
                except RetinueError as error:
                    log.warning("a leftover of an instance stays", container=name, error=error.private or error.message)
