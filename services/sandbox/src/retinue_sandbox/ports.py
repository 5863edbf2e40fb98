"""The parts of the sandbox and what they promise one another. Read this first."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Isolation(StrEnum):
    """What stands between a box and the machine, from the weakest to the strongest."""

    NAMESPACE = "namespace"
    GVISOR = "gvisor"
    MICROVM = "microvm"

    def at_least(self, least: "Isolation") -> bool:
        """Whether this wall is as strong as that one."""
        order = list(Isolation)
        return order.index(self) >= order.index(least)


class Outcome(StrEnum):
    """How an execution ended: by itself, by somebody's wish, or by a limit."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    CANCELLED = "cancelled"
    WALL_TIME = "wall_time"
    CPU_TIME = "cpu_time"
    MEMORY = "memory"
    PROCESSES = "processes"
    OUTPUT = "output"
    FILE_SIZE = "file_size"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one execution may use; what is refused, and the defaults, are `limits.read`'s."""

    wall_s: float = 30.0
    cpu_s: float = 10.0
    memory_bytes: int = 512 << 20
    process_count: int = 64
    output_bytes: int = 1 << 20
    """Of each stream."""
    file_bytes: int = 64 << 20
    open_file_count: int = 256


@dataclass(frozen=True, slots=True)
class Profile:
    """Which kind of box."""

    min_isolation: Isolation = Isolation.NAMESPACE
    egress: tuple[str, ...] = ()
    """What may be reached over the network, as "host:port", sorted."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command to run."""

    argv: Sequence[str]
    stdin: bytes = b""
    cwd: str = ""
    """Beneath /workspace."""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """Python source to run in a warm interpreter, in a process and with names of its own."""

    text: str


Work = Command | Source


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of output. `omitted_bytes` were left out just before it."""

    stream: str
    data: bytes
    omitted_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How it ended."""

    outcome: Outcome
    exit_code: int = 0
    duration_ms: int = 0
    cpu_ms: int = 0
    memory_bytes: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant's files, open: boxes see them as /workspace.

    `fd` is of the folder itself (O_PATH|O_DIRECTORY), owned by whoever opened it. `uid` is whose the files are on this
    machine, and as whom boxes of the tenant run.
    """

    tenant_id: str
    fd: int
    uid: int


class Workspaces(Protocol):
    """The tenants' files on this machine. Implemented by `files/roots.py`."""

    def open(self, tenant_id: str) -> Workspace:
        """Open a tenant's files, made if they are new, closed to every other user. The caller closes the `fd`."""
        ...

    async def over_quota(self, tenant_id: str, held_bytes: int = 0) -> str:
        """Say what is too much, in one sentence for a person; "" if nothing is. Bytes and inodes both count, and
        `held_bytes` beside the files that have names.
        """
        ...


class Box(Protocol):
    """An open box. What it runs side by side is bounded by whoever holds it."""

    isolation: Isolation
    lost: asyncio.Event
    """Set once the box has ended, by `close` or by itself: then nothing can be run in it any more, and what was running
    has been killed, though it may not be gone yet."""

    def run(self, work: Work, limits: Limits) -> AsyncGenerator[Piece | Exit, None]:
        """Run something; ends with an Exit. Closing the generator kills all that it has started. Raises RetinueError
        (SANDBOX_UNAVAILABLE) where the box is lost, FIELD_INVALID where the work makes no sense (no such program is an
        Exit with code 127).
        """
        ...

    async def close(self) -> None:
        """End it with every process in it; returns once they are gone. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """One look of a self-test."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


class Backend(Protocol):
    """Makes boxes. Implemented by `bwrap/backend.py`, `pod/backend.py` and `refuse.py`."""

    name: str
    isolation: Isolation | None
    """None where nothing is executed."""

    async def check(self) -> list[Check]:
        """Try out what boxes depend on, in a box. Never raises; within CHECK_TIMEOUT_S."""
        ...

    async def open(self, workspace: Workspace, profile: Profile) -> Box:
        """Open a box. Raises RetinueError(SANDBOX_UNAVAILABLE, metadata.check) if that cannot be had."""
        ...

    async def held_bytes(self, tenant_id: str) -> int:
        """Bytes of files that processes in a tenant's boxes have open and that have no name any more, as far as can be
        seen from outside.
        """
        ...

    async def close(self) -> None:
        """End every box."""
        ...


CHECK_TIMEOUT_S = 20.0
"""For a whole self-test; it takes about a second."""

AGENT_FD = 0
"""In a box the agent finds its end of the control socket here; its standard output and error are the void."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A box that bubblewrap has made, the agent running in it as its first program. `bwrap/launcher.py` makes it."""

    control: socket.socket
    """Our end of a Unix stream socket whose other end is the agent's AGENT_FD; not blocking."""
    pidfd: int
    """Of the namespace's process 1: killing it ends everything inside."""
    pid: int
    """The same process as this machine counts."""
    process: "asyncio.subprocess.Process"
    """bubblewrap; it ends with the box."""


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """What a box is made of."""

    workspace: Workspace
    process_count: int = 512
    """Processes and threads in the box at once, whatever single executions may have."""
    egress_folder: str = ""
    """Folder, on this machine, of the proxy's Unix socket; "" where nothing may be reached."""


class Launcher(Protocol):
    """Makes boxes with bubblewrap."""

    async def launch(self, spec: BoxSpec) -> Launched:
        """Make one. Raises RetinueError(SANDBOX_UNAVAILABLE, metadata.check) if it does not come to be in time."""
        ...


class Egress(Protocol):
    """The proxy through which a box reaches what policy grants. Implemented by `egress/`."""

    def check(self) -> Check:
        """Say whether boxes can be given a way out; it is not required, since boxes without one are none the worse."""
        ...

    async def grant(self, name: str, hosts: Sequence[str], tenant_id: str = "") -> str:
        """Open a way out to these "host:port"; answers the folder of its socket. `name` is the box's, unique.

        `tenant_id` is whose box it is: decisions are written down with it, and secrets of tenants go by it. Any user of
        this machine may connect who can reach the folder. Raises RetinueError (FIELD_INVALID for what is
        no "host:port", SANDBOX_UNAVAILABLE, metadata.check "egress", where there is no proxy).
        """
        ...

    async def revoke(self, name: str) -> None:
        """Close it. Safe to call twice."""
        ...
