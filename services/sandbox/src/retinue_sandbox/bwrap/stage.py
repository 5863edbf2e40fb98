"""Where the users of boxes reach what they may see, though the folders above it are closed to them.

bubblewrap looks up what it binds by its path, and as the user of the box. Where the service is root, state folders and
homes are root's alone. So the thread that starts boxes gets a mount namespace of its own, in which what a box is made
of is bound to a place that everybody can enter. The rest of the machine sees nothing of it, and it ends with the
process, however that ends.
"""

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

PARENTS = tuple(map(Path, ("/run", "/var/lib", "/mnt")))
"""Root's, and open to all: nobody else can put something in the way."""

NAME = "retinue-boxes"
"""An empty folder; each process mounts its own over it, for itself alone."""

_OPEN_TO_ALL = 0o711
_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV = 0x2, 0x4
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class Stage:
    """Shows things to the users of boxes. To be used by one thread alone: the one that starts boxes."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._numbers = count(1)
        self._shown: dict[Path, Path] = {}

    @property
    def is_set(self) -> bool:
        """Whether there is such a place; otherwise things are shown where they are."""
        return self._folder is not None

    def set_up(self) -> None:
        """Make the place, once. Does nothing where boxes run as whoever runs this. Raises OSError if it cannot be."""
        if self._folder is not None or os.geteuid() != 0:
            return
        folder = _make_folder()
        _call(_LIBC.unshare, _CLONE_NEWNS)
        # What is mounted on the machine later is still seen; what is mounted here stays here.
        _call(_LIBC.mount, b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
        options = b"mode=0711,size=1m,nr_inodes=4096"
        _call(_LIBC.mount, b"tmpfs", bytes(folder), b"tmpfs", _MS_NOSUID | _MS_NODEV, options)
        self._folder = folder

    def show(self, path: Path) -> Path:
        """Tell where a file or folder is reached, from now on. Raises OSError if it is not there."""
        if self._folder is None:
            return path
        if path not in self._shown:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                self._shown[path] = self._bind(fd)
            finally:
                os.close(fd)
        return self._shown[path]

    @contextmanager
    def borrow(self, fd: int) -> Iterator[int]:
        """Reach what is open as `fd` (O_PATH), for a while; gives a descriptor of it. Raises OSError if it is gone."""
        if self._folder is None:
            yield fd
            return
        # The descriptor may be of the namespace that other threads are in, out of which nothing can be bound.
        own = os.open(os.readlink(f"/proc/self/fd/{fd}"), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not os.path.samestat(os.fstat(fd), os.fstat(own)):
                raise FileNotFoundError("What was opened is not where it was.")
            place = self._bind(own)
        finally:
            os.close(own)
        try:
            staged = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                yield staged
            finally:
                os.close(staged)
        finally:
            with suppress(OSError):  # a box keeps what it has bound
                _call(_LIBC.umount2, bytes(place), _MNT_DETACH)
                place.rmdir() if place.is_dir() else place.unlink()

    def _bind(self, fd: int) -> Path:
        assert self._folder is not None
        place = self._folder / str(next(self._numbers))
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            place.mkdir()
        else:
            place.touch()
        _call(_LIBC.mount, f"/proc/self/fd/{fd}".encode(), bytes(place), None, _MS_BIND, None)
        return place


def _make_folder() -> Path:
    problem: OSError = FileNotFoundError("There is no place for what boxes are made of.")
    for parent in PARENTS:
        folder = parent / NAME
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=_OPEN_TO_ALL)
            found = folder.lstat()
        except OSError as error:
            problem = error
            continue
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return folder
    raise problem


def _call(function: "ctypes._FuncPointer", *arguments: object) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
