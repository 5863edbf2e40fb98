"""What the service and the program inside a box say to one another, over one Unix stream socket.

A frame is HEADER (kind, number of the execution, length) and a payload:

    RUN, PYTHON   LIMITS, then PARTS: standard input or source, folder, environment as names and values, and arguments
    KILL          ends an execution with all that it has started
    CREDIT        a number: bytes of output, FRAME_COST more for each frame, that may be sent on beyond WINDOW
    HELLO         a number: VERSION
    STDOUT …ERR   a number: bytes left out just before; then the output
    EXIT          END: outcome, exit code, milliseconds of time and of processors, bytes of memory

In a box this file lies beside `agent.py`: standard library only.
"""

from __future__ import annotations

import struct

VERSION = 1

HEADER = struct.Struct("!BII")
LIMITS = struct.Struct("!ddQIQQI")
"""Seconds of time and of processors, bytes of memory, processes, bytes of output, bytes of a file, open files."""
PARTS = struct.Struct("!II")
"""How many variables and arguments there are; each part is a NUMBER, its length, and its bytes."""
NUMBER = struct.Struct("!I")
END = struct.Struct("!BiIIQ")

RUN, PYTHON, KILL, CREDIT = 1, 2, 3, 4
HELLO, STDOUT, STDERR, EXIT = 16, 17, 18, 19

OUTCOMES = (
    "exited", "signalled", "cancelled", "wall_time", "cpu_time", "memory", "processes", "output", "file_size", "disk",
    "no_folder", "busy",
)  # fmt: skip
"""By number, as they are sent. The last two were not begun: the folder is none, EXECUTIONS_MAX are there."""

WINDOW = 256 * 1024
"""Bytes of output on their way for one execution. A reader that does not read lets the pipe fill, not memory."""

FRAME_COST = 64
"""What a frame takes of the window besides its output."""

CHUNK = 64 * 1024
"""Bytes of output in a frame; as much as a pipe holds."""

REQUEST_MAX = 8 * 1024 * 1024
"""Bytes of one frame to the agent."""

EXECUTIONS_MAX = 64
"""At once in one box."""

NUMBER_MAX = 0xFFFFFFFF


def put_parts(first: bytes, folder: bytes, environ: list[tuple[bytes, bytes]], argv: list[bytes]) -> bytes:
    """Write PARTS."""
    parts = [first, folder, *(part for pair in environ for part in pair), *argv]
    return PARTS.pack(len(environ), len(argv)) + b"".join(NUMBER.pack(len(part)) + part for part in parts)


def take_parts(data: memoryview) -> tuple[bytes, bytes, dict[bytes, bytes], list[bytes]]:
    """Read what `put_parts` has written."""
    variables, arguments = PARTS.unpack_from(data)
    parts, at = [], PARTS.size
    for _ in range(2 + 2 * variables + arguments):
        (length,) = NUMBER.unpack_from(data, at)
        at += NUMBER.size
        parts.append(bytes(data[at : at + length]))
        at += length
    middle = 2 + 2 * variables
    names, values = parts[2:middle:2], parts[3:middle:2]
    return parts[0], parts[1], dict(zip(names, values)), parts[middle:]  # noqa: B905 - Python 3.9 has no `strict`


class Kept:
    """The first and the last half of a stream."""

    def __init__(self, size: int) -> None:
        self.total = 0
        self.omitted = 0
        """Bytes left out between the halves; right once `rest` was asked for."""
        self._head_left = size - size // 2
        self._tail = bytearray()
        self._tail_size = size // 2

    def take(self, data: bytes) -> bytes:
        """Take what was said; answers what of it is to be sent now."""
        self.total += len(data)
        head = data[: self._head_left]
        self._head_left -= len(head)
        self._tail += data[len(head) :]
        if len(self._tail) > 2 * self._tail_size:
            self._cut()
        return head

    def rest(self) -> bytes:
        """Answer the last half, once the stream has ended."""
        self._cut()
        return bytes(self._tail)

    def _cut(self) -> None:
        excess = max(0, len(self._tail) - self._tail_size)
        del self._tail[:excess]
        self.omitted += excess
