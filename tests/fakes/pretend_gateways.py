"""Gateways without Node: what the pool of instances needs around it, and the order in which things happened to it.

Everything is at hand at once; what is held back (`hold`) or refused (`refuse`) comes when a test says so.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw.gateway_config import Policy
from retinue_runtime_adapter.openclaw.pool import InstancePool
from retinue_runtime_adapter.openclaw.ports import Frame, InstanceSpec, Isolation, Place, Process, RunCall
from retinue_runtime_adapter.openclaw.preparing import QUIET_S
from retinue_runtime_adapter.openclaw.probing import SILENT, Health

MIB = 1024 * 1024


class PretendPolicies:
    """Lets every instance do nothing; notes who is gone."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def of(self, _instance_id: str) -> Policy:
        return Policy({}, {}, {})

    def forget(self, instance_id: str) -> None:
        self.forgotten.append(instance_id)


class PretendClock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> float:
        return 1_700_000_000.0 + self.at


class PretendGateway:
    """A gateway whose agents are what its configuration says."""

    def __init__(self, world: "World", address: str, config: dict[str, Any]) -> None:
        self.world = world
        self.address = address
        self.agents: dict[str, Any] = config["agents"]["entries"]
        self.providers: dict[str, Any] = config["models"]["providers"]
        self.revision = 0
        self.changes: list[str] = []
        self.runs: list[RunCall] = []
        self.is_closed = False
        self.is_lost = False

    async def start(self, timeout_s: float) -> None:
        await self.world.gate("start")
        self.world.check("start")

    async def request(
        self, method: str, params: dict[str, Any], *, timeout_s: float, traceparent: str = ""
    ) -> dict[str, Any]:
        await self.world.gate(method)
        self.world.check(method)
        self.changes.append(method)
        if method == "config.patch":
            self._patch(params)
        elif method == "agents.delete":
            del self.agents[params["agentId"]]
            self.revision += 1
        return {"hash": str(self.revision)}

    def _patch(self, params: dict[str, Any]) -> None:
        if params["baseHash"] != str(self.revision):
            raise Trouble(Reason.MODEL_REQUEST_REFUSED, "config changed since last load")
        patch = json.loads(params["raw"])
        for kind, former in (("agents", self.agents), ("models", self.providers)):
            for name, value in next(iter(patch.get(kind, {}).values()), {}).items():
                if value is None:
                    assert f"models.providers.{name}.models" in params["replacePaths"]
                    del former[name]
                else:
                    former[name] = {**former.get(name, {}), **value}
        self.revision += 1

    async def run(self, call: RunCall) -> AsyncGenerator[Frame, None]:
        assert call.agent_id in self.agents
        self.runs.append(call)
        await self.world.gate("run")
        self.world.check("run")
        yield Frame("final", {})

    async def abort(self, session_key: str, run_id: str) -> bool:
        return False

    async def close(self) -> None:
        self.is_closed = True


class PretendBackend:
    """Instances that are an entry in a dictionary."""

    name = "process"

    def __init__(self, world: "World") -> None:
        self.world = world

    async def prepare(self) -> None:
        self.world.check("prepare")

    async def begin(self, spec: InstanceSpec) -> Process:
        await self.world.gate("begin")
        self.world.check("begin")
        self.world.port += 1
        address = f"127.0.0.1:{self.world.port}"
        config = json.loads(spec.config("127.0.0.1", self.world.port))
        self.world.gateways[address] = PretendGateway(self.world, address, config)
        self.world.alive[spec.instance_id] = address
        self.world.alive_max = max(self.world.alive_max, len(self.world.alive))
        return Process(spec.instance_id, address, {"pid": self.world.port})

    async def is_alive(self, process: Process) -> bool:
        return process.instance_id in self.world.alive

    async def memory_bytes(self, process: Process) -> int:
        return self.world.memory_mib.get(process.instance_id, 100) * MIB

    async def end(self, process: Process, grace_s: float) -> None:
        self.world.alive.pop(process.instance_id, None)
        self.world.ended.append(process.instance_id)

    async def close(self) -> None:
        assert not self.world.alive, "every instance is ended before the backend is let go"


class PretendProxy:
    """Credentials, and whose they are."""

    base_url = "http://127.0.0.1:1/v1"

    def __init__(self) -> None:
        self.credentials: dict[tuple[str, str], str] = {}
        self.following: dict[tuple[str, str], str] = {}
        self.made = 0
        self.warmed: list[tuple[str, str]] = []

    def credential(self, instance_id: str, tenant_id: str) -> str:
        key = (instance_id, tenant_id)
        if key not in self.credentials:
            self.made += 1
            self.credentials[key] = f"credential-{self.made}"
        return self.credentials[key]

    def renew(self, instance_id: str, tenant_id: str) -> str:
        key = (instance_id, tenant_id)
        if key not in self.following:
            self.made += 1
            self.following[key] = f"credential-{self.made}"
        return self.following[key]

    def renewed(self, instance_id: str, tenant_id: str) -> None:
        key = (instance_id, tenant_id)
        self.credentials[key] = self.following.pop(key)

    def assign(self, instance_id: str, name: str, tenant_id: str) -> None:
        assert (instance_id, tenant_id) not in self.credentials
        for held in (self.credentials, self.following):
            if (instance_id, name) in held:
                held[instance_id, tenant_id] = held.pop((instance_id, name))

    def forget(self, instance_id: str, tenant_id: str = "") -> None:
        for key in [key for key in self.following if key[0] == instance_id and tenant_id in ("", key[1])]:
            del self.following[key]
        for key in [key for key in self.credentials if key[0] == instance_id and tenant_id in ("", key[1])]:
            del self.credentials[key]

    @contextmanager
    def warm(self, instance_id: str, tenant_id: str) -> Iterator[None]:
        self.warmed.append((instance_id, tenant_id))
        yield

    def run(self, **_: Any) -> Any:
        raise AssertionError("the pool runs nothing")


class World:
    """Everything around a pool, and the pool."""

    def __init__(self, **settings: Any) -> None:
        self.clock = PretendClock()
        self.proxy = PretendProxy()
        self.gateways: dict[str, PretendGateway] = {}
        self.alive: dict[str, str] = {}
        self.alive_max = 0
        self.ended: list[str] = []
        self.memory_mib: dict[str, int] = {}
        self.silent = False
        self.lags = False
        self.port = 20_000
        self.counts: Counter[str] = Counter()
        self._held: dict[str, asyncio.Event] = {}
        self._refused: dict[str, int] = {}
        self.settings = Settings(address="", openclaw_state_dir="/nowhere", **settings)
        self.pool = InstancePool(
            self.settings,
            PretendBackend(self),
            self.proxy,
            PretendPolicies(),
            self.clock,
            connect=lambda address, _token: self.gateways[address],
            version="1",
            probe=self.probe,
        )

    async def probe(self, address: str) -> Health:
        """Answer as a test says."""
        return SILENT if self.silent else Health(answers=True, lags=self.lags)

    def hold(self, what: str) -> asyncio.Event:
        """Let a step wait until the event is set. Steps: begin, start, run, and the gateway's methods."""
        self._held[what] = asyncio.Event()
        return self._held[what]

    async def gate(self, what: str) -> None:
        """Wait if the step is held."""
        self.counts[what] += 1
        if what in self._held:
            await self._held[what].wait()

    def refuse(self, what: str, times: int) -> None:
        """Let a step fail so many times."""
        self._refused[what] = times

    def check(self, what: str) -> None:
        """Fail if a test says so."""
        if self._refused.get(what, 0):
            self._refused[what] -= 1
            raise RetinueError(Reason.RUNTIME_UNAVAILABLE, f"no {what} today")

    def gateway(self, instance_id: str) -> PretendGateway:
        """Find a living instance's gateway."""
        return self.gateways[self.alive[instance_id]]


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(200):
        await asyncio.sleep(0)


async def quiet(world: World) -> None:
    """Let a gateway be left alone for so long that it prepares what is missing."""
    world.clock.at += QUIET_S
    await world.pool.watch()
    await settle()


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[World]:
    """Begin a pool, let it come up, and end it."""
    world = World(**settings)
    await world.pool.start()
    await settle()
    try:
        yield world
    finally:
        await world.pool.close()
        assert not world.proxy.credentials


async def visit(world: World, tenant_id: str, isolation: Isolation = Isolation.SHARED) -> Place:
    """Have a place for a moment."""
    async with world.pool.place(tenant_id, isolation, wait_s=5) as place:
        return place


def begin(world: World, tenant_id: str, isolation: Isolation = Isolation.SHARED) -> "asyncio.Task[Place]":
    """Have a place in the background."""
    return asyncio.create_task(visit(world, tenant_id, isolation))


def ids(world: World, isolation: Isolation, state: str = "ready") -> list[str]:
    """Instances as they are listed."""
    return [
        one.instance_id for one in world.pool.instances() if one.isolation == isolation.value and one.state == state
    ]
