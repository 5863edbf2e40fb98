"""Building bundles: reading a session from its owners, and putting it together beside the loop."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from opentelemetry import trace
from retinue_kit import telemetry
from retinue_kit.errors import Reason, RetinueError

from retinue_portability.domain import budget, composing, rendering
from retinue_portability.domain.composing import Sources
from retinue_portability.domain.content import Cursor, Fact, Identity, Summary
from retinue_portability.domain.context import Told, tell
from retinue_portability.domain.rendering import Given, Target
from retinue_portability.format import sealed
from retinue_portability.format.sealed import Sealed
from retinue_portability.format.signing import Signer
from retinue_portability.metrics import build_seconds, redactions
from retinue_portability.operations.ports import Agents, Logged, Logs, Memory, Session

READS_AT_ONCE = 8
"""Contexts that are in memory at once, each of up to 16 MiB of events; more wait, within their callers' deadlines."""


CARRIED_MAX = 200
"""Messages that are carried over as they were: as many as a run is given of its session by the router. What was before
them is summed up, which the log then records, so that the runs that follow know it too."""


class Reading:
    """Reads sessions from the log, a bounded number at once."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self.room = asyncio.Semaphore(READS_AT_ONCE)

    async def told(self, session: Session, without_run_id: str = "") -> tuple[Logged, Told]:
        """Read what a session says; to be called while `room` is held."""
        logged = await self._logs.read(session)
        return logged, await asyncio.to_thread(_tell, logged, without_run_id)


class Building:
    """BuildBundle and CarryContext."""

    def __init__(self, reading: Reading, memory: Memory, agents: Agents, signer: Signer, token_budget: int) -> None:
        self._reading = reading
        self._memory = memory
        self._agents = agents
        self._signer = signer
        self._token_budget = token_budget

    async def build(self, session: Session, token_budget: int, allow_open: bool) -> Sealed:
        """Build a bundle of a session. Raises CONTACT_NOT_FOUND, TOOL_TRANSACTION_OPEN."""
        with telemetry.span("portability.build") as span:
            return await self._build(span, session, token_budget or self._token_budget, allow_open=allow_open)

    async def carry(self, session: Session, run_id: str, token_budget: int, target: Target) -> tuple[Sealed, Given]:
        """Build a bundle without what a run has said itself, and tell it to a runtime.

        Raises CONTACT_NOT_FOUND, and TOOL_TRANSACTION_OPEN where the run has called a tool that has not answered.
        """
        with telemetry.span("portability.carry", runtime=target.runtime) as span:
            room = rendering.budget_for(token_budget or self._token_budget, target)
            made = await self._build(span, session, room, run_id=run_id, messages_max=CARRIED_MAX)
            given = await asyncio.to_thread(rendering.for_runtime, made.bundle, target)
            if room < (token_budget or self._token_budget):
                # What was left out for a small model is not to be forgotten under a larger one.
                given = replace(given, lasting=Summary())
            span.set_attribute("losses", sum(fate.fate != "held" for fate in given.fates))
            return made, given

    async def _build(
        self,
        span: trace.Span,
        session: Session,
        token_budget: int,
        *,
        run_id: str = "",
        allow_open: bool = False,
        messages_max: int = budget.MESSAGES_MAX,
    ) -> Sealed:
        began = time.monotonic()
        async with self._reading.room:
            (logged, told), agent, of_contact, of_tenant = await _together(
                self._reading.told(session, run_id),
                self._agents.agent(session.tenant_id),
                self._memory.facts(session.tenant_id, session.contact),
                self._memory.facts(session.tenant_id, ""),
            )
            if told.open_call and not allow_open:
                raise RetinueError(
                    Reason.TOOL_TRANSACTION_OPEN,
                    f"The tool {told.open_call} was called and has not answered; the context cannot leave meanwhile.",
                    tool=told.open_call,
                )
            facts: list[Fact] = [*of_contact, *of_tenant]
            sources = Sources(
                identity=Identity(session.tenant_id, agent.agent_id, session.contact, logged.session_id),
                display_name=logged.display_name,
                channel=logged.channel,
                profile=logged.profile,
                told=told,
                facts=facts,
                settings=agent.settings,
                through=told.last if run_id else logged.through,
            )
            made = await asyncio.to_thread(_seal, sources, token_budget, messages_max, self._signer)
        span.set_attribute("events", len(logged.events))
        span.set_attribute("bytes", len(made.data))
        build_seconds.observe(time.monotonic() - began)
        for (_, rule), count in made.bundle.taken.items():
            redactions.labels(rule).inc(count)
        return made


def _tell(logged: Logged, without_run_id: str) -> Told:
    told = tell(logged.events, logged.session_id, without_run_id)
    if logged.unreadable_count:
        told.taken["messages", "unreadable"] = logged.unreadable_count
    summed: Cursor | None = told.summary.through
    passed_over = logged.passed_over_through
    if passed_over is not None and (summed is None or summed < passed_over):
        told.taken["messages", "over_size"] = logged.passed_over_count
    return told


def _seal(sources: Sources, token_budget: int, messages_max: int, signer: Signer) -> Sealed:
    return sealed.seal(composing.compose(sources, token_budget, messages_max), signer)


async def _together(*work: Awaitable[Any]) -> Any:
    """Wait for several things at once; the first that fails ends the others, and is what is raised."""

    async def one(thing: Awaitable[Any]) -> Any:
        return await thing

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(thing)) for thing in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return tuple(task.result() for task in tasks)
