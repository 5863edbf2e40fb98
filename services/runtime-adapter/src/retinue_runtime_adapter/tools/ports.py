"""What a tool is, whoever calls it. Read this first."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

RESULT_LENGTH_MAX = 64 * 1024
"""Characters of a result that a model is given: its first and its last half, with a note of what was left out."""

SUMMARY_LENGTH_MAX = 500
"""Characters of a summary that a person is asked about."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """For whom and in what a tool is called. Never taken from what a model or a runtime says."""

    tenant_id: str
    session_id: str
    run_id: str
    fencing_token: int
    runtime: str
    agent_id: str = ""
    contact: str = ""
    kind: str = "chat"
    model: str = ""
    principal: str = ""
    allowed: tuple[tuple[str, str], ...] = ()
    """Tool and pattern of what was allowed for good."""
    min_isolation: str = ""
    egress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as a model asked for it."""

    call_id: str
    tool: str
    arguments: Json
    approval_id: str = ""
    """The approval that allowed it; empty if none was needed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a call came to. `text` is for the model."""

    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of output while a call is under way; `stream` is "stdout" or "stderr"."""

    stream: str
    text: str


Progress = Callable[[Said], None]
"""Told of output as it comes; never waits."""


class Tool(Protocol):
    """A tool. `call` raises RetinueError, whose message the model is told; cancelling it stops what it has begun."""

    @property
    def name(self) -> str:
        """Name that models call it by."""
        ...

    @property
    def description(self) -> str:
        """What it does, for a model."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of its arguments."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether calls of one step may run side by side with others: it changes nothing that another may see."""
        ...

    @property
    def idempotent(self) -> bool:
        """Whether a call whose end is unknown may be made again."""
        ...

    async def call(self, scope: Scope, call: Call, progress: Progress) -> Result:
        """Do it, within a deadline of its own."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What may become of a call; see retinue.policy.v1.ToolDecision."""

    effect: Literal["allow", "ask", "deny"]
    layer: str = ""
    rule: str = ""
    reason: str = ""
    pattern: str = ""
    summary: str = ""
    expire_s: int = 0


class Authority(Protocol):
    """Says whether a call may be made. Without an answer, none is."""

    async def authorize(self, scope: Scope, call: Call, *, approved: bool = False) -> Verdict:
        """Ask policy. Raises RetinueError if it does not answer."""
        ...


class Toolbox(Protocol):
    """Finds tools. Implemented by `catalogue.Catalogue` over the built-in ones and a tenant's MCP servers."""

    async def offered(self, scope: Scope, names: Sequence[str]) -> Sequence[Tool]:
        """The tools of these names that are there; a server that is away leaves its own out."""
        ...

    async def find(self, scope: Scope, name: str) -> Tool | None:
        """One of them, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How an execution in a box ended; see retinue.sandbox.v1.Exit."""

    outcome: str
    exit_code: int = 0
    duration_ms: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Execution:
    """A command for a box."""

    argv: Sequence[str]
    stdin: bytes = b""
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    wall_time_s: float = 0.0
    """0 means the box's default."""
    output_size_bytes: int = 0


class Box(Protocol):
    """The sandbox service, for one who has a scope. Every method raises RetinueError."""

    def execute(self, scope: Scope, call: Call, execution: Execution) -> AsyncIterator[tuple[str, bytes] | Ended]:
        """Run a command; yields (stream, bytes), then how it ended. Leaving the iteration kills it."""
        ...

    def run_python(self, scope: Scope, call: Call, source: str) -> AsyncIterator[tuple[str, bytes] | Ended]:
        """Run Python source, likewise."""
        ...

    async def fence(self, scope: Scope) -> None:
        """Have every call under a lower token than the scope's refused from now on."""
        ...
