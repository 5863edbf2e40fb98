"""Executes, and writes down what was executed."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, dataclass

from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox import metrics
from retinue_sandbox.audit import Audit, digest
from retinue_sandbox.crash_points import Point
from retinue_sandbox.fitness import Fitness
from retinue_sandbox.ports import Backend, Command, Exit, Isolation, Limits, Outcome, Piece, Profile, Work
from retinue_sandbox.redacting import redacted
from retinue_sandbox.sessions import Caller, Sessions

OVERTAKEN = "overtaken"
"""Outcome of an execution that a later attempt has ended: what it had done stays done."""

LOST = "lost"
"""Written down of an execution whose box has ended under it; whoever asked was told an error."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an execution comes from, for the record."""

    run_id: str = ""
    call_id: str = ""
    tool: str = ""
    principal: str = ""
    approval_id: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be executed, for whom, and in what."""

    caller: Caller
    profile: Profile
    work: Work
    limits: Limits
    one_shot: bool
    origin: Origin


class _Told:
    """What an execution has said so far."""

    def __init__(self) -> None:
        self.size = 0
        self.omitted = 0
        self.digest = hashlib.sha256()

    def add(self, piece: Piece) -> None:
        self.size += len(piece.data)
        self.omitted += piece.omitted_bytes
        self.digest.update(piece.data)


class Executions:
    """The verbs of the service, where boxes hold."""

    def __init__(self, sessions: Sessions, fitness: Fitness, audit: Audit, backend: Backend, clock: Clock) -> None:
        self._sessions = sessions
        self._fitness = fitness
        self._audit = audit
        self._backend = backend
        self._clock = clock

    async def open(self, caller: Caller, profile: Profile) -> tuple[Isolation, bool]:
        """Make sure of a session's box, as Sessions.open does. Raises SANDBOX_UNAVAILABLE where boxes do not hold."""
        await self._fitness.require()
        return await self._sessions.open(caller, profile)

    async def run(self, order: Order) -> AsyncGenerator[Piece | Exit, None]:
        """Execute, as Sessions.run does; a record is written before the end is told. Raises SANDBOX_UNAVAILABLE where
        boxes do not hold.
        """
        await self._fitness.require()
        told, began, end = _Told(), self._clock.monotonic(), Exit(Outcome.CANCELLED)
        outcome: str = ""
        items = self._sessions.run(order.caller, order.profile, order.work, order.limits, one_shot=order.one_shot)
        try:
            async with aclosing(items):
                async for item in items:
                    if isinstance(item, Exit):
                        end, outcome = item, item.outcome
                        break
                    told.add(item)
                    yield item
        except RetinueError as error:
            outcome = _unfinished(error)
            raise
        except BaseException:
            outcome = Outcome.CANCELLED
            raise
        finally:
            reach(Point.EXEC_ENDED)
            if outcome:
                spent_s = self._clock.monotonic() - began
                self._write_down(order, told, end, outcome, spent_s)
                reach(Point.EXEC_RECORDED)
        yield end

    def _write_down(self, order: Order, told: _Told, end: Exit, outcome: str, spent_s: float) -> None:
        work, caller, origin = order.work, order.caller, order.origin
        is_command = isinstance(work, Command)
        metrics.executions.labels("command" if is_command else "python", str(outcome)).inc()
        metrics.execution_seconds.observe(spent_s)
        self._audit.record(
            "execution",
            tenant_id=caller.tenant_id,
            session_id=caller.session_id,
            fencing_token=caller.fencing_token,
            **asdict(origin),
            backend=self._backend.name,
            isolation=str(self._backend.isolation or ""),
            one_shot=order.one_shot,
            egress=order.profile.egress,
            **_facts(work),
            limits=asdict(order.limits),
            outcome=str(outcome),
            exit_code=end.exit_code,
            duration_ms=end.duration_ms or int(spent_s * 1000),
            cpu_ms=end.cpu_ms,
            memory_size_bytes=end.memory_bytes,
            output_size_bytes=told.size,
            omitted_size_bytes=told.omitted,
            output_digest=told.digest.hexdigest(),
        )


def _unfinished(error: RetinueError) -> str:
    """Name how an execution ended of which no end was told; "" if it had not begun."""
    if error.reason == Reason.SANDBOX_UNAVAILABLE and error.metadata.get("check") == "box_lost":
        return LOST
    if error.reason == Reason.STALE_FENCING_TOKEN and "current" not in error.metadata:
        return OVERTAKEN  # a refusal before it began names the token that it was refused for
    return ""


def _facts(work: Work) -> dict[str, str | list[str]]:
    if not isinstance(work, Command):
        return {"source_digest": digest(work.text)}
    return {
        "argv": redacted(work.argv),
        "argv_digest": digest("\0".join(work.argv)),
        "stdin_digest": digest(work.stdin),
        "cwd": work.cwd,
        "env_names": sorted(work.env),
    }
