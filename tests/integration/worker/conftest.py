"""A worker with real Postgres and Redis; its neighbours are small fakes on real gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import msgspec
import pytest
import pytest_asyncio
from retinue.directory.v1 import directory_service_pb2 as directory_pb
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import config, ids, streams, wire
from retinue_kit.server import Service
from retinue_router.ring import Ring
from retinue_router.worker.__main__ import assemble
from retinue_router.worker.config import Settings

TENANT = "ten_a"
Script = Callable[[adapter_pb.InvokeRequest], AsyncIterator[dict[str, Any]]]


async def echo(request: adapter_pb.InvokeRequest) -> AsyncIterator[dict[str, Any]]:
    """Say what was said, word by word."""
    for word in request.text.split(" "):
        yield {"text_delta": {"text": word + " "}}
    yield {"message_completed": {"text": request.text + " "}}
    yield {"checkpoint": {"state": b"done"}}
    yield {"finished": {"usage": {"input_tokens": 3, "output_tokens": 2, "model": "fake"}}}


class FakeAdapter(adapter_grpc.RuntimeAdapterServiceServicer):
    """Plays a script for each attempt and remembers what it was asked."""

    def __init__(self) -> None:
        self.script: Script = echo
        self.requests: list[adapter_pb.InvokeRequest] = []
        self.aborted = 0
        self.unheard = 0
        """Calls that are lost before they are taken up."""

    async def Invoke(self, request, context):  # type: ignore[no-untyped-def]
        if self.unheard:
            self.unheard -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        await wire.accept(context)
        self.requests.append(request)
        try:
            async for event in self.script(request):
                yield adapter_pb.InvokeResponse(events=[RuntimeEvent(**event)])
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise


class FakePolicy(policy_grpc.PolicyServiceServicer):
    """Chooses the light runtime for everything."""

    def __init__(self) -> None:
        self.requests: list[policy_pb.DecideRequest] = []
        self.limit = 64
        self.attempts = 3
        self.run_time_s = 60.0
        self.tools: list[str] = []
        """What runs are offered; without any, no box either."""

    async def Decide(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        limits = policy_pb.Limits(
            concurrent_run_count=self.limit, attempt_count=self.attempts, output_size_bytes=1 << 20, weight=1.0
        )
        limits.run_time.FromMilliseconds(round(self.run_time_s * 1000))
        rule = policy_pb.FiredRule(rule="only_light", effect="prefer", reason="It is the only one.")
        decision = policy_pb.Decision(runtime="light", limits=limits, rules=[rule], tools=self.tools)
        if self.tools:
            decision.sandbox_profile, decision.egress[:] = "gvisor", ["example.com:443"]
        return policy_pb.DecideResponse(decision=decision)


class FakeDirectory(directory_grpc.DirectoryServiceServicer):
    """Knows every tenant."""

    async def GetTenant(self, request, context):  # type: ignore[no-untyped-def]
        agent = directory_pb.Agent(agent_id="agt_1", persona="You are a butler.")
        return directory_pb.GetTenantResponse(tenant=directory_pb.Tenant(tenant_id=request.tenant_id, agent=agent))


@dataclass
class Mesh:
    """What a test of the worker works with."""

    settings: dict[str, str]
    pool: asyncpg.Pool
    admin: asyncpg.Pool
    redis: Any
    ring: Ring
    adapter: FakeAdapter
    policy: FakePolicy
    workspaces: Path
    stack: AsyncExitStack
    stopped: list[Any] = field(default_factory=list)

    async def start_worker(self, **overrides: object) -> AsyncExitStack:
        """Start a worker in this process; closing what is answered drains it."""
        stack = AsyncExitStack()
        await self.stack.enter_async_context(stack)
        values = {**self.settings, "address": "unix:" + str(self.workspaces / f"{ids.new_id('w')}.sock"), **overrides}
        settings = config.load(Settings, {f"RETINUE_{name.upper()}": str(value) for name, value in values.items()})
        server = await assemble(settings, stack)
        del server  # its health is not asked for here
        return stack

    async def submit(
        self,
        text: str,
        *,
        contact: str = "ada",
        busy: str = "enqueue",
        tenant: str = TENANT,
        ring: bool = True,
        **more: Any,
    ) -> str:
        """Accept a run as the router does, and ring; answers its id."""
        run, log = ids.new_id("run"), f"log_{contact}"
        body = msgspec.json.encode({"text": text, "message_id": ids.new_id("msg"), **more}).decode()
        row = await self.pool.fetchrow(
            "select * from submit_run_2($1,$2,$3,false,$4,$5,'chat',null,$6,$7,$8,'usr_1',null,'',null,null,null,null)",
            tenant, contact, log, ids.new_id("ses"), run, b"d", body, busy,
        )  # fmt: skip
        assert row["outcome"] == "accepted"
        if row["ring"] and ring:
            await self.ring.push(tenant, log)
        if row["poke"]:
            await self.redis.publish(f"w:{row['poke'].split(':')[0]}", f"{tenant} {log}")
        return run

    async def run(self, run_id: str) -> asyncpg.Record:
        """Read a run's row."""
        return await self.admin.fetchrow("select * from router.runs where run_id = $1", run_id)

    async def types(self, contact: str = "ada") -> list[str]:
        """Kinds of the durable events of a contact's log, in order."""
        rows = await self.admin.fetch(
            "select type from router.events where log_id = $1 order by token, n", f"log_{contact}"
        )
        return [row["type"] for row in rows]

    async def told(self, contact: str = "ada", tenant: str = TENANT) -> list[streams.Entry]:
        """All that the bus holds of a contact's log."""
        return await streams.Bus(self.redis).read(streams.log_key(tenant, f"log_{contact}"), streams.START, 10_000)


@pytest_asyncio.fixture
async def mesh(make_database: Any, redis_url: str, serve: Any, tmp_path: Path, run_dir: Path) -> AsyncIterator[Mesh]:
    """Stores, fakes and settings; workers are started by the test."""
    database = await make_database("retinue_router", "router")
    adapter, policy = FakeAdapter(), FakePolicy()
    settings = {
        "postgres_dsn": database.dsn("retinue_router"),
        "sweep_dsn": database.dsn("retinue_sweep"),
        "redis_url": redis_url,
        "policy_address": await serve(
            [Service(policy_grpc.add_PolicyServiceServicer_to_server, policy, "retinue.policy.v1.PolicyService")]
        ),
        "directory_address": await serve(
            [
                Service(
                    directory_grpc.add_DirectoryServiceServicer_to_server,
                    FakeDirectory(),
                    "retinue.directory.v1.DirectoryService",
                )
            ]
        ),
        "runtime_adapter_address": await serve(
            [
                Service(
                    adapter_grpc.add_RuntimeAdapterServiceServicer_to_server,
                    adapter,
                    "retinue.runtime_adapter.v1.RuntimeAdapterService",
                )
            ]
        ),
        "workspaces_dir": str(run_dir),
        "drain_s": "2",
        "memory_extract_every": "0",  # tests count runs
    }
    async with AsyncExitStack() as stack:
        pool = await asyncpg.create_pool(database.dsn("retinue_router"), min_size=1, max_size=8)
        admin = await asyncpg.create_pool(database.admin_dsn, min_size=1, max_size=2)
        client = streams.connect(redis_url)
        stack.push_async_callback(client.aclose)
        stack.push_async_callback(admin.close)
        stack.push_async_callback(pool.close)
        yield Mesh(settings, pool, admin, client, Ring(client), adapter, policy, run_dir, stack)


@pytest.fixture
def gate() -> asyncio.Event:
    """Something that a script can wait for."""
    return asyncio.Event()


@pytest.fixture
def when_over(mesh: Mesh, eventually: Callable[..., Awaitable[Any]]) -> Callable[[str], Awaitable[Any]]:
    """Wait until a run is over; answers its row."""

    async def wait(run_id: str) -> Any:
        async def over() -> Any:
            row = await mesh.run(run_id)
            return row if row["end_time"] is not None else None

        return await eventually(over, timeout_s=20)

    return wait
