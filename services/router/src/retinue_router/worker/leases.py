"""Leases in Postgres: claim, renew, checkpoint, park, finish. Everything is refused by token once the lease is lost."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
from retinue_kit import postgres
from retinue_kit.metrics import stale_writes_refused
from retinue_kit.streams import Cursor, Entry

from retinue_router.domain.allowances import ALLOWANCES_MAX
from retinue_router.domain.events import written
from retinue_router.ring import Ticket

ATTEMPTS_MAX = 3
"""Attempts that may be lost with their process before a run fails; policy may allow fewer."""


class ContextLine(msgspec.Struct, frozen=True):
    """An earlier message that came with a run."""

    role: str
    text: str


class RunInput(msgspec.Struct, frozen=True):
    """What a run was asked; written by SubmitRun."""

    text: str = ""
    runtime: str = "auto"
    reasoning: bool = False
    context: list[ContextLine] = []
    parameters: dict[str, Any] = {}
    principal: str = ""
    """Who asked: whoever sent the message, or made the schedule that the task came of."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Calls of a tool that a person has allowed for good; the pattern is policy's to read."""

    tool: str
    pattern: str


class Answer(msgspec.Struct, frozen=True):
    """An answer to an approval."""

    approval_id: str
    call_id: str
    decision: str


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that was just granted: one attempt of one run, and what became a fact with it.

    `run_id` is empty where there was only mail, or a run that had to be ended; then the log is given back already.
    """

    token: int
    run_id: str
    attempt: int
    kind: str
    contact: str
    session_id: str
    input: RunInput
    checkpoint: bytes
    traceparent: str
    queued_s: float
    runtime: str
    runtime_age_s: float | None
    approvals: list[Answer]
    history: list[ContextLine]
    events: list[Entry]
    prev: Cursor
    keep_token: int
    ring: bool


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease that still holds, and the wish of somebody that its run stops."""

    ticket: Ticket
    token: int
    wish: str | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ends, to be written."""

    state: str
    output: str | None
    usage: bytes
    error: bytes | None
    decision: bytes | None
    agent_id: str
    events: bytes
    terminal_n: int
    delay_s: float = 0.0
    refund: bool = False
    """Whether the attempt is given back with the run: it ended through no fault of its own."""
    dead: bool = False
    """Whether a failed run is set aside for an operator."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended, as written. `ring`: more waits; `told`: the log that hears of a task's end."""

    state: str
    events: list[Entry]
    ring: bool
    told: str | None
    next: Held | None = field(default=None)


_inputs = msgspec.json.Decoder(RunInput)
_lines = msgspec.json.Decoder(list[ContextLine])
_answers = msgspec.json.Decoder(list[Answer])


def _held(row: Any) -> Held | None:
    """Read a held_1; None where nothing was taken."""
    if row is None or row["token"] is None:
        return None
    return Held(
        token=row["token"],
        run_id=row["run_id"] or "",
        attempt=row["attempt"] or 0,
        kind=row["kind"] or "",
        contact=row["contact"] or "",
        session_id=row["session_id"] or "",
        input=_inputs.decode(row["input"] or "{}"),
        checkpoint=row["checkpoint"] or b"",
        traceparent=row["traceparent"] or "",
        queued_s=row["queued_s"] or 0.0,
        runtime=row["runtime"] or "",
        runtime_age_s=row["runtime_age_s"],
        approvals=_answers.decode(row["approvals"] or "[]"),
        history=_lines.decode(row["history"] or "[]"),
        events=written(row["token"], row["events"] or "[]"),
        prev=Cursor.parse(row["prev"]),
        keep_token=row["keep_token"] or 0,
        ring=bool(row["ring"]),
    )


def _accepted(row: Any) -> bool:
    """Whether a write under a lease was made; counts what was refused."""
    if not row["ok"]:
        stale_writes_refused.labels("postgres").inc()
    return bool(row["ok"])


_FINISH = "select * from finish_2($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19)"


class LeaseStore:
    """The functions of the lease; every method raises RetinueError(DEPENDENCY_UNAVAILABLE) if Postgres is away."""

    def __init__(self, pool: "asyncpg.Pool", lease_s: float) -> None:
        self._pool = pool
        self._lease = timedelta(seconds=lease_s)

    async def claim(self, ticket: Ticket, holder: str) -> Held | None:
        """Take the lease and the run that is due; None if there is nothing to do or somebody else holds it.

        Asking again with the same holder answers what that holder got.
        """
        with postgres.translating():
            row = await self._pool.fetchrow(
                "select * from claim_1($1, $2, $3, $4, $5)", *ticket, holder, self._lease, ATTEMPTS_MAX
            )
        return _held(row)

    async def renew(self, leases: Sequence[tuple[Ticket, int]]) -> list[Renewed]:
        """Prolong leases; what is missing in the answer is lost."""
        tenants = [ticket.tenant_id for ticket, _ in leases]
        logs = [ticket.log_id for ticket, _ in leases]
        tokens = [token for _, token in leases]
        with postgres.translating():
            rows = await self._pool.fetch("select * from renew_1($1, $2, $3, $4)", tenants, logs, tokens, self._lease)
        return [Renewed(Ticket(r["tenant_id"], r["log_id"]), r["token"], r["cancel"]) for r in rows]

    async def checkpoint(
        self, ticket: Ticket, token: int, run_id: str, events: bytes, state: bytes, decision: bytes
    ) -> list[Entry] | None:
        """Record a step; answers its events as written, None if the lease is lost."""
        with postgres.translating():
            row = await self._pool.fetchrow(
                "select * from checkpoint_1($1, $2, $3, $4, $5, $6, $7, $8)",
                *ticket, token, run_id, events.decode(), state, decision.decode(), self._lease,
            )  # fmt: skip
        return written(token, row["events"]) if _accepted(row) else None

    async def park(
        self, ticket: Ticket, token: int, run_id: str, events: bytes, state: bytes, decision: bytes, asked: "Asked"
    ) -> tuple[list[Entry], bool] | None:
        """Leave a run to its approval; answers the events as written and whether to ring, None if the lease is lost."""
        with postgres.translating():
            row = await self._pool.fetchrow(
                "select * from park_2($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                *ticket, token, run_id, events.decode(), state, decision.decode(), asked.approval_id, asked.n,
                asked.call_id, asked.tool, asked.summary, timedelta(seconds=asked.expire_s), asked.pattern,
            )  # fmt: skip
        return (written(token, row["events"]), row["ring"]) if _accepted(row) else None

    async def allowed(self, tenant_id: str) -> list[Allowed]:
        """What a tenant has allowed its tools for good, oldest first."""
        with postgres.translating():
            rows = await self._pool.fetch("select * from allowed_1($1, $2)", tenant_id, ALLOWANCES_MAX)
        return [Allowed(row["tool"], row["pattern"]) for row in rows]

    async def tool_runtime(self, tenant_id: str, run_id: str) -> str:
        """The runtime under which a run has begun a tool call, or was allowed one by a person, whether it has ended or
        not: another would not know of it. Empty if there is none.
        """
        with postgres.translating():
            found: str | None = await self._pool.fetchval("select tool_runtime_1($1, $2)", tenant_id, run_id)
        return found or ""

    async def put_back(
        self, ticket: Ticket, token: int, run_id: str, delay_s: float, growth_max_s: float, wait_max_s: float
    ) -> float | None:
        """Count how long a run is put back for; answers this time's seconds, None if it has waited for wait_max_s."""
        with postgres.translating():
            delay: float | None = await self._pool.fetchval(
                "select put_back_1($1, $2, $3, $4, $5, $6)",
                ticket.tenant_id, run_id, token, delay_s, growth_max_s, wait_max_s,
            )  # fmt: skip
        return delay

    async def finish(
        self, ticket: Ticket, token: int, run_id: str, ending: Ending, holder: str, *, take_next: bool
    ) -> Ended | None:
        """End an attempt and perhaps take the log's next run; None if the lease is lost and nothing was written."""
        with postgres.translating():
            row = await self._pool.fetchrow(
                _FINISH,
                *ticket, token, run_id, ending.state, ending.output, ending.usage.decode(),
                ending.error.decode() if ending.error else None, ending.decision.decode() if ending.decision else None,
                ending.agent_id, ending.events.decode(), ending.terminal_n, timedelta(seconds=ending.delay_s),
                ending.refund, ending.dead, holder, self._lease, take_next, ATTEMPTS_MAX,
            )  # fmt: skip
        if not _accepted(row):
            return None
        return Ended(row["state"], written(token, row["events"]), row["ring"], row["told"], _held(row["next"]))


@dataclass(frozen=True, slots=True)
class Asked:
    """A question whether a tool call may run."""

    approval_id: str
    n: int
    call_id: str
    tool: str
    summary: str
    expire_s: int
    pattern: str = ""
    """What "allow_always" would allow from then on; empty: no more than this call."""
