"""What a folder holds, page by page, sorted by path as text is."""

import os
import stat
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass

from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.files.beneath import closing, enter
from retinue_sandbox.files.paths import DEPTH_MAX, STAGED

SCANNED_MAX = 100_000
"""Names looked at for one page: six times what a tenant may have, for those who have gone beyond it."""

FILE, FOLDER, OTHER = "file", "folder", "other"


@dataclass(frozen=True, slots=True)
class Info:
    """What is told of a file or folder; of what is neither, or has no name in UTF-8, only a name."""

    path: str
    kind: str
    size_bytes: int = 0
    modify_time_ns: int = 0
    digest: str = ""


def describe(path: bytes, found: os.stat_result, digest: str = "") -> Info:
    """Describe a file by what the system says of it."""
    name = path.decode(errors="replace")
    if stat.S_ISREG(found.st_mode) and _is_text(path):
        return Info(name, FILE, found.st_size, found.st_mtime_ns, digest)
    if stat.S_ISDIR(found.st_mode) and _is_text(path):
        return Info(name, FOLDER, 0, found.st_mtime_ns)
    return Info(name, OTHER)


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_token(token: str) -> bytes:
    """Read after which path a page begins. Raises RetinueError(FIELD_INVALID)."""
    try:
        return b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        raise RetinueError.field("page_token", "must be one that an answer held.") from None


def page(folder: int, above: bytes, after: bytes, *, recursive: bool, size: int) -> tuple[list[Info], str]:
    """List a page of an open folder whose path is `above`, beginning behind the path `after`; answers the next token.

    Raises RetinueError(QUOTA_EXCEEDED) for a folder of so many files that they cannot be sorted here.
    """
    found: list[Info] = []
    last = b""
    for path, info in _Walk(after, recursive).tell(folder, above + b"/" if above else b"", 1):
        if len(found) == size:
            return found, urlsafe_b64encode(last).decode()
        found.append(info)
        last = path
    return found, ""


class _Walk:
    """One way through a tree. A folder that others change meanwhile is told as it was, or as it is."""

    def __init__(self, after: bytes, recursive: bool) -> None:
        self._after = after
        self._recursive = recursive
        self._left = SCANNED_MAX

    def tell(self, folder: int, prefix: bytes, depth: int) -> Iterator[tuple[bytes, Info]]:
        """Tell what is in a folder, and in those within it: "a", then "a-b", then "a/c"."""
        for key in self._keys(folder, prefix, depth):
            name = key[len(prefix) :].removesuffix(b"/")
            try:
                if key.endswith(b"/"):
                    with closing(enter(folder, name)) as inner:
                        yield from self.tell(inner, key, depth + 1)
                else:
                    yield key, describe(key, os.stat(name, dir_fd=folder, follow_symlinks=False))
            except OSError:  # gone, or another kind of thing, since it was seen
                continue

    def _keys(self, folder: int, prefix: bytes, depth: int) -> list[bytes]:
        """Sort the names that are still to be told; what is in a folder comes where its name with a slash does."""
        keys: list[bytes] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    raise RetinueError(Reason.QUOTA_EXCEEDED, f"There are more than {SCANNED_MAX} files to look at.")
                name = os.fsencode(entry.name)
                if name.startswith(STAGED):
                    continue
                path, within = prefix + name, prefix + name + b"/"
                if path > self._after:
                    keys.append(path)
                ahead = within > self._after or self._after.startswith(within)
                if self._recursive and ahead and depth < DEPTH_MAX and _is_text(name) and _is_folder(entry):
                    keys.append(within)
        return sorted(keys)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
