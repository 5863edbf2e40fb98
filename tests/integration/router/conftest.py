"""The core's SQL functions as a worker and a service call them, on a database of the test's own.

`core` (function): a `Core` on a fresh database, as the role retinue_router. `core.submit(…)`, `core.claim(…)`,
`core.finish(…)` and so on call the functions directly; `core.seen(…)` reads tables as the superuser.

`router` (function): the service itself on the same database and a fresh Redis, called over gRPC:
`await router.submit("hello", contact="anna", …)`, `await router.call("GetRun", run_id=…)`, `router.watch(…)`.

`receiver`, `post` (function): a server that webhooks lead to, and the outbox of `core` with couriers on demand.
"""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest_asyncio
from google.protobuf import json_format
from posting import Post
from receiving import Receiver
from retinue.router.v1 import (
    allowance_service_pb2,
    allowance_service_pb2_grpc,
    approval_pb2,
    contact_service_pb2,
    contact_service_pb2_grpc,
    context_service_pb2,
    context_service_pb2_grpc,
    decision_service_pb2,
    decision_service_pb2_grpc,
    load_pb2,
    memory_service_pb2,
    memory_service_pb2_grpc,
    router_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
)
from retinue.router.v1 import router_service_pb2 as wire
from retinue_kit import postgres, sealing, streams
from retinue_kit.client import Peer
from retinue_kit.ids import new_id
from retinue_router.__main__ import assemble
from retinue_router.config import Settings

LEASE = timedelta(seconds=30)
GONE = timedelta(seconds=-1)
"""A lease that is over as soon as it is granted: its holder is as good as dead."""

ATTEMPTS_MAX = 3
USAGE = json.dumps({"input_tokens": 3, "output_tokens": 5, "model": "small"})
FAULT = json.dumps({"code": 14, "message": "The model is away.", "details": []})


class Core:
    """The functions, with defaults for what a test does not care about."""

    GONE = GONE

    def __init__(self, pool: "asyncpg.Pool", admin: "asyncpg.Connection", tenant: str = "ten_a") -> None:
        self.pool = pool
        self.admin = admin
        self.tenant = tenant

    async def submit(self, text: str = "hello", *, contact: str = "anna", busy: str = "enqueue", **other: Any) -> Any:
        """Accept a run; `kind` other than "chat" makes a task, `key` and `digest` are the idempotency key's."""
        kind = other.get("kind", "chat")
        log = f"log_{contact}"
        mine = other.get("log", new_id("log")) if kind != "chat" else log
        key = other.get("key")
        body = json.dumps({"message_id": new_id("msg"), "text": text})
        return await self.pool.fetchrow(
            "select * from submit_run_2($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,'',$14,$15,$16,$17)",
            self.tenant, contact, mine, kind != "chat", new_id("ses"), new_id("run"), kind, key,
            other.get("digest", b"1") if key else None, body, busy, "somebody", log if kind != "chat" else None,
            other.get("run_at"), other.get("queue_max"), other.get("later_max", 100), other.get("retry_of"),
        )  # fmt: skip

    async def claim(
        self, log: str = "log_anna", holder: str = "w1:1", ttl: timedelta = LEASE, attempts: int = ATTEMPTS_MAX
    ) -> Any:
        """Take what is due; None if nothing was taken."""
        row = await self.pool.fetchrow(
            "select * from claim_1($1, $2, $3, $4, $5)", self.tenant, log, holder, ttl, attempts
        )
        return None if row["token"] is None else row

    async def finish(self, held: Any, state: str = "succeeded", *, log: str = "log_anna", **other: Any) -> Any:
        """End an attempt; `next=True` takes the log's next run."""
        said = [{"n": 5, "type": "assistant.message", "data": {"message_id": "msg_x", "text": "yes"}}]
        events = [{**e, "run_id": held["run_id"], "session_id": held["session_id"]} for e in other.get("events", said)]
        return await self.pool.fetchrow(
            "select * from finish_2($1,$2,$3,$4,$5,$6,$7,$8,$9,'agt_1',$10,9,$11,$12,$13,$14,$15,$16,$17)",
            self.tenant, log, held["token"], held["run_id"], state, "yes" if state == "succeeded" else None, USAGE,
            FAULT if state == "failed" else None, json.dumps({"runtime": "light"}), json.dumps(events),
            other.get("delay", timedelta(0)), other.get("refund", False), other.get("dead", False),
            other.get("holder", "w1:1"), LEASE, other.get("next", False),
            ATTEMPTS_MAX,
        )  # fmt: skip

    async def park(
        self, held: Any, approval: str = "apr_1", *, log: str = "log_anna", expire: timedelta = LEASE, pattern: str = ""
    ) -> Any:
        """Leave a run to an approval; `pattern` is what "allow_always" would allow."""
        return await self.pool.fetchrow(
            "select * from park_2($1, $6, $2, $3, '[]', 'saved', '{\"runtime\": \"light\"}', $4, 7, 'call_1',"
            " 'shell', 'ls', $5, $7)",
            self.tenant, held["token"], held["run_id"], approval, expire, log, pattern,
        )  # fmt: skip

    async def decide(
        self, decision: str, approval: str = "apr_1", *, by: str = "me", most: int = 500, most_bytes: int = 1 << 18
    ) -> Any:
        """Answer an approval; a tenant may have `most` allowances, of `most_bytes` together."""
        return await self.call("decide_approval_2", approval, decision, by, new_id("alw"), most, most_bytes)

    async def allowed(self) -> list[tuple[str, str]]:
        """What the tenant has allowed for good, as attempts are told."""
        rows = await self.pool.fetch("select * from allowed_1($1, 500)", self.tenant)
        return [tuple(row) for row in rows]

    async def renew(self, *leases: tuple[str, str, int]) -> list[Any]:
        """Prolong leases, each as tenant, log and token."""
        return await self.pool.fetch(
            "select * from renew_1($1, $2, $3, $4)", *map(list, zip(*leases, strict=True)), LEASE
        )

    async def call(self, function: str, *arguments: object) -> Any:
        """Call a function for the tenant; answers its first row."""
        places = ", ".join(f"${i}" for i in range(1, len(arguments) + 2))
        return await self.pool.fetchrow(f"select * from {function}({places})", self.tenant, *arguments)

    async def seen(self, sql: str, *arguments: object) -> list[Any]:
        """Read as the superuser, whom no wall stops."""
        return await self.admin.fetch(sql, *arguments)

    async def run(self, run_id: str) -> Any:
        """Read a run's row."""
        return await self.admin.fetchrow("select * from router.runs where run_id = $1", run_id)

    async def log(self, log_id: str = "log_anna") -> Any:
        """Read a log's row."""
        return await self.admin.fetchrow("select * from router.logs where log_id = $1", log_id)

    async def types(self, log_id: str = "log_anna") -> list[str]:
        """List the types of a log's events in order."""
        rows = await self.seen("select type from router.events where log_id = $1 order by token, n", log_id)
        return [row["type"] for row in rows]


@pytest_asyncio.fixture
async def database(make_database):
    """Make a migrated database."""
    return await make_database("retinue_router", "router")


@pytest_asyncio.fixture
async def core(database) -> AsyncIterator[Core]:
    """Answer the core of a fresh database."""
    pool = await postgres.connect(database.dsn("retinue_router"), max_size=24)
    admin = await asyncpg.connect(database.admin_dsn)
    yield Core(pool, admin)
    await admin.close()
    await pool.close()


def events_of(answer: Any) -> list[dict[str, Any]]:
    """Read the events that a function answered."""
    return json.loads(answer["events"] or "[]")


class Router:
    """The service over gRPC, with defaults for what a test does not care about."""

    def __init__(self, peer: Peer, redis_url: str, workspaces: Path) -> None:
        self.peer = peer
        self.redis = streams.connect(redis_url)
        self.workspaces = workspaces
        self.tenant = "ten_a"
        self._stubs = [
            router_service_pb2_grpc.RouterServiceStub(peer.channel),
            contact_service_pb2_grpc.ContactServiceStub(peer.channel),
            schedule_service_pb2_grpc.ScheduleServiceStub(peer.channel),
            allowance_service_pb2_grpc.AllowanceServiceStub(peer.channel),
            context_service_pb2_grpc.ContextServiceStub(peer.channel),
            decision_service_pb2_grpc.DecisionServiceStub(peer.channel),
            memory_service_pb2_grpc.MemoryServiceStub(peer.channel),
        ]

    def _method(self, name: str, fields: dict[str, Any]) -> tuple[Any, Any]:
        method = next(getattr(stub, name) for stub in self._stubs if hasattr(stub, name))
        modules = (
            wire, contact_service_pb2, approval_pb2, load_pb2, schedule_service_pb2, allowance_service_pb2,
            context_service_pb2, decision_service_pb2, memory_service_pb2,
        )  # fmt: skip
        module = next(m for m in modules if hasattr(m, f"{name}Request"))
        request = json_format.ParseDict(fields, getattr(module, f"{name}Request")())
        if "tenant_id" in request.DESCRIPTOR.fields_by_name and not request.tenant_id:
            request.tenant_id = self.tenant
        return method, request

    async def call(self, name: str, **fields: Any) -> Any:
        """Make a call of either service."""
        return await self.peer.call(*self._method(name, fields))

    async def submit(self, text: str = "hello", contact: str = "anna", **fields: Any) -> Any:
        """Accept a run; answers the Run."""
        defaults = {"kind": "chat", "on_busy": "enqueue", "principal": "usr_1"}
        return (await self.call("SubmitRun", text=text, contact=contact, **{**defaults, **fields})).run

    def stream(self, name: str, **fields: Any) -> AsyncIterator[Any]:
        """Make a call that answers more than once."""
        return self.peer.stream(*self._method(name, fields), timeout_s=30)

    def watch(self, **fields: Any) -> AsyncIterator[Any]:
        """Watch a log."""
        return self.peer.stream(*self._method("WatchEvents", fields), timeout_s=30)


@pytest_asyncio.fixture
async def router(request, database, redis_url, run_dir, peer) -> AsyncIterator[Router]:
    """Answer the service, running; parametrize it indirectly with settings that differ."""
    settings = Settings(
        address=f"unix:{run_dir}/router.sock",
        postgres_dsn=database.dsn("retinue_router"),
        sweep_dsn=database.dsn("retinue_sweep"),
        redis_url=redis_url,
        workspaces_dir=run_dir / "workspaces",
        pool_size=16,
        **getattr(request, "param", {}),
    )
    async with AsyncExitStack() as stack:
        server = await assemble(settings, stack)
        await server.start()
        made = Router(peer("router", settings.address), redis_url, settings.workspaces_dir)
        yield made
        await made.redis.aclose()
        await server.drain(0)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Answer a receiver of webhooks, listening."""
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def post(core, database, tmp_path) -> Post:
    """Answer the outbox of `core`, with keys of its own."""
    keys = tmp_path / "keys"
    keys.write_text(sealing.new_key())
    return Post(core, database, keys)
