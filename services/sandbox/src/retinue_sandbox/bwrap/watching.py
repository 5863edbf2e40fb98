"""What runs in a box, and what it uses, as /proc tells it. Beside `agent.py` in a box: standard library only.

Without a cgroup nobody else counts what several processes use together. Looking ten times a second is not a wall: what
is quicker is held by the limits of single processes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from retinue_sandbox.bwrap import framing

PAGE = resource.getpagesize()
TICKS = os.sysconf("SC_CLK_TCK")
FILE_SIZE_MAX = 64 * 1024
"""Read of a file of /proc."""

SEGMENTS_SIZE_MAX = 1024 * 1024
"""Read of the list of System V segments; a namespace has 4096 of them, of about 120 bytes, unless it is changed."""

NUMBER, ATTACHED, RESIDENT = 1, 6, 14
"""Columns of that list."""

IPC_RMID = 0

Key = tuple[int, bytes]
"""A process's id and when it began: ids come again."""


class Process:
    """A line of /proc."""

    __slots__ = ("cpu", "group", "key", "parent", "pid", "rss", "session", "state", "threads", "waited_cpu")

    def __init__(self, pid: int, line: bytes) -> None:
        fields = line.rpartition(b")")[2].split()
        self.pid = pid
        self.state = fields[0]
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.cpu = (int(fields[11]) + int(fields[12])) / TICKS
        self.waited_cpu = (int(fields[13]) + int(fields[14])) / TICKS
        self.threads = int(fields[17])
        self.key: Key = (pid, fields[19])
        self.rss = int(fields[21]) * PAGE


def processes() -> dict[int, Process]:
    """Find all processes of the box, by id."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            line = _read(f"/proc/{name}/stat")
            if line:
                found[int(name)] = Process(int(name), line)
    return found


def memory(of: list[Process], most: int) -> int:
    """Bytes of memory of processes together, with System V segments that none has mapped. What is at most
    `most` may be told too high: pages that several share are divided among them only where it matters.
    """
    segments = _segments()
    total = segments + sum(one.rss for one in of)
    return total if total <= most else segments + sum(_proportional(one) for one in of)


def _proportional(process: Process) -> int:
    for line in _read(f"/proc/{process.pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return process.rss


def _segments() -> int:
    return sum(int(row[RESIDENT]) for row in _segment_rows() if row[ATTACHED] == b"0")


def forget_segments() -> None:
    """Remove the box's System V segments: nobody is left who has made one, and they would count for who comes next."""
    rows = _segment_rows()
    if rows:
        libc = ctypes.CDLL(None)
        for row in rows:
            libc.shmctl(int(row[NUMBER]), IPC_RMID, None)


def _segment_rows() -> list[list[bytes]]:
    """List the box's segments, with their columns."""
    listed = b""
    with open("/proc/sysvipc/shm", "rb", buffering=0) as file:
        # The kernel gives out a page at a time.
        while len(listed) < SEGMENTS_SIZE_MAX and (page := file.read(FILE_SIZE_MAX)):
            listed += page
    rows = [line.split() for line in listed.splitlines()[1:]]
    return [row for row in rows if len(row) > RESIDENT]


def _read(path: str) -> bytes:
    """Read a small file of /proc; nothing if it is gone or closed to us."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, FILE_SIZE_MAX)
    except OSError:
        return b""
    finally:
        os.close(fd)


class Use:
    """What one execution uses."""

    def __init__(self, number: int = 0) -> None:
        self.mark = b"%d" % number
        self.known: set[Key] = set()
        """Its processes when they were looked at last: they are its own whatever becomes of their parents."""
        self.cpu_s = 0.0
        self.processes_peak = 0
        self._gone_cpu_s = 0.0
        self._seen_cpu_s: dict[Key, float] = {}

    def look(self, own: list[Process], strays: list[Process]) -> None:
        """Take down what there is now; strays belong to nobody, and count for everybody."""
        self.known = {one.key for one in own}
        self.processes_peak = max(self.processes_peak, sum(one.threads for one in own + strays))
        now = {one.key: one.cpu for one in own + strays}
        self._gone_cpu_s += sum(spent for key, spent in self._seen_cpu_s.items() if key not in now)
        self._seen_cpu_s = now
        seen = self._gone_cpu_s + sum(now.values())
        waited = sum(one.cpu + one.waited_cpu for one in own)
        self.cpu_s = max(self.cpu_s, seen, waited)


MARK = b"BOX_EXECUTION"
"""Variable by which what has left its parents is known, unless it takes it away: the number of its execution."""


def _mark(process: Process) -> bytes:
    for variable in _read(f"/proc/{process.pid}/environ").split(b"\0"):
        name, _, value = variable.partition(b"=")
        if name == MARK:
            return value
    return b""


def owners(
    found: dict[int, Process],
    roots: dict[int, Use],
    own: tuple[int, ...],
    mark: Callable[[Process], bytes] = _mark,
) -> dict[int, Use | None]:
    """Tell whose each process is: that of the root above it, or of the root whose session or group it is in, or whose
    it was before, or whose mark it bears. `own` are processes of the box itself; what belongs to nobody is None.
    """
    known = {key: use for use in roots.values() for key in use.known}
    marked = {use.mark: use for use in roots.values()}
    told: dict[int, Use | None] = dict.fromkeys(own)
    for process in found.values():
        path: list[int] = []
        at: Process | None = process
        owner: Use | None = None
        while at is not None and at.pid not in told:
            owner = roots.get(at.pid) or roots.get(at.session) or roots.get(at.group) or known.get(at.key)
            if owner is None and at.parent in own:
                owner = marked.get(mark(at))
            path.append(at.pid)
            told[at.pid] = owner  # for now, so that this ends whatever /proc says
            at = None if owner is not None else found.get(at.parent)
        if owner is None and at is not None:
            owner = told[at.pid]
        told.update(dict.fromkeys(path, owner))
    return told


class Execution:
    """What runs, or has run and still has something to say."""

    def __init__(self, number: int, limits: tuple[float, float, int, int, int, int, int], window: int) -> None:
        wall_s, self.cpu_s, self.memory, self.processes, self.output, self.file_size, self.files = limits
        self.number = number
        self.began = time.monotonic()
        self.end = self.began + wall_s
        self.pid = 0
        self.use = Use(number)
        self.memory_peak = 0
        self.outcome = ""
        """The limit or wish that it was killed for."""
        self.status: int | None = None
        """How its first process ended; None while that runs."""
        self.pipes: dict[int, tuple[int, framing.Kept]] = {}
        """Kind of frame and what is kept, by descriptor of what is still read."""
        self.queue: list[tuple[int, int, bytes]] = []
        """Kind of frame, bytes left out before, and output: what was read and not sent."""
        self.credit = window
        self.paused = False
        self.stdin = -1
        self.to_say = memoryview(b"")
        self.why = -1

    def exceeded(self) -> str:
        """Name a limit that it had come to, as far as was seen; "" if none was."""
        if self.use.cpu_s >= self.cpu_s:
            return "cpu_time"
        return "processes" if self.use.processes_peak >= self.processes else ""

    def take_letter(self) -> bytes:
        """Read what source said of a limit, and let go of where it was said."""
        letter = b""
        if self.why >= 0:
            os.set_blocking(self.why, False)
            try:
                letter = os.read(self.why, 1)
            except BlockingIOError:
                letter = b""
            os.close(self.why)
            self.why = -1
        return letter
