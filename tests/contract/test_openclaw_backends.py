"""What every backend of instances must do. A new backend is one more World.

Processes are real, with a program in place of Node that is as healthy as a gateway; the Docker engine and the cluster
are fakes that know the published interfaces.
"""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import pytest_asyncio
from docker_engine import DockerEngine
from kubernetes_api import KubernetesApi
from retinue_kit import ids
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends.docker import DockerBackend
from retinue_runtime_adapter.openclaw.backends.kubernetes import KubernetesBackend
from retinue_runtime_adapter.openclaw.backends.process import ProcessBackend
from retinue_runtime_adapter.openclaw.ports import Backend, InstanceSpec, Isolation, Process

GRACE_S = 1.0

NODE = """#!{python}
import http.server, json, os, pathlib, signal, sys
config = json.loads(pathlib.Path(os.environ["OPENCLAW_CONFIG_PATH"]).read_text())
assert config["gateway"]["port"] == int(sys.argv[-1])
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{"ok":true}}')
http.server.HTTPServer(("127.0.0.1", config["gateway"]["port"]), Healthy).serve_forever()
"""


class World:
    """Where a backend begins its instances, seen from outside."""

    def backend(self) -> Backend:
        """Make a backend of the same adapter: the next process, if there was one before."""
        raise NotImplementedError

    def stubborn(self) -> None:
        """Let instances that are begun from now on not end when they are asked to."""
        raise NotImplementedError

    def instances(self) -> set[str]:
        """List what is there."""
        raise NotImplementedError

    async def kill(self, process: Process) -> None:
        """Let an instance die."""
        raise NotImplementedError

    def break_it(self) -> None:
        """Let the next `begin` fail halfway."""
        raise NotImplementedError

    def hold_it(self) -> None:
        """Let the next `begin` wait for ever, if anything in it can."""
        raise NotImplementedError

    async def lose(self, backend: Backend) -> None:
        """Let the adapter of a backend die, without a word to its instances."""
        raise NotImplementedError


class Processes(World):
    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.installed = folder / "installed"
        self.node = self.installed / "node"
        program = self.installed / "node_modules/openclaw/openclaw.mjs"
        program.parent.mkdir(parents=True)
        program.write_text("// not read")
        self._write(stubborn=False)

    def _write(self, *, stubborn: bool) -> None:
        self.node.write_text(NODE.format(python=sys.executable, stubborn=stubborn))
        self.node.chmod(0o755)

    def backend(self) -> Backend:
        return ProcessBackend(
            Settings(address="", openclaw_dir=str(self.installed), openclaw_state_dir=str(self.state))
        )

    def stubborn(self) -> None:
        self._write(stubborn=True)

    def instances(self) -> set[str]:
        return {folder.name for folder in self.state.glob("ins_*")}

    async def kill(self, process: Process) -> None:
        psutil.Process(process.detail["pid"]).send_signal(signal.SIGKILL)

    def break_it(self) -> None:
        self.state.rmdir()

    def hold_it(self) -> None:
        """Nothing in it waits for anyone else."""

    async def lose(self, backend: Backend) -> None:
        """Its instances die with it, as the keeper's own tests show; their folders stay."""
        await backend.close()
        (self.state / "ins_left" / "home").mkdir(parents=True)


class Containers(World):
    def __init__(self, engine: DockerEngine, settings: dict[str, Any]) -> None:
        self.engine = engine
        self.settings = Settings(
            **{
                "address": "",
                "openclaw_state_dir": "/state/retinue",
                "openclaw_image": "retinue/openclaw:test",
                "openclaw_docker_socket": str(engine.socket),
                "openclaw_proxy_url": "http://host.docker.internal:18791/v1",
                **settings,
            }
        )

    def backend(self) -> Backend:
        return DockerBackend(self.settings)

    def stubborn(self) -> None:
        self.engine.stubborn = True

    def instances(self) -> set[str]:
        return self.engine.instances()

    async def kill(self, process: Process) -> None:
        await self.engine.kill(process.instance_id)

    def break_it(self) -> None:
        self.engine.failing["POST start"] = (500, "OCI runtime create failed")

    def hold_it(self) -> None:
        self.engine.hanging.add("POST start")

    async def lose(self, backend: Backend) -> None:
        assert isinstance(backend, DockerBackend)
        backend.forget()
        await backend.close()


class Pods(World):
    def __init__(self, cluster: KubernetesApi) -> None:
        self.cluster = cluster
        self.settings = Settings(
            address="",
            openclaw_state_dir="/state/retinue",
            openclaw_image="retinue/openclaw:test",
            openclaw_proxy_url="http://retinue-runtime-adapter.retinue.svc:18791/v1",
            openclaw_kubernetes_url=cluster.url,
            openclaw_kubernetes_account_dir=str(cluster.account),
        )

    def backend(self) -> Backend:
        return KubernetesBackend(self.settings)

    def stubborn(self) -> None:
        self.cluster.stubborn = True

    def instances(self) -> set[str]:
        return self.cluster.instances()

    async def kill(self, process: Process) -> None:
        await self.cluster.kill(process.instance_id)

    def break_it(self) -> None:
        self.cluster.failing["POST secrets"] = (500, "InternalError", "no store")

    def hold_it(self) -> None:
        self.cluster.hanging.add("POST secrets")

    async def lose(self, backend: Backend) -> None:
        assert isinstance(backend, KubernetesBackend)
        backend.forget()
        await backend.close()


@pytest_asyncio.fixture(params=["process", "docker", "docker network", "kubernetes"])
async def world(request: Any, run_dir: Path) -> AsyncIterator[World]:
    if request.param == "process":
        yield Processes(run_dir)
    elif request.param == "kubernetes":
        cluster = KubernetesApi(run_dir)
        await cluster.start()
        yield Pods(cluster)
        await cluster.stop()
    else:
        engine = DockerEngine(run_dir / "engine.sock")
        await engine.start()
        network = {"openclaw_docker_network": "instances"} if "network" in request.param else {}
        yield Containers(engine, network)
        await engine.stop()


@pytest_asyncio.fixture
async def backend(world: World) -> AsyncIterator[Backend]:
    made = world.backend()
    await made.prepare()
    yield made
    await made.close()


@pytest.fixture
def spec(world: World) -> Callable[[], InstanceSpec]:
    """Answer a maker of wishes for an instance."""

    def make() -> InstanceSpec:
        instance_id = ids.new_id("ins")
        state = world.state if isinstance(world, Processes) else Path("/state/retinue")

        def config(host: str, port: int) -> bytes:
            assert host == "127.0.0.1"
            return json.dumps({"gateway": {"bind": "loopback", "port": port, "auth": {"token": "tok"}}}).encode()

        return InstanceSpec(instance_id, Isolation.CELL, str(state / instance_id), config, 256, 512)

    return make


async def healthy(process: Process) -> bool:
    """Whether something answers at its address as a gateway would."""
    with suppress(aiohttp.ClientError, OSError):
        async with aiohttp.ClientSession() as http, http.get(f"http://{process.address}/healthz") as response:
            return await response.json(content_type=None) == {"ok": True}
    return False


async def test_an_instance_that_was_begun_comes_to_answer_at_its_address(backend, spec, eventually) -> None:
    wanted = spec()
    process = await backend.begin(wanted)
    assert process.instance_id == wanted.instance_id
    assert await backend.is_alive(process)
    await eventually(lambda: healthy(process))


async def test_each_instance_has_an_address_of_its_own(backend, spec, world) -> None:
    first, second = await asyncio.gather(backend.begin(spec()), backend.begin(spec()))
    assert first.address != second.address
    assert world.instances() == {first.instance_id, second.instance_id}
    await backend.end(first, GRACE_S)
    assert world.instances() == {second.instance_id}
    assert await backend.is_alive(second)


async def test_an_instance_that_died_is_not_alive(backend, spec, world, eventually) -> None:
    process = await backend.begin(spec())
    await eventually(lambda: healthy(process))
    await world.kill(process)

    async def dead() -> bool:
        return not await backend.is_alive(process)

    await eventually(dead)
    await backend.end(process, GRACE_S)
    assert world.instances() == set()


async def test_memory_is_that_of_the_instance_and_zero_once_it_is_gone(backend, spec, eventually) -> None:
    process = await backend.begin(spec())
    await eventually(lambda: healthy(process))
    assert 1 << 20 < await backend.memory_bytes(process) < 1 << 30
    await backend.end(process, GRACE_S)
    assert await backend.memory_bytes(process) == 0


async def test_ending_leaves_nothing_and_may_be_repeated(backend, spec, world, eventually) -> None:
    process = await backend.begin(spec())
    await eventually(lambda: healthy(process))
    await backend.end(process, GRACE_S)
    assert world.instances() == set()
    assert not await backend.is_alive(process)
    assert not await healthy(process)
    await backend.end(process, GRACE_S)


@pytest.mark.parametrize("grace_s", [0.0, 0.5])
async def test_an_instance_that_does_not_end_by_itself_is_ended_by_force(
    grace_s, backend, spec, world, eventually
) -> None:
    world.stubborn()
    process = await backend.begin(spec())
    await eventually(lambda: healthy(process))
    await backend.end(process, grace_s)
    assert world.instances() == set()
    assert not await healthy(process)


async def test_closing_ends_every_instance(backend, spec, world) -> None:
    await asyncio.gather(*(backend.begin(spec()) for _ in range(3)))
    await backend.close()
    assert world.instances() == set()


async def test_what_a_former_process_left_is_ended_by_the_next_one(backend, spec, world) -> None:
    await backend.begin(spec())
    await world.lose(backend)
    assert len(world.instances()) == 1
    following = world.backend()
    await following.prepare()
    assert world.instances() == set()
    await following.close()


async def test_preparing_again_spares_the_instances_that_are_there(backend, spec, world) -> None:
    process = await backend.begin(spec())
    await backend.prepare()
    assert await backend.is_alive(process)


async def test_an_instance_that_cannot_be_begun_leaves_nothing(backend, spec, world) -> None:
    world.break_it()
    with pytest.raises(RetinueError) as raised:
        await backend.begin(spec())
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert world.instances() == set()


async def test_a_beginning_that_is_cancelled_leaves_nothing(backend, spec, world, eventually) -> None:
    world.hold_it()
    beginning = asyncio.create_task(backend.begin(spec()))
    await eventually(lambda: world.instances())
    beginning.cancel()
    await asyncio.wait([beginning])
    if not beginning.cancelled():  # it was over by then
        await backend.end(beginning.result(), 0)
    assert world.instances() == set()
