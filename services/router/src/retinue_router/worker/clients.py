"""The services that a worker asks: policy, directory, runtime-adapter. A neighbour that restarts is waited for."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from google.protobuf import duration_pb2
from retinue.directory.v1 import directory_service_pb2 as directory_pb
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.policy.v1 import breaker_pb2 as breaker_pb
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.portability.v1 import bundle_pb2 as bundle_pb
from retinue.portability.v1 import portability_service_pb2 as portability_pb
from retinue.portability.v1 import portability_service_pb2_grpc as portability_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

RUNTIME_ADAPTER = "runtime-adapter"
"""The adapter's name among dependencies."""

PATIENCE_S = 10.0
"""How long a neighbour that does not answer is waited for: several times what a restart takes, so that a deploy costs
no attempt."""

PAUSE_S = 0.2

AGENT_TTL_S = 5.0
"""How long a tenant's agent is remembered; a change of persona is seen within this."""

AGENTS_MAX = 10_000
"""Agents remembered at once; the oldest is forgotten first."""

INVOKE_MARGIN_S = 5.0
"""The adapter keeps the run's own time limit; the call ends a little later, for the case that it does not."""

ABORT_TIMEOUT_S = 1.0
"""Whoever cancelled a run waits for this call; a runtime that did not hear of it lets go of the run some time later."""

CARRY_TIMEOUT_S = 8.0
"""For a bundle of a long session to be read, built and rendered: a hundred times what one of 500 turns takes."""

SUMMARIZE_TIMEOUT_S = 45.0
"""For a model to sum up a long session, or for us to, once it has not."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()
R = TypeVar("R")


async def patiently(call: Callable[[], Awaitable[R]], clock: Clock) -> R:
    """Repeat a call, which must be idempotent, while its service does not answer, for PATIENCE_S at most."""
    until = clock.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except RetinueError as error:
            if error.reason is not Reason.DEPENDENCY_UNAVAILABLE or clock.monotonic() > until:
                raise
        await asyncio.sleep(PAUSE_S)


@dataclass(frozen=True, slots=True)
class Agent:
    """A tenant's agent, as runtimes need to know it."""

    agent_id: str
    persona: str


class Policy:
    """Asks how a run is to be executed."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = policy_grpc.PolicyServiceStub(peer.channel)

    async def decide(self, request: policy_pb.DecideRequest) -> policy_pb.Decision:
        """Raises what policy refuses with."""
        response: policy_pb.DecideResponse = await self._peer.call(self._stub.Decide, request)
        return response.decision

    async def report(self, outcomes: list[breaker_pb.Outcome]) -> None:
        """Say how attempts went, in order; at most 500. Raises RetinueError."""
        await self._peer.call(self._stub.ReportOutcomes, policy_pb.ReportOutcomesRequest(outcomes=outcomes))


class Directory:
    """Knows tenants' agents, for a few seconds without asking again."""

    def __init__(self, peer: Peer, clock: Clock) -> None:
        self._peer = peer
        self._stub = directory_grpc.DirectoryServiceStub(peer.channel)
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Agent]] = OrderedDict()

    async def agent(self, tenant_id: str) -> Agent:
        """The tenant's agent; one that was known is used while the directory is away. Raises TENANT_NOT_FOUND."""
        known = self._known.get(tenant_id)
        now = self._clock.monotonic()
        if known is not None and now < known[0]:
            return known[1]
        try:
            request = directory_pb.GetTenantRequest(tenant_id=tenant_id)
            response: directory_pb.GetTenantResponse = await self._peer.call(self._stub.GetTenant, request)
        except RetinueError as error:
            if known is not None and error.reason is Reason.DEPENDENCY_UNAVAILABLE:
                return known[1]
            raise
        agent = Agent(response.tenant.agent.agent_id, response.tenant.agent.persona)
        self._known[tenant_id] = (now + AGENT_TTL_S, agent)
        self._known.move_to_end(tenant_id)
        if len(self._known) > AGENTS_MAX:
            self._known.popitem(last=False)
        return agent


class Portability:
    """Carries contexts over, and sums them up. Without an address there is nobody who could."""

    def __init__(self, peer: Peer | None) -> None:
        self._peer = peer
        self._stub = portability_grpc.PortabilityServiceStub(peer.channel) if peer is not None else None

    async def carry(self, request: portability_pb.CarryContextRequest) -> portability_pb.CarryContextResponse:
        """Take a session's context into another runtime. Raises RetinueError."""
        peer, stub = self._there()
        response: portability_pb.CarryContextResponse = await peer.call(
            stub.CarryContext, request, timeout_s=CARRY_TIMEOUT_S
        )
        return response

    async def summarize(self, request: portability_pb.SummarizeSessionRequest) -> bundle_pb.SummaryPart:
        """Sum up the older part of a session. Raises MODEL_CONTEXT_OVERFLOW if there is none."""
        peer, stub = self._there()
        response: portability_pb.SummarizeSessionResponse = await peer.call(
            stub.SummarizeSession, request, timeout_s=SUMMARIZE_TIMEOUT_S
        )
        return response.summary

    def _there(self) -> tuple[Peer, Any]:
        if self._peer is None:
            raise RetinueError.unavailable("portability", private="no address is set")
        return self._peer, self._stub


class Runtimes:
    """Drives runtimes through the adapter."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stub = adapter_grpc.RuntimeAdapterServiceStub(peer.channel)

    async def ready(self) -> None:
        """Wait until there is a connection, which costs nothing where there is one: an adapter that restarts is waited
        for, so that what it never heard of costs no attempt. Raises DEPENDENCY_UNAVAILABLE after PATIENCE_S.
        """
        await self._peer.ready(PATIENCE_S)

    async def invoke(
        self, request: adapter_pb.InvokeRequest, accepted: Callable[[], None]
    ) -> AsyncGenerator[RuntimeEvent, None]:
        """Execute one attempt; leaving the iteration aborts it. Raises RetinueError if the adapter is lost.

        `accepted` is called once the adapter has taken it up; what is lost before has come to nothing.
        """
        timeout_s = request.run_time.ToTimedelta().total_seconds() + INVOKE_MARGIN_S
        async for response in self._peer.stream(self._stub.Invoke, request, timeout_s=timeout_s, accepted=accepted):
            for event in response.events:
                yield event

    async def abort(self, tenant_id: str, run_id: str, runtime: str) -> None:
        """Have a runtime stop a run that nobody goes on with, as well as that can be done at once."""
        request = adapter_pb.AbortRunRequest(tenant_id=tenant_id, run_id=run_id, runtime=runtime)
        try:
            await self._peer.call(self._stub.AbortRun, request, timeout_s=ABORT_TIMEOUT_S)
        except RetinueError as error:
            log.info("run not aborted", run_id=run_id, detail=error.private or error.message)


def duration(seconds: float) -> duration_pb2.Duration:
    """Write a span of time."""
    span = duration_pb2.Duration()
    span.FromMilliseconds(int(seconds * 1000))
    return span
