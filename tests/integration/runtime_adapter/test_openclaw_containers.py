"""Instances in containers and pods: what they may do, and how it is told that there can be none."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from docker_engine import Container, DockerEngine
from kubernetes_api import KubernetesApi
from retinue_kit import ids
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends import api, contained, kubernetes
from retinue_runtime_adapter.openclaw.backends.docker import DockerBackend
from retinue_runtime_adapter.openclaw.backends.kubernetes import KubernetesBackend
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Isolation

TOKEN = "the-gateway's-own"
SETTINGS = Settings(
    address="",
    openclaw_state_dir="/state",
    openclaw_image="retinue/openclaw:test",
    openclaw_proxy_url="http://adapter:18791/v1",
    openclaw_owner="adapter-0",
    openclaw_cpu_count=1.5,
    openclaw_process_count_max=99,
)


def changed(settings: Settings, **fields: Any) -> Settings:
    return msgspec.structs.replace(settings, **fields)


def spec() -> InstanceSpec:
    config = json.dumps({"gateway": {"bind": "loopback", "auth": {"token": TOKEN}}}).encode()
    return InstanceSpec(ids.new_id("ins"), Isolation.CELL, "/state/x", lambda _host, _port: config, 512, 1024)


@pytest_asyncio.fixture
async def engine(run_dir: Path) -> AsyncIterator[DockerEngine]:
    made = DockerEngine(run_dir / "engine.sock")
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def cluster(run_dir: Path) -> AsyncIterator[KubernetesApi]:
    made = KubernetesApi(run_dir)
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def docker(engine: DockerEngine) -> AsyncIterator[Callable[..., DockerBackend]]:
    """Answer a maker of backends."""
    made: list[DockerBackend] = []

    def make(**fields: Any) -> DockerBackend:
        made.append(DockerBackend(changed(SETTINGS, **{"openclaw_docker_socket": str(engine.socket), **fields})))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


@pytest_asyncio.fixture
async def pods(cluster: KubernetesApi) -> AsyncIterator[Callable[..., KubernetesBackend]]:
    """Answer a maker of backends."""
    made: list[KubernetesBackend] = []
    where = {"openclaw_kubernetes_url": cluster.url, "openclaw_kubernetes_account_dir": str(cluster.account)}

    def make(**fields: Any) -> KubernetesBackend:
        made.append(KubernetesBackend(changed(SETTINGS, **{**where, **fields})))
        return made[-1]

    yield make
    for backend in made:
        await backend.close()


async def told(work: Any) -> str:
    """What the trouble says; the reason is always the same."""
    with pytest.raises(RetinueError) as raised:
        await work
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert TOKEN not in raised.value.message + raised.value.private
    return raised.value.message


async def test_a_container_may_do_little(docker, engine) -> None:
    backend = docker(openclaw_container_runtime="runsc")
    await backend.prepare()
    wanted = spec()
    await backend.begin(wanted)
    (container,) = engine.containers.values()
    host = container.wanted["HostConfig"]
    assert container.wanted["User"] == "10001:10001"
    assert container.labels["retinue.instance"] == wanted.instance_id
    assert container.labels["retinue.owner"] == "adapter-0"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Privileged"] is False
    assert host["Memory"] == host["MemorySwap"] == (1024 + contained.STATE_MIB + contained.SCRATCH_MIB) << 20
    assert host["NanoCpus"] == 1_500_000_000
    assert host["PidsLimit"] == 99
    assert host["Init"] is True
    assert host["Runtime"] == "runsc"
    assert set(host["Tmpfs"]) == {"/var/lib/retinue", "/tmp"}
    assert all("noexec" in options and "uid=10001" in options for options in host["Tmpfs"].values())
    assert host["PortBindings"] == {"18790/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}


async def test_only_the_container_itself_learns_its_token(docker, engine, eventually) -> None:
    backend = docker()
    await backend.prepare()
    await backend.begin(spec())
    (container,) = engine.containers.values()
    await eventually(lambda: container.instance.config)
    assert container.instance.config["gateway"]["auth"]["token"] == TOKEN
    assert TOKEN not in json.dumps(container.wanted) + "".join(engine.asked)


async def test_an_engine_is_asked_in_a_version_that_it_knows(docker, engine) -> None:
    for version, asked in (("1.41", "/v1.41/"), ("1.44", "/v1.44/"), ("1.99", "/v1.52/")):
        engine.version = version
        engine.asked.clear()
        await docker().prepare()
        assert all(asked in line for line in engine.asked[1:])
    engine.version = "1.40"
    assert "at least 1.41" in await told(docker().prepare())
    engine.version = "new"
    assert "which version" in await told(docker().prepare())


async def test_what_docker_lacks_is_told(docker, engine) -> None:
    assert "no image no/such:1" in await told(docker(openclaw_image="no/such:1").prepare())
    assert "no network none" in await told(docker(openclaw_docker_network="none").prepare())
    assert "does not answer" in await told(docker(openclaw_docker_socket="/nowhere.sock").prepare())
    engine.failing["GET json"] = (403, "Forbidden by a proxy")
    assert "does not allow" in await told(docker().prepare())


@pytest.mark.parametrize(
    ("deed", "status", "said"),
    [
        ("POST create", 404, "no image"),
        ("POST create", 400, "could not make a container"),
        ("POST attach", 500, "could not attach"),
        ("POST start", 500, "could not start a container"),
    ],
)
async def test_a_container_that_cannot_be_begun_is_told_about_and_removed(
    deed, status, said, docker, engine, eventually
) -> None:
    backend = docker()
    await backend.prepare()
    engine.failing[deed] = (status, "as it is")
    assert said in await told(backend.begin(spec()))
    assert engine.containers == {}
    engine.failing.clear()
    assert await backend.is_alive(await backend.begin(spec()))


async def test_an_engine_that_hangs_is_not_waited_for(docker, engine, monkeypatch) -> None:
    backend = docker()
    await backend.prepare()
    process = await backend.begin(spec())
    engine.hanging.update({"GET stats", "GET json", "POST start"})
    monkeypatch.setitem(api.Api.call.__kwdefaults__, "timeout_s", 0.05)
    assert "in time" in await told(backend.is_alive(process))
    assert await backend.memory_bytes(process) == 0
    engine.hanging -= {"GET json"}
    assert "in time" in await told(backend.begin(spec()))
    assert engine.instances() == {process.instance_id}


def left(engine: DockerEngine, owner: str, *, status: str, age_s: float) -> str:
    """Put a container there that somebody else made."""
    instance_id = ids.new_id("ins")
    wanted = {"Labels": contained.labels(instance_id, owner), "HostConfig": {}, "Image": "x"}
    made = Container(instance_id, contained.name_of(instance_id), wanted, time.time() - age_s, status)
    engine.containers[made.id] = made
    return instance_id


async def test_only_what_nobody_needs_is_removed(docker, engine) -> None:
    own = [left(engine, "adapter-0", status=status, age_s=0) for status in ("running", "created", "exited")]
    ended = left(engine, "adapter-1", status="exited", age_s=contained.ENDED_AGE_S + 5)
    kept = {
        left(engine, "adapter-1", status="running", age_s=86_400),
        left(engine, "adapter-1", status="created", age_s=1),
    }
    stranger = left(engine, "adapter-0", status="running", age_s=86_400)
    del engine.containers[stranger].wanted["Labels"]["retinue.instance"]
    assert {*own, ended} <= engine.instances()
    await docker().prepare()
    assert engine.instances() == kept | {""}


async def test_a_leftover_that_will_not_go_holds_up_nobody(docker, engine) -> None:
    left(engine, "adapter-0", status="running", age_s=0)
    engine.failing["DELETE " + next(iter(engine.containers))] = (500, "device or resource busy")
    backend = docker()
    await backend.prepare()
    assert await backend.is_alive(await backend.begin(spec()))


async def test_a_pod_may_do_little(pods, cluster) -> None:
    backend = pods(openclaw_container_runtime="gvisor")
    await backend.prepare()
    await backend.begin(spec())
    (pod,) = cluster.pods.values()
    container = pod["spec"]["containers"][0]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["runtimeClassName"] == "gvisor"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    memory = f"{1024 + contained.STATE_MIB + contained.SCRATCH_MIB}Mi"
    assert container["resources"]["limits"] == {"cpu": "1500m", "memory": memory}
    assert pod["metadata"]["labels"]["retinue.owner"] == "adapter-0"


async def test_a_pods_token_is_in_a_secret_that_goes_with_it(pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    process = await backend.begin(spec())
    (pod,), (secret,) = cluster.pods.values(), cluster.secrets.values()
    assert secret["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
    assert secret["immutable"] is True
    volume = next(volume for volume in pod["spec"]["volumes"] if "secret" in volume)
    assert volume["secret"] == {"secretName": secret["metadata"]["name"], "defaultMode": 0o400}
    assert TOKEN not in json.dumps(pod)
    await backend.end(process, 1)
    assert cluster.secrets == {}


async def test_a_token_that_was_renewed_is_used(pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    cluster.renew_token()
    assert await backend.is_alive(await backend.begin(spec()))


async def test_a_cluster_with_another_certificate_is_not_told_the_token(pods, cluster, tmp_path) -> None:
    other = KubernetesApi(tmp_path)
    await other.start()
    await other.stop()
    (cluster.account / "ca.crt").write_bytes((tmp_path / "ca.crt").read_bytes())
    assert "does not answer" in await told(pods().prepare())


async def test_what_the_service_account_lacks_is_told(pods, cluster, tmp_path, monkeypatch) -> None:
    assert "no readable namespace" in await told(pods(openclaw_kubernetes_account_dir=str(tmp_path)).prepare())
    (tmp_path / "namespace").write_text("retinue-instances")
    assert "no readable ca.crt" in await told(pods(openclaw_kubernetes_account_dir=str(tmp_path)).prepare())
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "runs in no pod" in await told(pods(openclaw_kubernetes_url="").prepare())
    assert "no such namespace" in await told(pods(openclaw_kubernetes_namespace="other").prepare())
    (cluster.account / "token").write_text("stale")
    assert "does not accept" in await told(pods().prepare())
    (cluster.account / "token").unlink()
    assert "no readable token" in await told(pods().prepare())


@pytest.mark.parametrize(("kind", "said"), [("pods", "may not make pods"), ("secrets", "may not make secrets")])
async def test_what_the_role_lacks_is_told(kind, said, pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    for rule in cluster.rules:
        if kind in rule["resources"]:
            rule["verbs"] = [verb for verb in rule["verbs"] if verb != "create"]
    assert said in await told(backend.begin(spec()))
    assert cluster.pods == {}


async def test_a_namespace_without_room_is_told(pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    cluster.quota = 1
    process = await backend.begin(spec())
    assert "quota has no room" in await told(backend.begin(spec()))
    assert cluster.instances() == {process.instance_id}


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("ImagePullBackOff", "cannot fetch the image retinue/openclaw:test"),
        ("InvalidImageName", "name of the image"),
        ("CreateContainerConfigError", "cannot make an instance's container"),
    ],
)
async def test_a_pod_that_will_never_run_is_told_about_and_removed(trouble, said, pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    cluster.image_trouble = trouble
    assert said in await told(backend.begin(spec()))
    assert (cluster.pods, cluster.secrets) == ({}, {})


async def test_a_cluster_without_room_is_told_in_time(pods, cluster, monkeypatch) -> None:
    monkeypatch.setattr(kubernetes, "BEGIN_TIMEOUT_S", 0.3)
    backend = pods()
    await backend.prepare()
    cluster.full = True
    assert "No node" in await told(backend.begin(spec()))
    assert cluster.pods == {}


async def test_why_a_pod_ended_is_known(pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    process = await backend.begin(spec())
    await cluster.kill(process.instance_id)
    assert not await backend.is_alive(process)
    assert process.detail["end"] == "its pod ended: OOMKilled."


async def test_without_a_metrics_server_memory_is_unknown(pods, cluster) -> None:
    backend = pods()
    await backend.prepare()
    process = await backend.begin(spec())
    cluster.measured = False
    assert await backend.memory_bytes(process) == 0


async def test_an_answer_without_end_is_not_read(docker, engine) -> None:
    backend = docker()
    await backend.prepare()
    engine.failing["GET json"] = (200, "x" * (api.BODY_SIZE_MAX_BYTES + 1))
    assert "more than can be read" in await told(docker().prepare())


async def test_many_instances_begin_and_end_at_once(docker, engine) -> None:
    backend = docker()
    await backend.prepare()
    processes = await asyncio.gather(*(backend.begin(spec()) for _ in range(12)))
    assert len({process.address for process in processes}) == 12
    await asyncio.gather(*(backend.end(process, 1) for process in processes))
    assert engine.containers == {}
