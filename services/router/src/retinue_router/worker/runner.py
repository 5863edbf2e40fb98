"""Takes a log from the ring to its end: claim, attempt, finish, perhaps the next run, give back."""

import asyncio
import itertools
from dataclasses import dataclass

import msgspec
import structlog
from opentelemetry.trace import Span
from retinue_kit import ids, telemetry, tenancy
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.metrics import counter
from retinue_kit.streams import Bus

from retinue_router.crash_points import Point
from retinue_router.domain.failures import is_set_aside
from retinue_router.domain.queues import QueueClass, class_of
from retinue_router.ring import Rings, Ticket
from retinue_router.worker.attempt import Attempt
from retinue_router.worker.clients import Directory, Policy, Portability, Runtimes, patiently
from retinue_router.worker.extraction import Extractor
from retinue_router.worker.keeper import Keeper, Lease
from retinue_router.worker.leases import Ended, Ending, Held, LeaseStore
from retinue_router.worker.outcome import Outcome, retry_delay_s
from retinue_router.worker.projection import Projector
from retinue_router.worker.remains import Remains
from retinue_router.worker.reporter import Reporter
from retinue_router.worker.teller import Teller, lost

COMMIT_TRIES_MAX = 60
"""Tries to commit an end while Postgres is away, half a second apart: longer than a restart takes. The end is written
by token alone, so it is refused if another holder was given the log meanwhile."""

COMMIT_PAUSE_S = 0.5

PUT_BACK_GROWTH_MAX_S = 10.0
"""A run that is put back again and again waits half as long as it has waited before, up to this: as long as a breaker
stays open at most, so that a runtime that works again is used soon, and a queue behind it is not looked at all the
time."""

runs_resumed = counter("runs_resumed", "Attempts that took up a run which a former attempt had begun.")
log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What a runner works with."""

    store: LeaseStore
    rings: Rings
    bus: Bus
    remains: Remains
    keeper: Keeper
    policy: Policy
    directory: Directory
    runtimes: Runtimes
    portability: Portability
    reporter: Reporter
    projector: Projector
    extractor: Extractor
    clock: Clock
    put_back_max_s: float


class Runner:
    """Executes the runs of logs. `boot` names this life of the process; holders begin with it."""

    def __init__(self, parts: Parts, boot: str) -> None:
        self._parts = parts
        self._boot = boot
        self._numbers = itertools.count(1)
        self.draining = False
        self.crowded: set[QueueClass] = set()
        """Classes in whose rings others may wait: then a log is given back after each run, whoever is next."""

    async def work(self, ticket: Ticket) -> bool:
        """Take a log and execute what is due in it; answers False if there was nothing, or somebody else holds it."""
        parts, granted = self._parts, False
        tenancy.enter(tenancy.Identity(ticket.tenant_id))
        holder = f"{self._boot}:{next(self._numbers)}"
        try:
            reach(Point.POPPED)
            asked_at = parts.clock.monotonic()
            held = await patiently(lambda: parts.store.claim(ticket, holder), parts.clock)
            while held is not None:
                granted = True
                reach(Point.CLAIMED)
                held, asked_at = await self._run(ticket, holder, held, asked_at)
        except RetinueError as error:
            if error.reason is Reason.STALE_FENCING_TOKEN:
                log.warning("stale write refused", log_id=ticket.log_id)
            else:
                log.error("log given up", log_id=ticket.log_id, reason=str(error.reason), detail=error.private)
        return granted

    async def _run(self, ticket: Ticket, holder: str, held: Held, asked_at: float) -> tuple[Held | None, float]:
        """Execute what a claim gave; answers what the finish gave in turn, and when it was asked for."""
        parts = self._parts
        # In whose name the run calls others: rules for tools may ask, and what its tools do is written down with it.
        tenancy.enter(tenancy.Identity(ticket.tenant_id, held.input.principal))
        if not held.run_id:
            teller = Teller(parts.bus, ticket, held, _always, parts.remains)
            await teller.open()
            teller.leave()
            reach(Point.MAIL_TOLD)
            if held.ring:
                await self._ring(ticket)
            return None, 0.0
        with telemetry.span(
            "process_message",
            traceparent=held.traceparent,
            attributes={
                "tenant.id": ticket.tenant_id,
                "run.id": held.run_id,
                "session.id": held.session_id,
                "run.attempt": held.attempt,
                "queue.wait_ms": round(held.queued_s * 1000, 3),
            },
        ) as span:
            if any(event.type == "run.resumed" for event in held.events):
                runs_resumed.inc()
            lease = parts.keeper.add(ticket, held.token, asked_at)
            try:
                return await self._attempt(ticket, holder, held, lease, span)
            except RetinueError as error:
                if error.reason is Reason.STALE_FENCING_TOKEN:
                    parts.keeper.lose(lease)
                raise
            finally:
                parts.keeper.remove(lease)

    async def _attempt(
        self, ticket: Ticket, holder: str, held: Held, lease: Lease, span: Span
    ) -> tuple[Held | None, float]:
        parts = self._parts
        teller = Teller(parts.bus, ticket, held, lambda: parts.keeper.confirm(lease), parts.remains)
        attempt = Attempt(
            ticket, held, lease, teller, parts.keeper, parts.store, parts.rings, parts.policy, parts.directory,
            parts.runtimes, parts.portability, parts.reporter, parts.clock,
        )  # fmt: skip
        outcome = await attempt.run()
        if outcome.state == "failed":
            telemetry.fail(span, "attempt failed")
        await teller.freeze()
        if outcome.parked:
            teller.leave()
            if outcome.ring:
                await self._ring(ticket)
            return None, 0.0
        ending = await self._ending(ticket, held, lease, teller, attempt, outcome)
        if ending.state == "queued":
            await teller.open()  # what the claim made a fact is told before the next attempt's
        asked_at = parts.clock.monotonic()
        with telemetry.span("finish", attributes={"run.state": ending.state}):
            reach(Point.FINISH_COMMITTING)
            ended = await self._commit(ticket, held, ending, holder)
            reach(Point.FINISH_COMMITTED)
            await teller.publish(ended.events)
            teller.leave()
            reach(Point.FINISH_PUBLISHED)
        if ended.told:
            await self._ring(Ticket(ticket.tenant_id, ended.told))
        if ended.ring or (ending.state == "queued" and not ending.delay_s):
            await self._ring(ticket)
        reach(Point.FINISH_RUNG)
        if held.kind == "chat":
            parts.projector.project(ticket, held.contact)
            parts.extractor.look(ticket, held.contact, held.session_id)
        log.debug("run ended", run_id=held.run_id, state=ended.state, attempt=held.attempt)
        return ended.next, asked_at

    async def _ending(
        self, ticket: Ticket, held: Held, lease: Lease, teller: Teller, attempt: Attempt, outcome: Outcome
    ) -> Ending:
        state, delay_s, refund = outcome.state, 0.0, outcome.state == "queued"
        put_back_s = await self._put_back(ticket, held, outcome)
        if put_back_s is not None:
            state, delay_s, refund = "queued", put_back_s, True
        elif state == "failed" and outcome.again and held.attempt < attempt.attempts_max:
            state = "queued"
        elif state == "failed" and outcome.retryable and held.attempt < attempt.attempts_max:
            state, delay_s = "queued", retry_delay_s(held.attempt)
        elif outcome.text and lease.wish != "rollback" and state in ("cancelled", "failed"):
            # What it had said when it was stopped is part of the conversation.
            teller.record("assistant.message", {"message_id": ids.new_id("msg"), "text": outcome.text}, teller.next_n())
        return Ending(
            state=state,
            output=outcome.output or ("" if state == "succeeded" else None),
            usage=msgspec.json.encode(outcome.usage),
            error=msgspec.json.encode(outcome.error) if outcome.error is not None else None,
            decision=attempt.decision,
            agent_id=attempt.agent.agent_id,
            events=teller.unrecorded(),
            terminal_n=teller.next_n(),
            delay_s=delay_s,
            refund=refund,
            dead=state == "failed" and not outcome.refused and is_set_aside(outcome.reason),
        )

    async def _put_back(self, ticket: Ticket, held: Held, outcome: Outcome) -> float | None:
        """How long a run that could not go on waits for its next attempt; None if it has waited for long enough."""
        if outcome.put_back_s is None:
            return None
        parts = self._parts
        try:
            reach(Point.PUT_BACK_COMMITTING)
            delay_s = await parts.store.put_back(
                ticket, held.token, held.run_id, outcome.put_back_s, PUT_BACK_GROWTH_MAX_S, parts.put_back_max_s
            )
            reach(Point.PUT_BACK_COMMITTED)
            return delay_s
        except RetinueError as error:
            log.warning("put back without being counted", run_id=held.run_id, detail=error.private)
            return outcome.put_back_s

    async def _commit(self, ticket: Ticket, held: Held, ending: Ending, holder: str) -> Ended:
        """Write the end, again and again while Postgres is away. Raises STALE_FENCING_TOKEN if it is refused."""
        parts = self._parts
        take_next = not self.draining and not await self._others_wait(ticket)
        for _ in range(COMMIT_TRIES_MAX):
            try:
                ended = await parts.store.finish(ticket, held.token, held.run_id, ending, holder, take_next=take_next)
            except RetinueError as error:
                log.warning("end not committed yet", run_id=held.run_id, detail=error.private)
                await asyncio.sleep(COMMIT_PAUSE_S)
                continue
            if ended is None:
                raise lost()
            return ended
        raise RetinueError.unavailable("postgres", private="the end of a run could not be committed")

    async def _others_wait(self, ticket: Ticket) -> bool:
        queue = class_of(ticket.log_id)
        if queue not in self.crowded:
            return False
        try:
            return await self._parts.rings.of(queue).waiting()
        except RetinueError:
            return True

    async def _ring(self, ticket: Ticket) -> None:
        try:
            await self._parts.rings.push(*ticket)
        except RetinueError as error:
            log.info("not rung; the sweeper will", detail=error.private)


async def _always() -> bool:
    return True
