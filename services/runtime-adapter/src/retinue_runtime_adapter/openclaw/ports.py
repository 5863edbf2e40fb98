"""The parts that drive OpenClaw, and what they promise one another.

    adapter.py ── an attempt: place ─► session ─► turn ─► events
      ├─ pool.py            which instance and agent serve a tenant; starts, warms, watches and ends instances
      │    └─ backends/     how an instance's processes are begun and ended: local process, Docker, Kubernetes
      ├─ gateway.py         one instance's WebSocket: requests, runs, reconnection
      │    └─ turn.py       frames of one run ─► events; no I/O
      ├─ sessions.py        what each OpenClaw session has been told, so that it is told the rest
      ├─ contexts.py        what a session holds, read out; a context, put in
      └─ model_proxy.py     the only model endpoint that an instance knows: ours

One gateway is one trust domain: identity is checked here, on our side, and nothing that a gateway says is believed to
be about another run than the one it was asked for.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from retinue.runtime_adapter.v1.instance_service_pb2 import Instance
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent

from retinue_runtime_adapter.domain.troubles import Trouble


class Isolation(StrEnum):
    """Who shares a gateway: tenants of the plans that accept it, or nobody."""

    SHARED = "shared"
    CELL = "cell"


# --- backends: processes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What a backend needs to begin an instance. The folder is the instance's own, empty but for its configuration."""

    instance_id: str
    isolation: Isolation
    folder: str
    """Absolute; holds `openclaw.json` (mode 0600), and all that OpenClaw writes."""
    config: Callable[[str, int], bytes]
    """Writes openclaw.json for the host it binds ("127.0.0.1" for loopback) and the port that the backend chose."""
    heap_mib: int
    """Old space of Node's heap."""
    memory_mib: int
    """Memory of all its processes, where the backend can limit it."""


@dataclass(slots=True)
class Process:
    """An instance that a backend began."""

    instance_id: str
    address: str
    """`host:port` of its WebSocket and of /healthz and /readyz, on loopback or reached as if it were."""
    detail: dict[str, Any] = field(default_factory=dict)
    """The backend's own: pid, container, pod."""

    @property
    def why_over(self) -> str:
        """Why it ended, as far as its backend knows."""
        return str(self.detail.get("end") or "it ended.")

    @property
    def last_words(self) -> str:
        """What it said before it served anybody; later words may be a tenant's."""
        said = self.detail.get("said")
        return f" It said: {said}" if said else ""


class Backend(Protocol):
    """Begins and ends instances. All calls have deadlines; trouble is RetinueError(RUNTIME_UNAVAILABLE)."""

    name: str

    async def prepare(self) -> None:
        """Check once that instances can be begun here; end those that a former process of ours left behind."""
        ...

    async def begin(self, spec: InstanceSpec) -> Process:
        """Begin an instance and answer where it will listen; it need not serve yet."""
        ...

    async def is_alive(self, process: Process) -> bool:
        """Whether its main process runs."""
        ...

    async def memory_bytes(self, process: Process) -> int:
        """Memory of all its processes; 0 if unknown."""
        ...

    async def end(self, process: Process, grace_s: float) -> None:
        """End it and everything it began, within the grace or by force, and remove its folder. Idempotent."""
        ...

    async def close(self) -> None:
        """Let go of everything; every instance is ended."""
        ...


# --- gateway: the protocol -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunCall:
    """One run as it is asked of a gateway."""

    run_id: str
    """Our run's id and the gateway's idempotency key: asked again, the same run is joined or its end told again."""
    agent_id: str
    session_key: str
    text: str
    system: str
    """Added to the system prompt, for this run only."""
    time_s: float
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of one run, in order: `kind` is "event" (an `agent` event's payload), "final" (the second response's
    payload) or "rejoined" (the connection was lost and is back; `body` holds inFlightRun, or {} if it is over).
    """

    kind: str
    body: dict[str, Any]


class Gateway(Protocol):
    """The connection to one instance: reconnects by itself until it is closed."""

    async def request(
        self, method: str, params: dict[str, Any], *, timeout_s: float, traceparent: str = ""
    ) -> dict[str, Any]:
        """Ask and answer the payload. Raises Trouble: RUNTIME_UNAVAILABLE if it is not there, else as classified."""
        ...

    def run(self, call: RunCall) -> AsyncGenerator[Frame, None]:
        """Begin a run, or join one of the same id, and follow it to its final frame. Only its own frames are seen.

        Leaving does not abort. Raises Trouble; RUNTIME_UNAVAILABLE once the instance is lost for longer than a
        reconnection may take.
        """
        ...

    async def abort(self, session_key: str, run_id: str) -> bool:
        """Stop a run; True if it was running."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


class Turn(Protocol):
    """Frames of one run to events; a pure machine. `texts` join to the completed message."""

    def feed(self, frame: Frame) -> list[RuntimeEvent]:
        """Read a frame; answers what it tells, without the end."""
        ...

    @property
    def over(self) -> bool:
        """Whether the run has settled: executionSettled, and no tool call open; or the final frame has come."""
        ...


# --- pool: where a tenant is served --------------------------------------------------------------------------------


@dataclass(slots=True)
class Place:
    """Where a tenant is served, with a slot of its gateway's admission held."""

    instance_id: str
    agent_id: str
    gateway: Gateway
    sessions: dict[str, Any]
    """What sessions.py remembers of this instance and tenant; gone with them."""
    report: Callable[[bool], None]
    """Told of each run whether the gateway began it: one that begins none any more is replaced."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is going on in all gateways that serve."""

    slots: int
    """Runs that they admit at once."""
    running: int
    waiting: int


class Pool(Protocol):
    """Instances of all kinds, and who is served by which."""

    def status(self) -> tuple[bool, str]:
        """Whether a run could be taken now, and one line: the version and what there is, or why not."""
        ...

    def load(self) -> Load:
        """Count slots and runs."""
        ...

    def present(self, tenant_id: str) -> Place | None:
        """Where a tenant is served now, without a slot of its gateway; None where it is not served."""
        ...

    def place(self, tenant_id: str, isolation: Isolation, *, wait_s: float) -> AbstractAsyncContextManager[Place]:
        """Assign, warm up and admit, within the time. Raises Trouble(RUNTIME_UNAVAILABLE), retryable."""
        ...

    def instances(self) -> list[Instance]:
        """Describe all, oldest first."""
        ...

    def instance_of(self, tenant_id: str) -> Instance:
        """Describe a tenant's, naming that tenant alone. Raises RetinueError(INSTANCE_NOT_FOUND)."""
        ...

    async def create(self, tenant_id: str, isolation: Isolation) -> Instance:
        """Assign without a run, and warm up in the background. Raises RetinueError(RUNTIME_UNAVAILABLE)."""
        ...

    async def delete(self, tenant_id: str) -> None:
        """Take a tenant's agent off its instance; end a cell.

        Raises RetinueError: INSTANCE_NOT_FOUND; QUOTA_EXCEEDED, with a time, if the tenant did so too often of late.
        """
        ...


# --- model proxy ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Meter:
    """What the model calls of one run came to; filled by the proxy while they go on."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0
    model: str = ""
    calls: int = 0
    trouble: Trouble | None = None
    """The last call's, as our own classes say; None after a call that went well."""


class ModelProxy(Protocol):
    """An OpenAI-compatible endpoint on loopback. A credential is good while a run of its tenant is under way."""

    base_url: str
    """`http://127.0.0.1:PORT/v1`."""

    def credential(self, instance_id: str, tenant_id: str) -> str:
        """Make, or answer, the credential of a tenant on an instance."""
        ...

    def renew(self, instance_id: str, tenant_id: str) -> str:
        """Make the credential that is to follow, good beside the present one; the same until `renewed`."""
        ...

    def renewed(self, instance_id: str, tenant_id: str) -> None:
        """The gateway has it. The former one is good for a little longer, and for runs under way until they end."""
        ...

    def assign(self, instance_id: str, name: str, tenant_id: str) -> None:
        """Make a credential the tenant's that was made under another name, before it was known who would come."""
        ...

    def forget(self, instance_id: str, tenant_id: str = "") -> None:
        """End the credentials of an instance, or of one tenant there."""
        ...

    def run(
        self,
        *,
        instance_id: str,
        tenant_id: str,
        run_id: str,
        trace_id: str,
        model: str,
        parameters: dict[str, Any],
        on_reasoning: Callable[[str], None] | None,
        before: Sequence[dict[str, Any]] = (),
        tools: Sequence[str] | None = None,
        preface: str = "",
        on_overflow: Callable[[Trouble], None] | None = None,
    ) -> AbstractContextManager[Meter]:
        """Let a run's model calls through. A call is the run's whose trace id it carries, else the tenant's only run's.

        `trace_id` must be of our own making: one that clients choose could be that of two runs.

        `model` is the catalogue's name ("" the default): what the call's body names is not believed. Messages go to
        the model as `prompt.shape(messages, before, preface)` answers them, with the tools of these names alone; None
        means all. `on_overflow` is told of each call that is too long for the model.
        """
        ...

    def warm(self, instance_id: str, tenant_id: str) -> AbstractContextManager[None]:
        """While an agent is warmed up, its calls are answered here without any model."""
        ...
