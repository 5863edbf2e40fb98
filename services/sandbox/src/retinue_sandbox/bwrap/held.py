"""What processes of a box hold of files that no longer have a name: no count of folders finds them.

Seen from outside, since what runs in a box can hide from what has its user. Where the machine does not let this process
look, nothing is seen; a file that is only on its way from one process to another, through a socket, is not seen either.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROCESSES_MAX = 1024
"""Looked at in one box; it can have 512 processes and threads."""

FILES_MAX = 65_536
"""Looked at in one box, as many as 256 processes can have open with the usual limits."""

MAPS_MAX_BYTES = 4 << 20
"""Read of what one process has mapped; 40 000 lines, more than half of what the kernel allows."""

BLOCK_SIZE_BYTES = 512
"""What the system counts in, on every file system."""

DELETED = b" (deleted)"

File = tuple[int, int]
"""A file system and a file of it."""


def held_bytes(first_pid: int, device: int) -> int:
    """Bytes that the nameless files of one file system take up that a process, or one beneath it, has open or mapped.

    Blocks: some file operations for each process. Never raises OSError; what goes away meanwhile does not count.
    """
    found: dict[File, int] = {}
    looked = 0
    for pid in _beneath(first_pid):
        for path in (f"/proc/{pid}/fd", f"/proc/{pid}/map_files"):
            for link in _links(path, pid):
                looked += 1
                if looked > FILES_MAX:
                    return sum(found.values())
                with suppress(OSError):
                    seen = os.stat(link)
                    if seen.st_dev == device and seen.st_nlink == 0 and stat.S_ISREG(seen.st_mode):
                        found[seen.st_dev, seen.st_ino] = seen.st_blocks * BLOCK_SIZE_BYTES
    return sum(found.values())


def _links(folder: str, pid: int) -> list[str]:
    """List what a process has open, or what it has mapped of files without a name."""
    with suppress(OSError):
        if folder.endswith("/fd"):
            return [f"{folder}/{name}" for name in os.listdir(folder)]
        with open(f"/proc/{pid}/maps", "rb") as file:  # the folder itself would tell of each library
            lines = file.read(MAPS_MAX_BYTES).splitlines()
        return [f"{folder}/{_place(line)}" for line in lines if line.endswith(DELETED)]
    return []


def _place(line: bytes) -> str:
    """Name a mapping as the folder does, without leading noughts."""
    begin, _, end = line.partition(b" ")[0].decode().partition("-")
    return f"{int(begin, 16):x}-{int(end, 16):x}"


def _beneath(first_pid: int) -> Iterator[int]:
    """A process and all that it has started; in a box those without parents become the first one's."""
    waiting = [first_pid]
    for _ in range(PROCESSES_MAX):
        if not waiting:
            return
        pid = waiting.pop()
        yield pid
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError):
                    waiting += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text("ascii").split())
