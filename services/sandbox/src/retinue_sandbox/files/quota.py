"""How much a tenant's files take up, counted on the disk: from outside nobody can say what a box has written."""

import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.files.beneath import closing, enter
from retinue_sandbox.files.paths import DEPTH_MAX, STAGED

SIZE_MAX_BYTES = 256 << 20
"""Of all files of a tenant: a few large projects."""

INODE_COUNT_MAX = 16_384
"""Files and folders of a tenant: two unpacked environments of a language."""

COUNTED_MAX = 8 * INODE_COUNT_MAX
"""Where counting ends: whoever has so many has too many, whatever more there is."""

BLOCK_SIZE_BYTES = 512
"""What the system counts in, on every file system."""

GRAIN_SIZE_BYTES = 4096
"""What a file system gives out; the last piece of a file is rarely full."""

COUNT_FRESH_S = 10.0
"""How old a count may be that a write is judged by; writes of this process are added to it meanwhile."""

LOOK_FRESH_S = 1.0
LOOK_COST_MAX = 20
"""How old a count may be where a box is at work: a second, or 20 times as long as counting took, a twentieth of a
processor at most."""

TENANTS_REMEMBERED_MAX = 4096
STAGED_AGE_MAX_S = 3600.0
"""A file that is being written is renamed within seconds; one of this age was left by a process that was killed."""


@dataclass(slots=True)
class Usage:
    """What there is; `too_deep` where folders lie so deep within one another that not all was seen."""

    size_bytes: int = 0
    inode_count: int = 0
    too_deep: bool = False

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.size_bytes + other.size_bytes, self.inode_count + other.inode_count, self.too_deep or other.too_deep
        )


def size_of(found: os.stat_result) -> int:
    """Bytes that a file takes up; holes in it take up none."""
    return found.st_blocks * BLOCK_SIZE_BYTES


def size_for(length: int) -> int:
    """Bytes that so many will take up."""
    return -(-length // GRAIN_SIZE_BYTES) * GRAIN_SIZE_BYTES


def count(folder: int) -> Usage:
    """Count what an open folder holds; a file with several names counts once. What is long left over is removed."""
    usage = Usage()
    _count(folder, usage, set(), 1)
    return usage


def _count(folder: int, usage: Usage, seen: set[tuple[int, int]], depth: int) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if usage.inode_count >= COUNTED_MAX:
                return
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                if (found.st_dev, found.st_ino) in seen:
                    continue
                seen.add((found.st_dev, found.st_ino))
            usage.inode_count += 1
            usage.size_bytes += size_of(found)
            if stat.S_ISDIR(found.st_mode):
                _count_within(folder, os.fsencode(entry.name), usage, seen, depth)
            elif os.fsencode(entry.name).startswith(STAGED) and time.time() - found.st_mtime > STAGED_AGE_MAX_S:
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=folder)


def _count_within(folder: int, name: bytes, usage: Usage, seen: set[tuple[int, int]], depth: int) -> None:
    if depth >= DEPTH_MAX:
        usage.too_deep = True
        return
    with suppress(FileNotFoundError, NotADirectoryError), closing(enter(folder, name)) as inner:
        _count(inner, usage, seen, depth + 1)


@dataclass(slots=True)
class _Counted:
    usage: Usage
    at: float
    took_s: float


class Quota:
    """Remembers what was counted. Safe to use from any thread; every method may block for as long as counting takes."""

    def __init__(
        self,
        counting: Callable[[str], Usage],
        size_max_bytes: int = SIZE_MAX_BYTES,
        inode_count_max: int = INODE_COUNT_MAX,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counting = counting
        self._size_max_bytes = size_max_bytes
        self._inode_count_max = inode_count_max
        self._now = now
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Counted] = OrderedDict()

    def admit(self, tenant_id: str, size_bytes: int, inode_count: int) -> None:
        """Raise RetinueError(QUOTA_EXCEEDED) if so much more is too much. What takes up no more is always admitted."""
        if size_bytes <= 0 and inode_count <= 0:
            return
        more = Usage(max(0, size_bytes), max(0, inode_count))
        text = self._judge(self._usage(tenant_id, lambda known: COUNT_FRESH_S) + more)
        if text:
            raise RetinueError(Reason.QUOTA_EXCEEDED, text)

    def add(self, tenant_id: str, size_bytes: int, inode_count: int) -> None:
        """Remember what a call has written; less than nothing for what it removed."""
        with self._lock:
            known = self._known.get(tenant_id)
            if known is not None and known.usage.too_deep and inode_count < 0:
                del self._known[tenant_id]  # whether what lay too deep is gone has to be looked at
            elif known is not None:
                known.usage = known.usage + Usage(size_bytes, inode_count)

    def over(self, tenant_id: str, held_bytes: int = 0) -> str:
        """Say what is too much at present, with `held_bytes` that are not counted here; "" if nothing is."""
        usage = self._usage(tenant_id, lambda known: max(LOOK_FRESH_S, LOOK_COST_MAX * known.took_s))
        return self._judge(usage + Usage(held_bytes))

    def _usage(self, tenant_id: str, fresh_s: Callable[[_Counted], float]) -> Usage:
        with self._lock:
            known = self._known.get(tenant_id)
            if known is not None and self._now() - known.at < fresh_s(known):
                return known.usage
        began = self._now()
        usage = self._counting(tenant_id)
        with self._lock:
            self._known[tenant_id] = _Counted(usage, began, self._now() - began)
            self._known.move_to_end(tenant_id)
            while len(self._known) > TENANTS_REMEMBERED_MAX:
                self._known.popitem(last=False)
        return usage

    def _judge(self, usage: Usage) -> str:
        if usage.too_deep:
            return f"Folders lie more than {DEPTH_MAX} deep within one another."
        if usage.size_bytes > self._size_max_bytes:
            return f"The tenant's files take up more than {self._size_max_bytes >> 20} MiB."
        if usage.inode_count > self._inode_count_max:
            return f"The tenant has more than {self._inode_count_max} files and folders."
        return ""
