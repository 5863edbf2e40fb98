"""Removes files from the disk, and folders with all that they hold, however deep."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from itertools import islice

from retinue_kit.errors import RetinueError

from retinue_sandbox.files.beneath import closing, enter
from retinue_sandbox.files.operations import Check, Ledger, Root, opened
from retinue_sandbox.files.paths import DEPTH_MAX, STAGED, Parts, changed, told
from retinue_sandbox.files.quota import size_of

REMOVED_MAX = 200_000
"""Files that one call removes; beyond any tenant's quota, so that only a box that goes on writing meets it."""

PASSES_MAX = 1024
"""Times that a tree is gone through to remove it: each takes 64 folders off its depth."""


def delete(root: Root, parts: Parts, recursive: bool, ledger: Ledger, check: Check) -> int:
    """Remove a file or folder from the disk; answers how many. A link is removed, and nothing that it leads to."""
    *above, name = parts
    with told(), opened(root, tuple(above)) as parent:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        check()
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=parent)
            ledger.add(-size_of(found) if found.st_nlink == 1 else 0, -1)
            os.fsync(parent)
            return 1
        remover = _Remover(ledger)
        if recursive:
            with closing(enter(parent, name, all_rights=True)) as folder:
                remover.empty(folder)
        if not _rmdir(parent, name):
            if recursive:
                raise changed("Something goes on writing into the folder; try again.")
            raise RetinueError.field("recursive", "must be set, since the folder is not empty.")
        ledger.add(-size_of(found), -1)
        os.fsync(parent)
        return remover.count + 1


class _Remover:
    """Empties a folder. What lies too deep is moved up first: a descriptor is needed for each folder on the way."""

    def __init__(self, ledger: Ledger) -> None:
        self.count = 0
        self._ledger = ledger

    def empty(self, top: int) -> None:
        """Remove all that a folder holds; what appears meanwhile may be left."""
        for _ in range(PASSES_MAX):
            if not self._pass(top, top, 1):
                return

    def _pass(self, folder: int, top: int, depth: int) -> bool:
        """Remove what is in a folder; answers whether anything was moved to the top."""
        moved = False
        with os.scandir(folder) as entries:
            some = islice(entries, REMOVED_MAX)
            names = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in some]
        for name, is_folder in names:
            if self.count >= REMOVED_MAX:
                raise changed(f"There are more than {REMOVED_MAX} files to remove; some are left.")
            with suppress(FileNotFoundError):
                if is_folder and depth >= DEPTH_MAX:
                    fresh = STAGED + secrets.token_hex(16).encode()
                    os.rename(name, fresh, src_dir_fd=folder, dst_dir_fd=top)
                    moved = True
                else:
                    moved |= self._remove(folder, name, is_folder, top, depth)
        return moved

    def _remove(self, folder: int, name: bytes, is_folder: bool, top: int, depth: int) -> bool:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        moved = False
        if is_folder:
            with closing(enter(folder, name, all_rights=True)) as inner:
                moved = self._pass(inner, top, depth + 1)
            if not _rmdir(folder, name):
                return moved
        else:
            os.unlink(name, dir_fd=folder)
        self._ledger.add(-size_of(found) if is_folder or found.st_nlink == 1 else 0, -1)
        self.count += 1
        return moved


def _rmdir(folder: int, name: bytes) -> bool:
    """Remove a folder; answers whether it was empty."""
    try:
        os.rmdir(name, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
