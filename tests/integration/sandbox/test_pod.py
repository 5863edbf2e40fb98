"""Boxes as pods of a pretended cluster, in each of which the same agent runs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.pod import backend as pods
from retinue_sandbox.pod.backend import PodBackend
from retinue_sandbox.pod.manifest import Options
from retinue_sandbox.ports import Box, Command, Exit, Isolation, Limits, Piece, Profile, Work, Workspace
from sandbox_cluster import SandboxCluster

ALICE, BOB = Workspace("ten_a", -1, 700_001), Workspace("ten_b", -1, 700_002)


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[SandboxCluster]:
    """Have a cluster."""
    made = SandboxCluster(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def backend(cluster: SandboxCluster) -> AsyncIterator[PodBackend]:
    """Have a backend that uses it."""
    made = PodBackend(Options("retinue/box", "gvisor"), cluster.url, cluster.folder, "", "owner")
    yield made
    await made.close()


async def done(box: Box, work: Work) -> tuple[str, Exit]:
    """Run something; answers what it said and its end."""
    events = [event async for event in box.run(work, Limits())]
    ended = events.pop()
    assert isinstance(ended, Exit)
    return b"".join(event.data for event in events if isinstance(event, Piece)).decode(), ended


async def test_a_box_is_its_tenants_user_and_ends_with_its_pod(cluster: SandboxCluster, backend: PodBackend) -> None:
    first, other = await backend.open(ALICE, Profile()), await backend.open(BOB, Profile())
    assert first.isolation is Isolation.GVISOR
    assert [(await done(box, Command(["id", "-u"])))[0] for box in (first, other)] == ["700001\n", "700002\n"]
    await first.close()
    assert len(cluster.sandboxes) == 1


async def test_a_pod_that_is_gone_is_a_lost_box(cluster: SandboxCluster, backend: PodBackend) -> None:
    box = await backend.open(ALICE, Profile())
    (name,) = cluster.sandboxes
    await cluster.end(name)
    await box.lost.wait()


async def test_box_or_refuse_where_the_cluster_gives_none(
    cluster: SandboxCluster, backend: PodBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refusal(profile: Profile | None = None) -> str:
        with pytest.raises(RetinueError) as caught:
            await backend.open(ALICE, profile or Profile())
        assert caught.value.reason == Reason.SANDBOX_UNAVAILABLE
        assert not cluster.sandboxes
        return caught.value.message

    assert "no way to the network" in await refusal(Profile(egress=("a.test:443",)))
    cluster.quota = 0
    assert "quota" in await refusal()
    cluster.quota = 10
    cluster.broken = True
    assert "ended at once" in await refusal()
    cluster.broken = False
    cluster.stuck = True
    monkeypatch.setattr(pods, "BEGIN_TIMEOUT_S", 0.2)
    assert "in time" in await refusal()
    (cluster.folder / "token").write_text("another")
    assert "token" in await refusal()
    assert not (await backend.check())[0].ok
    await cluster.stop()
    assert "does not answer" in await refusal()


async def test_the_self_test_looks_from_inside_and_removes_leftovers(
    cluster: SandboxCluster, backend: PodBackend
) -> None:
    former = PodBackend(Options("retinue/box", "gvisor"), cluster.url, cluster.folder, "", "owner")
    await former.open(ALICE, Profile())
    (left,) = cluster.sandboxes
    checks = {check.name: check.ok for check in await backend.check()}
    held = dict.fromkeys(("pod", "pod_user", "pod_capabilities", "pod_account", "pod_root"), True)
    # These pods share the machine's network, and reach the server: such a cluster's boxes are not to be used.
    assert checks == held | {"pod_network": False}
    assert left in cluster.removed
    assert not cluster.sandboxes
    await former.close()
