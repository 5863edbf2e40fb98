"""Where each tenant's files are on this machine. The one place that knows.

    {folder}/{tenant}/files     what boxes see as /workspace; the tenant's own user's
    {folder}/{tenant}/memory    reached by file calls alone; the service's own

The tenant's folder is the service's, closed to everybody else; others of the mesh keep more in it (`contacts/`).
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from retinue_kit.errors import RetinueError

from retinue_sandbox import ports
from retinue_sandbox.files.beneath import FOLDER, closing, enter
from retinue_sandbox.files.operations import Root
from retinue_sandbox.files.paths import DEPTH_MAX
from retinue_sandbox.files.quota import INODE_COUNT_MAX, SIZE_MAX_BYTES, Quota, Usage, count
from retinue_sandbox.files.turns import Turns

FILES, MEMORY = "files", "memory"
ROOTS = (FILES, MEMORY)

LOCK_PAUSE_S = 0.005
LOCK_ATTEMPTS_MAX = 800
"""Four seconds: writing takes milliseconds, and the caller waits for five seconds."""

_MODE = 0o700
_TENANT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Roots(ports.Workspaces):
    """The tenants' roots beneath one folder, which is made if it is missing.

    `uid_of` tells a tenant's user, as `bwrap.users.Uids.of` does; it may block.
    """

    def __init__(
        self,
        folder: Path,
        uid_of: Callable[[str], int],
        *,
        size_max_bytes: int = SIZE_MAX_BYTES,
        inode_count_max: int = INODE_COUNT_MAX,
    ) -> None:
        self._folder = folder
        self._uid_of = uid_of
        self.turns = Turns()
        self.quota = Quota(self._count, size_max_bytes, inode_count_max)

    def open(self, tenant_id: str) -> ports.Workspace:
        """Open a tenant's files. Raises RetinueError(FIELD_INVALID, DEPENDENCY_UNAVAILABLE)."""
        uid = self._uid_of(tenant_id)
        with self._tenant(tenant_id) as tenant, closing(_root(tenant, FILES, uid)) as files:
            return ports.Workspace(tenant_id, os.open(b".", _PLACE, dir_fd=files), uid)

    async def over_quota(self, tenant_id: str, held_bytes: int = 0) -> str:
        """See ports.Workspaces. Counts at most once a second."""
        return await self.turns.run(tenant_id, partial(self.quota.over, tenant_id, held_bytes))

    @contextmanager
    def entered(self, tenant_id: str, root: str, *, lock: bool = False) -> Iterator[Root]:
        """Open one of a tenant's roots for the block; with `lock`, while no other call writes. Blocks.

        Raises RetinueError(FIELD_INVALID, DEPENDENCY_UNAVAILABLE).
        """
        uid = self._uid_of(tenant_id) if root == FILES else os.geteuid()
        with self._tenant(tenant_id) as tenant, closing(_root(tenant, root, uid)) as place:
            if lock:
                _lock(tenant)
            yield Root(place, uid)

    def close(self) -> None:
        """Take no more calls."""
        self.turns.close()

    @contextmanager
    def _tenant(self, tenant_id: str) -> Iterator[int]:
        if not _TENANT_ID.fullmatch(tenant_id):
            raise RetinueError.field("tenant_id", "must be a tenant's id.")
        try:
            self._folder.mkdir(mode=_MODE, parents=True, exist_ok=True)
            with closing(os.open(self._folder, _PLACE & ~os.O_NOFOLLOW)) as above:
                tenant = _made(above, tenant_id.encode())
        except OSError as error:
            raise RetinueError.unavailable("workspace", private=str(error)) from error
        with closing(tenant):
            yield tenant

    def _count(self, tenant_id: str) -> Usage:
        usage = Usage()
        for root in ROOTS:
            with self.entered(tenant_id, root) as entered:
                usage = usage + count(entered.fd)
        return usage


def _made(above: int, name: bytes) -> int:
    """Open a folder, made if it is missing, and shut to everybody but its owner."""
    try:
        folder = enter(above, name)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another call may be faster
            os.mkdir(name, _MODE, dir_fd=above)
        folder = os.open(name, FOLDER, dir_fd=above)
    found = os.fstat(folder)
    if found.st_mode & 0o7777 != _MODE and os.geteuid() in (0, found.st_uid):
        os.fchmod(folder, _MODE)
    return folder


def _root(tenant: int, name: str, uid: int) -> int:
    try:
        folder = _made(tenant, name.encode())
        if os.fstat(folder).st_uid != uid:
            _hand_over(folder, uid, 1)
            os.fchown(folder, uid, uid)  # last, so that what was broken off begins again
    except OSError as error:
        raise RetinueError.unavailable("workspace", private=str(error)) from error
    return folder


def _hand_over(folder: int, uid: int, depth: int) -> None:
    """Give what a folder holds to another user: the service has become root, or has ceased to be."""
    with os.scandir(folder) as entries:
        for entry in entries:
            os.chown(entry.name, uid, uid, dir_fd=folder, follow_symlinks=False)
            if depth < DEPTH_MAX and entry.is_dir(follow_symlinks=False):
                with closing(enter(folder, os.fsencode(entry.name))) as inner:
                    _hand_over(inner, uid, depth + 1)


def _lock(tenant: int) -> None:
    """Hold a tenant's files alone until the descriptor is closed; boxes see nothing of this folder."""
    for _ in range(LOCK_ATTEMPTS_MAX):
        try:
            fcntl.flock(tenant, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return
    raise RetinueError.unavailable("workspace", private="the lock is held by another")
