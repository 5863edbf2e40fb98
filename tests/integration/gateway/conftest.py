"""The gateway with the real router and worker, Postgres and Redis; directory, policy and runtime are small fakes.

`mesh` (function): `mesh.edge` and `mesh.edge_instances` are stubs of edge services, `mesh.identity(…)` the headers that
Envoy would have made of a token, `mesh.http` an httpx client on the ASGI socket, `mesh.socket(…)` a WebSocket.
`mesh.adapter.script` is what the runtime says; `mesh.directory.revoked` are revoked tokens, `mesh.policy.decision` is
what policy decides, `mesh.instances` what the runtime adapter has.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest_asyncio
from retinue.directory.v1 import directory_service_pb2 as directory_pb
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.edge.v1 import edge_service_pb2_grpc
from retinue.edge.v1 import instance_service_pb2_grpc as edge_instances_grpc
from retinue.policy.v1 import breaker_pb2
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.runtime_adapter.v1 import instance_service_pb2 as instances_pb
from retinue.runtime_adapter.v1 import instance_service_pb2_grpc as instances_grpc
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as adapter_pb
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_gateway.__main__ import assemble as assemble_gateway
from retinue_gateway.config import Settings
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Server, Service
from retinue_router.__main__ import assemble as assemble_router
from retinue_router.config import Settings as RouterSettings
from retinue_router.worker.__main__ import assemble as assemble_worker
from retinue_router.worker.config import Settings as WorkerSettings
from websockets.asyncio.client import ClientConnection, unix_connect

TENANT = "ten_a"
Script = Callable[[adapter_pb.InvokeRequest], AsyncIterator[dict[str, Any]]]


async def echo(request: adapter_pb.InvokeRequest) -> AsyncIterator[dict[str, Any]]:
    """Say what was said, word by word."""
    words = request.text.split(" ")
    for index, word in enumerate(words):
        yield {"text_delta": {"text": word if index == 0 else " " + word}}
    yield {"message_completed": {"text": request.text}}
    yield {"finished": {"usage": {"input_tokens": 3, "output_tokens": len(words), "model": "fake"}}}


class FakeAdapter(adapter_grpc.RuntimeAdapterServiceServicer):
    """Plays a script for each attempt and remembers what it was asked."""

    def __init__(self) -> None:
        self.script: Script = echo
        self.requests: list[adapter_pb.InvokeRequest] = []

    async def Invoke(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        async for event in self.script(request):
            yield adapter_pb.InvokeResponse(events=[RuntimeEvent(**event)])


class FakeInstances(instances_grpc.InstanceServiceServicer):
    """Has an instance for each tenant that asked for one; says more of it than anybody should hear."""

    def __init__(self) -> None:
        self.asked: list[instances_pb.CreateInstanceRequest] = []
        self.trouble: RetinueError | None = None
        self.held: dict[str, instances_pb.Instance] = {}

    async def GetInstance(self, request, context):  # type: ignore[no-untyped-def]
        if request.tenant_id not in self.held:
            raise RetinueError(Reason.INSTANCE_NOT_FOUND, "No instance serves this tenant.")
        return instances_pb.GetInstanceResponse(instance=self.held[request.tenant_id])

    async def CreateInstance(self, request, context):  # type: ignore[no-untyped-def]
        self.asked.append(request)
        if self.trouble:
            raise self.trouble
        made = instances_pb.Instance(
            instance_id="ins_1",
            runtime="openclaw",
            isolation=request.isolation,
            state="pending",
            detail="pid 4711 on host-7 warms up ten_other",
            tenant_ids=[request.tenant_id, "ten_other"],
            tenant_count=2,
            memory_bytes=1 << 33,
            running_count=3,
            backend="process",
            version="2026.9.6",
        )
        made.create_time.GetCurrentTime()
        made.use_time.GetCurrentTime()
        return instances_pb.CreateInstanceResponse(instance=self.held.setdefault(request.tenant_id, made))

    async def DeleteInstance(self, request, context):  # type: ignore[no-untyped-def]
        if self.trouble:
            raise self.trouble
        if self.held.pop(request.tenant_id, None) is None:
            raise RetinueError(Reason.INSTANCE_NOT_FOUND, "No instance serves this tenant.")
        return instances_pb.DeleteInstanceResponse()


class FakePolicy(policy_grpc.PolicyServiceServicer):
    """Chooses the light runtime for everything, or what a test wants of it."""

    def __init__(self) -> None:
        self.decision: dict[str, Any] = {"runtime": "light"}
        self.trouble: RetinueError | None = None
        self.reporting_trouble: RetinueError | None = None
        self.requests: list[policy_pb.DecideRequest] = []
        self.outcomes: list[breaker_pb2.Outcome] = []

    async def ReportOutcomes(self, request, context):  # type: ignore[no-untyped-def]
        if self.reporting_trouble:
            raise self.reporting_trouble
        self.outcomes += request.outcomes
        return policy_pb.ReportOutcomesResponse()

    async def Decide(self, request, context):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        if self.trouble:
            raise self.trouble
        limits = policy_pb.Limits(concurrent_run_count=64, attempt_count=3, output_size_bytes=1 << 26, weight=1.0)
        limits.run_time.FromSeconds(60)
        rule = policy_pb.FiredRule(rule="only_light", effect="prefer", reason="It is the only one.")
        decision = policy_pb.Decision(**self.decision, limits=limits, rules=[rule])
        return policy_pb.DecideResponse(decision=decision)


class FakeDirectory(directory_grpc.DirectoryServiceServicer):
    """Knows every tenant."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()

    async def GetTenant(self, request, context):  # type: ignore[no-untyped-def]
        agent = directory_pb.Agent(agent_id="agt_1", persona="You are a butler.")
        return directory_pb.GetTenantResponse(tenant=directory_pb.Tenant(tenant_id=request.tenant_id, agent=agent))

    async def ListRevocations(self, request, context):  # type: ignore[no-untyped-def]
        return directory_pb.ListRevocationsResponse(jtis=self.revoked)

    async def GetKeySet(self, request, context):  # type: ignore[no-untyped-def]
        return directory_pb.GetKeySetResponse(jwks='{"keys":[]}')


class Mesh:
    """What a test works with."""

    def __init__(self, run_dir: Path, stack: AsyncExitStack) -> None:
        self.run_dir = run_dir
        self.adapter = FakeAdapter()
        self.instances = FakeInstances()
        self.policy = FakePolicy()
        self.directory = FakeDirectory()
        self.grpc_address = f"unix:{run_dir}/gateway.sock"
        self.asgi_path = str(run_dir / "asgi.sock")
        self.gateway: Server
        self.router: Server
        self._stack = stack
        self._numbers = itertools.count(1)

    def open_clients(self) -> None:
        """Connect as Envoy does."""
        self.channel = grpc.aio.insecure_channel(self.grpc_address, [("grpc.default_authority", "gateway")])
        self.edge = edge_service_pb2_grpc.EdgeServiceStub(self.channel)
        self.edge_instances = edge_instances_grpc.InstanceServiceStub(self.channel)
        transport = httpx.AsyncHTTPTransport(uds=self.asgi_path)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=30)
        self._stack.push_async_callback(self.channel.close)
        self._stack.push_async_callback(self.http.aclose)

    def identity(
        self, tenant: str = TENANT, *, scope: str = "chat", jti: str = "", ttl_s: float = 3600
    ) -> dict[str, str]:
        """Headers of a verified token."""
        return {
            "x-retinue-tenant": tenant,
            "x-retinue-principal": "usr_1",
            "x-retinue-scope": scope,
            "x-retinue-jti": jti or f"jti_{next(self._numbers)}",
            "x-retinue-exp": str(int(time.time() + ttl_s)),
        }

    def metadata(self, *more: tuple[str, str], **identity: Any) -> list[tuple[str, str]]:
        """The same as metadata of a call."""
        return [*self.identity(**identity).items(), *more]

    async def socket(self, *, headers: dict[str, str] | None = None, **options: Any) -> ClientConnection:
        """Open a WebSocket."""
        connecting = unix_connect(
            self.asgi_path,
            "ws://gateway/v1/ws",
            additional_headers=self.identity() if headers is None else headers,
            **{"max_size": None, **options},
        )
        return await self._stack.enter_async_context(connecting)


def _service(add: Any, servicer: object, name: str) -> list[Service]:
    return [Service(add, servicer, name)]


@pytest_asyncio.fixture
async def mesh(make_database: Any, redis_url: str, serve: Any, run_dir: Path) -> AsyncIterator[Mesh]:
    database = await make_database("retinue_router", "router")
    async with AsyncExitStack() as stack:
        mesh = Mesh(run_dir, stack)
        policy = await serve(
            _service(policy_grpc.add_PolicyServiceServicer_to_server, mesh.policy, "retinue.policy.v1.PolicyService")
        )
        directory = await serve(
            _service(
                directory_grpc.add_DirectoryServiceServicer_to_server,
                mesh.directory,
                "retinue.directory.v1.DirectoryService",
            )
        )
        adapter = await serve(
            _service(
                adapter_grpc.add_RuntimeAdapterServiceServicer_to_server,
                mesh.adapter,
                "retinue.runtime_adapter.v1.RuntimeAdapterService",
            )
            + _service(
                instances_grpc.add_InstanceServiceServicer_to_server,
                mesh.instances,
                "retinue.runtime_adapter.v1.InstanceService",
            )
        )
        dsns = {"postgres_dsn": database.dsn("retinue_router"), "sweep_dsn": database.dsn("retinue_sweep")}
        workspaces = run_dir / "workspaces"
        router_settings = RouterSettings(
            address=f"unix:{run_dir}/router.sock", redis_url=redis_url, workspaces_dir=workspaces, **dsns
        )
        worker_settings = WorkerSettings(
            address=f"unix:{run_dir}/worker.sock",
            redis_url=redis_url,
            workspaces_dir=workspaces,
            policy_address=policy,
            directory_address=directory,
            runtime_adapter_address=adapter,
            drain_s=1,
            **dsns,
        )
        settings = Settings(
            address=mesh.grpc_address,
            asgi_socket=mesh.asgi_path,
            router_address=router_settings.address,
            directory_address=directory,
            policy_address=policy,
            runtime_adapter_address=adapter,
            redis_url=redis_url,
            trace_dir=str(run_dir),
        )
        for assemble, its in (
            (assemble_router, router_settings),
            (assemble_worker, worker_settings),
            (assemble_gateway, settings),
        ):
            server = await assemble(its, stack)  # type: ignore[operator]
            await server.start()
            stack.push_async_callback(server.drain, 0)
            setattr(mesh, "gateway" if assemble is assemble_gateway else "router", server)
        mesh.open_clients()
        yield mesh


@pytest_asyncio.fixture
async def gate() -> asyncio.Event:
    """Something that a script can wait for."""
    return asyncio.Event()
