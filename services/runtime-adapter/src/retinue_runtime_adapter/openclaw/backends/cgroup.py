"""Memory limits by control groups (v2), where one is ours to divide.

A process may not limit its own group's children while it sits in that group. So the adapter has to be in a group of its
own below the one that was given to it, as systemd does for `Delegate=memory` with `DelegateSubgroup=`: instances become
that group's neighbours. Anywhere else nothing is limited, and the pool's watching alone ends what grows too large.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

PROCESSES_MAX = 512
"""Processes and threads of an instance: a gateway has about 60, and each active agent a few."""


@dataclass(frozen=True, slots=True)
class Group:
    """An instance's control group."""

    path: Path


def find(root: Path = ROOT, own: Path = OWN) -> Path | None:
    """Find the group whose children may be limited; None if there is none."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, _, name = line.split(":", 2)
            if number != "0" or name in ("", "/"):
                continue
            parent = root / name.strip("/")
            parent = parent.parent
            controllers = (parent / "cgroup.subtree_control").read_text().split()
            if "memory" in controllers and os.access(parent, os.W_OK) and parent.is_relative_to(root):
                return parent
    return None


def make(parent: Path | None, name: str, memory_mib: int) -> Group | None:
    """Make a limited group; None if that cannot be done."""
    if parent is None:
        return None
    group = Group(parent / name)
    try:
        group.path.mkdir()
        (group.path / "memory.max").write_text(str(memory_mib * 1024 * 1024))
        with suppress(OSError):  # without swap, or without that controller, there is nothing to limit
            (group.path / "memory.swap.max").write_text("0")
        with suppress(OSError):
            (group.path / "pids.max").write_text(str(PROCESSES_MAX))
    except OSError:
        remove(group)
        return None
    return group


def remove(group: Group) -> None:
    """Remove an instance's group; its processes are gone."""
    with suppress(OSError):
        group.path.rmdir()
