"""The state file: what runs, where, and how it is. Written whole on each change, so that a reader never sees half."""

import os
from pathlib import Path

import msgspec


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process. `health` is starting, serving, not_serving or restarting; `pid` is 0 while there is none."""

    name: str
    pid: int
    address: str
    health: str
    restarts: int


class MeshStatus(msgspec.Struct, frozen=True):
    """One deployment."""

    supervisor_pid: int
    address: str
    """Where clients come in."""
    processes: list[ProcessStatus]
    model: str = ""
    """Which model answers, in plain words."""
    model_url: str = ""
    """Its endpoint; empty where it is bundled, or written in a file."""
    openclaw_missing: str = ""
    """Why OpenClaw is not on although it is wanted, in one line."""


def write(path: Path, status: MeshStatus) -> None:
    """Replace the file."""
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(status), indent=2) + b"\n")
    new.replace(path)


def read(path: Path) -> MeshStatus | None:
    """Read the file; None if there is none, or it is of another make."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=MeshStatus)
    except (OSError, msgspec.DecodeError):
        return None
