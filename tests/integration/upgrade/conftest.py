"""Two releases on one database.

`released` (function): a `Released`, the calls that the release before this one makes, as its stores make them; they are
kept here as they were. `current` (function): a `Current`, the same calls as this release's own stores make them. Both
work on one tenant of one database, `database`, which `migrate_to(database, "0004")` brings up to a migration.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from importlib import resources
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from retinue_kit import postgres
from retinue_kit.ids import new_id
from retinue_kit.streams import START
from retinue_router.domain.submission import Submission
from retinue_router.ring import Ticket
from retinue_router.store.approvals import ApprovalStore
from retinue_router.store.runs import NewIds, RunStore
from retinue_router.worker.leases import Asked, Ending, Held, LeaseStore

TENANT = "ten_a"
LOG = "log_anna"
ATTEMPTS_MAX = 3
LEASE_S = 30.0
GONE_S = -1.0
"""A lease that is over as soon as it is granted: its holder is as good as dead."""

USAGE = json.dumps({"input_tokens": 3, "output_tokens": 5, "model": "small"})
DECISION = json.dumps({"runtime": "light"})
FAULT = json.dumps({"code": 14, "message": "The model is away.", "details": []})
SINCE = "0004"
"""The last migration of the release before this one."""


def said(run_id: str, session_id: str, text: str) -> str:
    """Write an answer as a worker gives it to a function."""
    data = {"message_id": new_id("msg"), "text": text}
    return json.dumps([{"n": 5, "type": "assistant.message", "data": data, "run_id": run_id, "session_id": session_id}])


class Released:
    """What the release before this one asks of the database."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def submit(self, text: str, *, key: str | None = None, digest: bytes = b"", kind: str = "chat") -> Any:
        body = json.dumps({"message_id": new_id("msg"), "text": text})
        is_task = kind != "chat"
        return await self._pool.fetchrow(
            "select * from submit_run_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            TENANT, "anna", new_id("log") if is_task else LOG, is_task, new_id("ses"), new_id("run"), kind, key,
            digest if key else None, body, "enqueue", "usr_1", LOG if is_task else None, "",
        )  # fmt: skip

    async def claim(self, holder: str = "old:1", lease_s: float = LEASE_S, log: str = LOG) -> Any:
        row = await self._pool.fetchrow(
            "select * from claim_1($1, $2, $3, $4, $5)", TENANT, log, holder, timedelta(seconds=lease_s), ATTEMPTS_MAX
        )
        return row if row is not None and row["token"] is not None else None

    async def renew(self, token: int) -> list[Any]:
        return list(
            await self._pool.fetch(
                "select * from renew_1($1, $2, $3, $4)", [TENANT], [LOG], [token], timedelta(seconds=LEASE_S)
            )
        )

    async def checkpoint(self, held: Any, state: bytes, lease_s: float = LEASE_S) -> bool:
        row = await self._pool.fetchrow(
            "select * from checkpoint_1($1, $2, $3, $4, $5, $6, $7, $8)",
            TENANT, LOG, held["token"], held["run_id"], "[]", state, DECISION, timedelta(seconds=lease_s),
        )  # fmt: skip
        return bool(row["ok"])

    async def park(self, held: Any, approval: str) -> bool:
        row = await self._pool.fetchrow(
            "select * from park_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            TENANT, LOG, held["token"], held["run_id"], "[]", b"parked", DECISION, approval, 7, "call_1", "shell", "ls",
            timedelta(seconds=60),
        )  # fmt: skip
        return bool(row["ok"])

    async def finish(
        self, held: Any, state: str = "succeeded", *, text: str = "yes", take_next: bool = False, log: str = LOG
    ) -> Any:
        row = await self._pool.fetchrow(
            "select * from finish_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
            TENANT, log, held["token"], held["run_id"], state, text if state == "succeeded" else None, USAGE,
            FAULT if state == "failed" else None, DECISION, "agt_1",
            said(held["run_id"], held["session_id"], text) if state == "succeeded" else "[]", 9, timedelta(0),
            "old:1", timedelta(seconds=LEASE_S), take_next, ATTEMPTS_MAX,
        )  # fmt: skip
        return row if row["ok"] else None

    async def cancel(self, run_id: str) -> Any:
        return await self._pool.fetchrow("select * from cancel_run_1($1, $2, $3)", TENANT, run_id, "usr_1")

    async def decide(self, approval: str, decision: str) -> Any:
        return await self._pool.fetchrow(
            "select * from decide_approval_1($1, $2, $3, $4)", TENANT, approval, decision, "usr_1"
        )

    async def reset(self) -> Any:
        return await self._pool.fetchrow(
            "select * from reset_contact_1($1, $2, $3, $4)", TENANT, "anna", LOG, new_id("ses")
        )

    async def delete(self) -> list[Any]:
        return list(await self._pool.fetch("select * from delete_contact_1($1, $2, $3)", TENANT, "anna", LOG))

    async def thread(self) -> list[Any]:
        return list(
            await self._pool.fetch("select * from thread_1($1, $2, $3, $4, $5)", TENANT, LOG, START.token, START.n, 500)
        )


class Current:
    """The same of this release, through its own stores."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self.runs = RunStore(pool)
        self.leases = LeaseStore(pool, LEASE_S)
        self.dying = LeaseStore(pool, GONE_S)
        self.approvals = ApprovalStore(pool)
        self._ticket = Ticket(TENANT, LOG)

    async def submit(self, text: str, *, key: str = "") -> Any:
        asked = Submission(
            tenant_id=TENANT, contact="anna", text=text, metadata={}, input={}, parameters={}, idempotency_key=key
        )
        body = json.dumps({"message_id": new_id("msg"), "text": text}).encode()
        return await self.runs.submit(asked, NewIds(LOG, new_id("ses"), new_id("run"), None), body, "")

    async def claim(self, holder: str = "new:1", *, dying: bool = False) -> Held | None:
        return await (self.dying if dying else self.leases).claim(self._ticket, holder)

    async def finish(self, held: Held, state: str = "succeeded", *, text: str = "yes", **more: Any) -> Any:
        take_next = more.pop("take_next", False)
        ending = Ending(
            state=state,
            output=text if state == "succeeded" else None,
            usage=USAGE.encode(),
            error=FAULT.encode() if state == "failed" else None,
            decision=DECISION.encode(),
            agent_id="agt_1",
            events=said(held.run_id, held.session_id, text).encode() if state == "succeeded" else b"[]",
            terminal_n=9,
            **more,
        )
        return await self.leases.finish(self._ticket, held.token, held.run_id, ending, "new:1", take_next=take_next)

    async def checkpoint(self, held: Held, state: bytes, *, dying: bool = False) -> Any:
        store = self.dying if dying else self.leases
        return await store.checkpoint(self._ticket, held.token, held.run_id, b"[]", state, DECISION.encode())

    async def park(self, held: Held, approval: str) -> Any:
        asked = Asked(approval, 7, "call_1", "shell", "ls", 60)
        return await self.leases.park(self._ticket, held.token, held.run_id, b"[]", b"parked", DECISION.encode(), asked)

    async def decide(self, approval: str, decision: str) -> Any:
        return await self.approvals.decide(TENANT, approval, decision, "usr_1")


@pytest_asyncio.fixture
async def database(make_database: Callable[..., Awaitable[Any]]) -> Any:
    """Make a database with the schema of this release."""
    return await make_database("retinue_router", "router")


@pytest.fixture
def migrate_to() -> Callable[[Any, str], Awaitable[None]]:
    """Answer a migrator that stops after the migration of a number, as an older release's would."""

    async def migrate(of: Any, last: str) -> None:
        files = sorted((resources.files("retinue_router") / "migrations").iterdir(), key=lambda file: file.name)
        connection = await asyncpg.connect(of.admin_dsn)
        try:
            await connection.execute(
                "drop schema if exists router cascade; create schema router; create table router.migrations"
                " (name text primary key, time timestamptz not null default clock_timestamp())"
            )
            for file in files:
                if file.name.endswith(".sql") and file.name[: len(last)] <= last:
                    async with connection.transaction():
                        await connection.execute(file.read_text("utf-8"))
                        await connection.execute("insert into router.migrations(name) values ($1)", file.name)
        finally:
            await connection.close()

    return migrate


@pytest_asyncio.fixture
async def pool(database: Any) -> AsyncIterator["asyncpg.Pool"]:
    """Connect as the services do."""
    made = await postgres.connect(database.dsn("retinue_router"))
    yield made
    await made.close()


@pytest.fixture
def released(pool: "asyncpg.Pool") -> Released:
    """Answer the former release's calls."""
    return Released(pool)


@pytest.fixture
def current(pool: "asyncpg.Pool") -> Current:
    """Answer this release's calls."""
    return Current(pool)


@pytest_asyncio.fixture
async def seen(database: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Answer a reader of tables, whom no wall stops."""
    admin = await asyncpg.connect(database.admin_dsn)

    async def read(sql: str, *arguments: object) -> list[Any]:
        return list(await admin.fetch(sql, *arguments))

    yield read
    await admin.close()
