"""Hard limits for a box as a whole, where the machine lets this process set them: cgroups of either version.

Version 2 is used where the service's own group is given to it alone (systemd's Delegate=). Version 1 is used where its
groups can be written to. Else there are none, and limits hold for each process, and by counting.
"""

import asyncio
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retinue_sandbox.ports import Check

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

MEMORY_BYTES = 768 << 20
"""Of a box, with what it keeps in /tmp: half as much again as one execution may have by default."""

CORES = 1.0
"""Of processor time, so that one box does not take the machine."""

PERIOD_US = 100_000
"""How often the processor's time is dealt out; the kernel's own default."""

GROUP = "retinue-boxes"
SERVICE = "retinue-service"
CONTROLLERS = ("memory", "pids", "cpu")

REMOVE_TRIES = 50
REMOVE_PAUSE_S = 0.02
"""A group can be removed once the kernel has done with its last process; for longer than a second nobody waits."""

REMEDY = "run the service as a systemd unit with Delegate=cpu memory pids, or in a container with limits of its own"


@dataclass(frozen=True, slots=True)
class Group:
    """The groups of one box."""

    folders: tuple[Path, ...]

    def add(self, pid: int) -> None:
        """Put a process in, and with it all that it starts. Raises OSError if that cannot be."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid), "utf-8")

    def drop(self) -> None:
        """Remove what is there of them while nothing is in them yet."""
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()

    async def remove(self) -> None:
        """Remove them once they are empty; one that stays is left to the next start."""
        for folder in self.folders:
            for _ in range(REMOVE_TRIES):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await asyncio.sleep(REMOVE_PAUSE_S)
                else:
                    break


class Cgroups:
    """Makes groups for boxes."""

    def __init__(self, bases: Mapping[str, Path], *, unified: bool, memory_bytes: int = MEMORY_BYTES) -> None:
        """`bases` is the folder to make groups in, by controller."""
        self._memory_bytes = memory_bytes
        self._bases = dict(bases)
        self._unified = unified

    @classmethod
    def find(cls, root: Path = ROOT, own: Path = OWN, memory_bytes: int = MEMORY_BYTES) -> "Cgroups":
        """See what this process may use, and remove what earlier ones have left behind."""
        try:
            lines = own.read_text("utf-8").splitlines()
        except OSError:
            lines = []
        paths = {name: path for line in lines for _, names, path in [line.split(":", 2)] for name in names.split(",")}
        bases = _unified(root / paths.get("", "/").lstrip("/")) if (root / "cgroup.controllers").exists() else {}
        found = cls(bases or _version_1(root, paths), unified=bool(bases), memory_bytes=memory_bytes)
        found._sweep()
        return found

    def has(self, controller: str) -> bool:
        """Whether a box has this limit: memory, pids or cpu."""
        return controller in self._bases

    def make(self, process_count: int) -> Group | None:
        """Make the groups of one box; None where we may have none. Raises OSError, having made nothing."""
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        group = Group(tuple(dict.fromkeys(base / name for base in self._bases.values())))
        try:
            for folder in group.folders:
                folder.mkdir()
            for controller, base in self._bases.items():
                for file, value in self._settings(controller, process_count).items():
                    (base / name / file).write_text(value, "utf-8")
        except OSError:
            group.drop()
            raise
        return group if group.folders else None

    def checks(self) -> list[Check]:
        """Say which limits hold for a box as a whole."""
        lesser = {
            "memory": "best_effort: each process has a limit, and what runs is counted now and then",
            "pids": "by the number of processes of the box's user",
            "cpu": "by the time that each execution may take",
        }
        version = "cgroup version 2" if self._unified else "cgroup version 1"
        return [
            Check(f"limit_{name}", True, f"hard, by {version}", required=False)
            if self.has(name)
            else Check(f"limit_{name}", False, lesser[name], REMEDY, required=False)
            for name in CONTROLLERS
        ]

    def _settings(self, controller: str, process_count: int) -> dict[str, str]:
        quota = str(int(CORES * PERIOD_US))
        if controller == "pids":
            return {"pids.max": str(process_count)}
        if controller == "memory":
            return {"memory.max" if self._unified else "memory.limit_in_bytes": str(self._memory_bytes)}
        if self._unified:
            return {"cpu.max": f"{quota} {PERIOD_US}"}
        return {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota}

    def _sweep(self) -> None:
        for base in set(self._bases.values()):
            for folder in base.iterdir():
                pid = folder.name.partition("-")[0]
                if folder.is_dir() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
                    with suppress(OSError):
                        folder.rmdir()


def _version_1(root: Path, paths: Mapping[str, str]) -> dict[str, Path]:
    bases = {}
    for name in CONTROLLERS:
        folder = root / name / paths.get(name, "/").lstrip("/")
        if not folder.is_dir():  # in a container the path may be the machine's
            folder = root / name
        base = folder / GROUP
        try:
            base.mkdir(exist_ok=True)
            if (base / "cgroup.procs").exists() and os.access(base, os.W_OK):
                bases[name] = base
        except OSError:
            continue
    return bases


def _unified(own: Path) -> dict[str, Path]:
    """Divide this process' own group in two, one for itself and one for boxes: limits are for groups below one only."""
    try:
        # Somebody else's processes in it mean that it is not ours to divide.
        if own.name == SERVICE:  # divided by an earlier start in the same place
            own = own.parent
        elif (own / "cgroup.procs").read_text("utf-8").split() != [str(os.getpid())]:
            return {}
        (own / SERVICE).mkdir(exist_ok=True)
        (own / SERVICE / "cgroup.procs").write_text(str(os.getpid()), "utf-8")
        there = (own / "cgroup.controllers").read_text("utf-8").split()
        wanted = [name for name in CONTROLLERS if name in there]
        (own / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted), "utf-8")
        base = own / GROUP
        base.mkdir(exist_ok=True)
        (base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted), "utf-8")
    except OSError:
        return {}
    return dict.fromkeys(wanted, base)
