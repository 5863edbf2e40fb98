"""Points at which a process can be made to die or to stop, so that tests can have it happen at the worst moment.

Each service names its points in an enumeration `Point` (its module `crash_points`) and says `reach(Point.X)` where they
lie. Switched off, which is how every deployment runs, that is a call that returns; switched on by RETINUE_CRASH_DIR:

    DIR/hits/{pid}      one line for each point reached
    DIR/armed/{point}   holds "kill" or "stop": the first process that reaches the point takes the file and does it
    DIR/fired/{point}.{pid}   the file that was taken
"""

import os
import signal
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

SETTING = "RETINUE_CRASH_DIR"
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

_folder: Path | None = None
_hits = -1


def switch_on(environ: Mapping[str, str] | None = None) -> None:
    """Look at the setting; called once, when the process begins."""
    global _folder, _hits
    named = (os.environ if environ is None else environ).get(SETTING)
    if not named:
        return
    folder = Path(named)
    for part in ("hits", "armed", "fired"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _hits = os.open(folder / "hits" / str(os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    _folder = folder


def reach(point: StrEnum | None) -> None:
    """Say that this process has come to a point; None is a place without a name."""
    if _folder is not None and point is not None:
        _fire(_folder, point)


def _fire(folder: Path, point: StrEnum) -> None:
    os.write(_hits, f"{point}\n".encode())
    taken = folder / "fired" / f"{point}.{os.getpid()}"
    try:
        (folder / "armed" / point).rename(taken)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), _SIGNALS[taken.read_text().strip()])
