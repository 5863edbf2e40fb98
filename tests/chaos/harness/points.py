"""The points at which processes can be made to die: which there are, which were reached, which killed."""

import importlib.util
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
MODULE = "crash_points"


def modules() -> dict[str, Path]:
    """The modules that declare points, by the name they are imported under."""
    found = sorted(
        path
        for pattern in ("services/*/src/*", "gateway/src/*", "libs/*/src/*", "deploy/*/src/*")
        for path in ROOT.glob(f"{pattern}/{MODULE}.py")
    )
    return {f"{path.parent.name}.{MODULE}": path for path in found}


def enumeration(name: str, path: Path) -> type[StrEnum]:
    """Read a module's enumeration without importing the service around it."""
    if name in sys.modules:
        found: type[StrEnum] = sys.modules[name].Point
        return found
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded: type[StrEnum] = module.Point
    return loaded


def declared() -> list[str]:
    """Every point of every service."""
    return [str(point) for name, path in modules().items() for point in enumeration(name, path)]


class Fired(NamedTuple):
    """A point at which a process died, or stopped."""

    point: str
    pid: int
    action: str


class Folder:
    """The folder through which processes and harness speak; see retinue_kit.crashing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[tuple[str, int]] = set()
        for part in ("hits", "armed", "fired"):
            (path / part).mkdir(parents=True, exist_ok=True)

    def arm(self, point: str, action: str) -> None:
        """Have the first process that comes to a point do something; "kill" or "stop"."""
        aside = self.path / f"{point}.new"
        aside.write_text(action)
        aside.rename(self.path / "armed" / point)  # whole, or not there

    def disarm(self, point: str) -> bool:
        """Take it back; False if a process was faster."""
        try:
            (self.path / "armed" / point).unlink()
        except FileNotFoundError:
            return False
        return True

    def fired(self, point: str) -> list[Fired]:
        """Shots at a point since this was asked last."""
        found = []
        for path in (self.path / "fired").glob(f"{point}.*"):
            pid = path.name.removeprefix(f"{point}.")
            # A process that was stopped may come to the point once more, under the same number.
            shot = (path.name, path.stat().st_ctime_ns)
            if pid.isdecimal() and shot not in self._seen:
                self._seen.add(shot)
                found.append(Fired(point, int(pid), path.read_text().strip()))
        return found

    def hits(self) -> Counter[str]:
        """How often each point was reached, by all processes that ever were."""
        count: Counter[str] = Counter()
        for path in (self.path / "hits").iterdir():
            count.update(path.read_text().split())
        return count
