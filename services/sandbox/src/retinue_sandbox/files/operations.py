"""What is done with files. All of it blocks, and is done by threads that `turns.py` hands out.

A file is written beside its place, put on the disk, and then takes its place in one step: readers see the former or
this one, whatever dies meanwhile. The digest that a caller expects is compared under the tenant's lock, which all
calls take and no box does: a process in a box that writes at the same moment is not seen.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.crash_points import Point
from retinue_sandbox.files.beneath import FOLDER, READ, closing, open_beneath
from retinue_sandbox.files.listing import Info, describe, page, read_token
from retinue_sandbox.files.paths import STAGED, Parts, changed, not_a_file, told
from retinue_sandbox.files.quota import size_for, size_of

CONTENT_SIZE_MAX_BYTES = 4 << 20
"""Of what is read or written in one call; what boxes write is larger, and is read in parts."""

DIGESTED_SIZE_MAX_BYTES = 256 << 20
"""Of a file whose digest is compared; no execution writes a larger one."""

PIECE_SIZE_BYTES = 1 << 20
FILE_MODE = 0o600
FOLDER_MODE = 0o700
EXECUTABLE_BITS = 0o777
"""What is kept of the mode of a file that is written anew: set-user-id and the like are not."""

ABSENT = "absent"
"""Stands for the digest of what must not be there."""


@dataclass(frozen=True, slots=True)
class Root:
    """A tenant's open root; `uid` is whose its files are."""

    fd: int
    uid: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a file is now, and the digest of what it held: "" where it was not there, or too large to look at."""

    info: Info
    digest_before: str
    replaced_count: int = 0


class Ledger(Protocol):
    """Who says whether so much more may be written, and remembers what was."""

    def admit(self, size_bytes: int, inode_count: int) -> None:
        """Raise RetinueError(QUOTA_EXCEEDED) if not."""
        ...

    def add(self, size_bytes: int, inode_count: int) -> None:
        """Remember it."""
        ...


Check = Callable[[], None]
"""Asked at the last moment before anything is changed; raises RetinueError(STALE_FENCING_TOKEN)."""


def read(root: Root, parts: Parts, offset: int, size: int) -> tuple[bytes, Info]:
    """Read a part of a file; all of it if `size` is 0. The digest is told where the whole was read."""
    path = b"/".join(parts)
    with told(), closing(open_beneath(root.fd, path, READ)) as file:
        found = _regular(file)
        if not size and found.st_size - offset > CONTENT_SIZE_MAX_BYTES:
            raise _too_large("The file")
        data = _read(file, offset, size or CONTENT_SIZE_MAX_BYTES + 1)
        if len(data) > CONTENT_SIZE_MAX_BYTES:  # it grew meanwhile
            raise _too_large("The file")
        is_whole = not offset and (not size or len(data) < size or len(data) == found.st_size)
        return data, describe(path, found, hashlib.sha256(data).hexdigest() if is_whole else "")


def write(root: Root, parts: Parts, data: bytes, expected: str, ledger: Ledger, check: Check) -> Change:
    """Write a file whole, with the folders above it."""
    if len(data) > CONTENT_SIZE_MAX_BYTES:
        raise _too_large("What is to be written")
    *above, name = parts
    with told(), _parent(root, tuple(above), expected, len(data), ledger) as parent:
        former = _look(parent, name)
        before = _compare(parent, name, former, expected)
        ledger.admit(size_for(len(data)) - (size_of(former) if former else 0), 0 if former else 1)
        found = _put(root, parent, name, data, former, check, only_new=expected == ABSENT)
        ledger.add(size_of(found) - (size_of(former) if former else 0), 0 if former else 1)
        return Change(describe(b"/".join(parts), found, hashlib.sha256(data).hexdigest()), before)


def edit(
    root: Root, parts: Parts, old: bytes, new: bytes, every: bool, expected: str, ledger: Ledger, check: Check
) -> Change:
    """Replace text in a file."""
    *above, name = parts
    with told(), opened(root, tuple(above)) as parent:
        with closing(os.open(name, READ, dir_fd=parent)) as file:
            former = _regular(file)
            data = _read(file, 0, CONTENT_SIZE_MAX_BYTES + 1)
        if len(data) > CONTENT_SIZE_MAX_BYTES:
            raise _too_large("The file")
        before = hashlib.sha256(data).hexdigest()
        if expected and before != expected:
            raise changed("The file holds something else than expected.")
        matches = data.count(old)
        if not matches or (matches > 1 and not every):
            text = "is not in the file" if not matches else f"is in the file {matches} times"
            raise RetinueError(Reason.EDIT_MISMATCH, f"The old text {text}.", match_count=str(matches))
        if len(data) + matches * (len(new) - len(old)) > CONTENT_SIZE_MAX_BYTES:
            raise _too_large("The file as it would be")
        data = data.replace(old, new)
        ledger.admit(size_for(len(data)) - size_of(former), 0)
        found = _put(root, parent, name, data, former, check)
        ledger.add(size_of(found) - size_of(former), 0)
        return Change(describe(b"/".join(parts), found, hashlib.sha256(data).hexdigest()), before, matches)


def list_page(root: Root, parts: Parts, token: str, *, recursive: bool, size: int) -> tuple[list[Info], str]:
    """List a page of a folder; answers the token of the next."""
    after = read_token(token)
    with told(), opened(root, parts) as folder:
        return page(folder, b"/".join(parts), after, recursive=recursive, size=size)


@contextmanager
def opened(root: Root, parts: Parts) -> Iterator[int]:
    """Open a folder for the block. Raises OSError."""
    with closing(open_beneath(root.fd, b"/".join(parts) or b".", FOLDER)) as folder:
        yield folder


@contextmanager
def _parent(root: Root, parts: Parts, expected: str, size: int, ledger: Ledger) -> Iterator[int]:
    """Open the folder that a file is written into; make it, if the file may be new and has room."""
    try:
        folder = open_beneath(root.fd, b"/".join(parts) or b".", FOLDER)
    except FileNotFoundError:
        if expected not in ("", ABSENT):
            raise changed("The file is not there any more.") from None
        ledger.admit(size_for(size), len(parts) + 1)
        folder = _make_folders(root, parts, ledger)
    with closing(folder):
        yield folder


def _make_folders(root: Root, parts: Parts, ledger: Ledger) -> int:
    """Open a folder, making what is missing on the way; the caller closes it."""
    current = os.open(b".", FOLDER, dir_fd=root.fd)
    try:
        for part in parts:
            made = False
            with suppress(FileExistsError):
                os.mkdir(part, FOLDER_MODE, dir_fd=current)
                made = True
            inner = os.open(part, FOLDER, dir_fd=current)
            if made:
                with _closing_on_failure(inner):
                    _give(inner, root.uid)
                    os.fsync(current)
                    ledger.add(size_of(os.fstat(inner)), 1)
            os.close(current)
            current = inner
    except BaseException:
        os.close(current)
        raise
    return current


@contextmanager
def _closing_on_failure(descriptor: int) -> Iterator[None]:
    """Close a descriptor if the block fails."""
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


def _put(
    root: Root,
    parent: int,
    name: bytes,
    data: bytes,
    former: os.stat_result | None,
    check: Check,
    *,
    only_new: bool = False,
) -> os.stat_result:
    """Have a file of this content take its place, once it is on the disk."""
    staged = STAGED + secrets.token_hex(16).encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(staged, flags, FILE_MODE, dir_fd=parent)
    try:
        with closing(file):
            _write(file, data)
            _give(file, root.uid)
            os.fchmod(file, former.st_mode & EXECUTABLE_BITS if former else FILE_MODE)
            os.fsync(file)
            found = os.fstat(file)
        reach(Point.FILE_STAGED)
        check()
        if only_new:
            try:
                os.link(staged, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                raise changed("The file is there already.") from None
            os.unlink(staged, dir_fd=parent)
        else:
            os.replace(staged, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(staged, dir_fd=parent)
        raise
    reach(Point.FILE_WRITTEN)
    os.fsync(parent)
    return found


def _give(descriptor: int, uid: int) -> None:
    if os.fstat(descriptor).st_uid != uid:
        os.fchown(descriptor, uid, uid)


def _look(parent: int, name: bytes) -> os.stat_result | None:
    """Look at what is to be replaced; None if nothing is. Raises RetinueError(FIELD_INVALID) for what is no file."""
    try:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise not_a_file()
    return found


def _compare(parent: int, name: bytes, former: os.stat_result | None, expected: str) -> str:
    """Answer the digest of what a file holds. Raises RetinueError(FILE_CHANGED) unless it is what is expected."""
    if former is None:
        if expected not in ("", ABSENT):
            raise changed("The file is not there any more.")
        return ""
    if expected == ABSENT:
        raise changed("The file is there already.")
    if not expected and (former.st_size > CONTENT_SIZE_MAX_BYTES or not former.st_mode & stat.S_IRUSR):
        return ""
    digest = hashlib.sha256()
    with closing(os.open(name, READ, dir_fd=parent)) as file:
        _regular(file)
        size = 0
        while piece := os.pread(file, PIECE_SIZE_BYTES, size):
            size += len(piece)
            if size > DIGESTED_SIZE_MAX_BYTES:
                raise _too_large("The file as it is", DIGESTED_SIZE_MAX_BYTES)
            digest.update(piece)
    if expected and digest.hexdigest() != expected:
        raise changed("The file holds something else than expected.")
    return digest.hexdigest()


def _regular(file: int) -> os.stat_result:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise not_a_file()
    return found


def _read(file: int, offset: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := os.pread(file, min(size, PIECE_SIZE_BYTES), offset)):
        pieces.append(piece)
        size -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def _write(file: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(file, left) :]


def _too_large(what: str, limit: int = CONTENT_SIZE_MAX_BYTES) -> RetinueError:
    return RetinueError(Reason.BODY_TOO_LARGE, f"{what} is larger than {limit >> 20} MiB.")
