"""Where the local deployment keeps what: the state folder, and a folder for sockets whose path is short enough."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from retinue_kit.config import SettingError

SOCKET_PATH_MAX_BYTES = 100
"""The kernel allows 107; some programs append a suffix while they set a socket up."""

_LONGEST_SOCKET = "runtime-adapter-metrics.sock"
_POSTGRES_SOCKET = ".s.PGSQL.5432"
# What is written into addresses and connection strings must not need escapes there.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
_PRIVATE = 0o700


class Paths(NamedTuple):
    """The folders of one deployment. All but `state` are for its own user alone."""

    state: Path
    run: Path
    """Sockets and generated configuration; removed when the mesh stops."""

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.state / "logs"

    @property
    def workspaces(self) -> Path:
        """The tenants' files."""
        return self.state / "workspaces"

    @property
    def traces(self) -> Path:
        """Spans, one file a process."""
        return self.state / "traces"

    @property
    def audit(self) -> Path:
        """What was executed for tenants, and what was done to their files: a file a day."""
        return self.state / "audit"

    @property
    def openclaw(self) -> Path:
        """Installed releases of OpenClaw, each with a Node; what is in it can be fetched again."""
        return self.state / "openclaw"

    @property
    def openclaw_instances(self) -> Path:
        """What OpenClaw's gateways write while they run; nothing in it outlives them."""
        return self.state / "openclaw-instances"

    @property
    def sealing_keys(self) -> Path:
        """The keys that secrets in the database are sealed with."""
        return self.state / "sealing-keys"

    @property
    def bundle_key(self) -> Path:
        """The key that bundles are signed with."""
        return self.state / "bundle-signing.key"

    @property
    def status(self) -> Path:
        """What runs and how it is."""
        return self.state / "status.json"

    @property
    def control(self) -> Path:
        """Where the supervisor of this folder takes orders; see control."""
        return self.socket("control")

    @property
    def lock(self) -> Path:
        """Held by the supervisor of this folder; names its process."""
        return self.state / "lock"

    def socket(self, name: str) -> Path:
        """The unix socket of a process."""
        return self.run / f"{name}.sock"

    def address(self, name: str) -> str:
        """The same as a gRPC address."""
        return f"unix:{self.socket(name)}"


def of_state(state: Path) -> Paths:
    """Name the folders of a state folder; touches nothing."""
    state = state.absolute()
    run = state / "run"
    if not fits(run, _LONGEST_SOCKET):
        run = _short("retinue", state)
    return Paths(state, run)


def fits(folder: Path, longest: str = _POSTGRES_SOCKET) -> bool:
    """Tell whether sockets may live in a folder: the path is short, and plain enough to stand in an address."""
    path = str(folder / longest)
    return len(path.encode()) < SOCKET_PATH_MAX_BYTES and _PLAIN_PATH.fullmatch(path) is not None


def short_postgres_folder(state: Path) -> Path:
    """Name a folder for Postgres' socket where its own is too deep."""
    return _short("retinue-pg", state)


def _short(kind: str, state: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:12]
    return Path("/tmp") / f"{kind}-{os.geteuid()}-{digest}"  # noqa: S108 - its ownership is checked


def make(paths: Paths) -> None:
    """Make the folders that are missing. Raises SettingError in one line if one cannot be had."""
    try:
        paths.state.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
        for folder in (paths.logs, paths.workspaces, paths.traces):
            folder.mkdir(exist_ok=True, mode=_PRIVATE)
        with tempfile.TemporaryFile(dir=paths.state):
            pass
    except OSError as error:
        raise SettingError(f"The state folder {paths.state} cannot be used: {error.strerror}.") from None
    make_private(paths.run, os.geteuid(), os.getegid())


def make_private(folder: Path, uid: int, gid: int) -> None:
    """Make a folder that only this user can enter. Raises SettingError if something else is in its place."""
    try:
        try:
            folder.mkdir(mode=_PRIVATE)
            if uid != os.geteuid():
                os.chown(folder, uid, gid)
        except FileExistsError:
            # In a folder that others may write to, somebody may have put something here first.
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
                raise SettingError(f"{folder} is in the way: it must be a folder of user {uid}, or absent.") from None
            folder.chmod(_PRIVATE)
    except OSError as error:
        raise SettingError(f"The folder {folder} cannot be made: {error.strerror}.") from None


def remove_run(paths: Paths) -> None:
    """Remove the sockets and what else was made for this run."""
    shutil.rmtree(paths.run, ignore_errors=True)
    shutil.rmtree(short_postgres_folder(paths.state), ignore_errors=True)
