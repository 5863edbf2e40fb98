"""Opens what lies beneath a folder, whatever links and renames do to the path meanwhile.

Whose files these are may change any of them at any moment, from a box. So a path is never looked at first and opened
afterwards: it is opened part by part from a descriptor, by the kernel itself where it has openat2.
"""

import ctypes
import errno
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

OPENAT2 = 437
"""Number of the system call, the same on every machine; the C library has no name for it."""

RESOLVE = 0x02 | 0x04 | 0x08
"""RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH"""

AGAIN_MAX = 128
"""Tries while a rename somewhere keeps the kernel from being sure: a box that renames all the time delays its own."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Never waits for whoever might write into a pipe, and makes no terminal ours."""

_PATH_ONLY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL = 0o700


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(folder: int, path: bytes, flags: int) -> int:
    """Open a path beneath a folder; the caller closes it. Raises OSError: ELOOP, ENOTDIR, EXDEV for what leads out."""
    return (by_kernel if _has_openat2() else by_walk)(folder, path, flags)


def by_kernel(folder: int, path: bytes, flags: int) -> int:
    """Open it with openat2. Raises OSError."""
    how = _How(flags | os.O_CLOEXEC, 0, RESOLVE)
    number = 0
    for _ in range(AGAIN_MAX):
        found: int = _libc.syscall(OPENAT2, folder, path, ctypes.byref(how), ctypes.sizeof(how))
        if found >= 0:
            return found
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))


def by_walk(folder: int, path: bytes, flags: int) -> int:
    """Open it where the kernel does not know openat2, or is forbidden to: a descriptor a part. Raises OSError."""
    *above, last = path.split(b"/")
    if b".." in (*above, last):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    current = os.open(b".", _PATH_ONLY, dir_fd=folder)
    try:
        for part in above:
            inner = os.open(part, _PATH_ONLY, dir_fd=current)
            os.close(current)
            current = inner
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)


@functools.cache
def _has_openat2() -> bool:
    with closing(os.open("/", _PATH_ONLY)) as folder, suppress(OSError), closing(by_kernel(folder, b".", _PATH_ONLY)):
        return True
    return False


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor behind the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def enter(folder: int, name: bytes, *, all_rights: bool = False) -> int:
    """Open a folder in a folder, never a link; the caller closes it. Raises OSError.

    A mode that shuts out even its owner is opened up: nothing is kept from being counted and removed by its mode. With
    `all_rights` its owner may also change what it holds.
    """
    with closing(os.open(name, _PATH_ONLY, dir_fd=folder)) as place:
        if all_rights and os.fstat(place).st_mode & _ALL != _ALL:
            _open_up(place)
        try:
            return os.open(b".", FOLDER, dir_fd=place)
        except PermissionError:
            _open_up(place)
            return os.open(b".", FOLDER, dir_fd=place)


def _open_up(place: int) -> None:
    os.chmod(f"/proc/self/fd/{place}", _ALL)  # this very folder, whatever it is called by now
