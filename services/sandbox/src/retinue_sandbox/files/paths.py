"""Paths as callers write them, and what goes wrong with them, as errors of the contract."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from retinue_kit.errors import Reason, RetinueError

PATH_SIZE_MAX_BYTES = 4095
NAME_SIZE_MAX_BYTES = 255
"""What Linux takes."""

DEPTH_MAX = 64
"""Folders within one another: far beyond any project, and each costs a descriptor while a tree is walked."""

STAGED = b".retinue-staged-"
"""What names of files begin with that are being written; nobody else's may."""

Parts = tuple[bytes, ...]


def parts_of(path: str, *, root: bool = False) -> Parts:
    """Split a path; none for "" where the root itself may be meant. Raises RetinueError(FIELD_INVALID)."""
    if root and not path:
        return ()
    parts = tuple(path.encode().split(b"/"))
    if "\0" in path or not {b"", b".", b".."}.isdisjoint(parts):
        raise RetinueError.field("path", 'must be names with "/" between them, none of them empty, "." or "..".')
    if sum(map(len, parts)) + len(parts) - 1 > PATH_SIZE_MAX_BYTES or max(map(len, parts)) > NAME_SIZE_MAX_BYTES:
        text = f"must be at most {PATH_SIZE_MAX_BYTES} bytes, and each name {NAME_SIZE_MAX_BYTES}."
        raise RetinueError.field("path", text)
    if len(parts) > DEPTH_MAX:
        raise RetinueError.field("path", f"must not lead through more than {DEPTH_MAX} folders.")
    if any(part.startswith(STAGED) for part in parts):
        raise RetinueError.field("path", f"must not hold a name that begins with {STAGED.decode()}.")
    return parts


def missing() -> RetinueError:
    """Say that a file is not there."""
    return RetinueError(Reason.FILE_NOT_FOUND, "There is no such file.")


def changed(text: str) -> RetinueError:
    """Say that a file is not what the caller takes it for."""
    return RetinueError(Reason.FILE_CHANGED, text)


def not_a_file() -> RetinueError:
    """Say that something is no regular file."""
    return RetinueError.field("path", "must be a file, and no folder, link or device.")


_ODD = "must lead through folders alone, and never through a link."
_TOLD = {
    errno.ELOOP: _ODD,
    errno.ENOTDIR: _ODD,
    errno.EXDEV: _ODD,
    errno.EISDIR: "must be a file, and no folder.",
    errno.ENXIO: "must be a file, and no socket.",
    errno.ENODEV: "must be a file, and no device.",
    errno.EACCES: "must be something that its mode lets its owner use.",
    errno.EPERM: "must be something that may be changed.",
    errno.ENAMETOOLONG: "must be shorter.",
}


@contextmanager
def told() -> Iterator[None]:
    """Tell what the system refuses in the block as RetinueError; what says nothing to a caller stays an OSError."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number == errno.ENOENT:
            raise missing() from error
        if number in _TOLD:
            raise RetinueError.field("path", _TOLD[number]) from error
        if number == errno.EDQUOT:
            raise RetinueError(Reason.QUOTA_EXCEEDED, "There is no room left for the tenant's files.") from error
        if number in (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EIO, errno.EAGAIN):
            raise RetinueError.unavailable("workspace", private=str(error)) from error
        raise
