"""What policy remembers of tenants, and for how long."""

import pytest
from retinue_kit.client import Peer
from retinue_kit.errors import Reason, RetinueError
from retinue_policy import clients
from retinue_policy.clients import DirectoryTenants
from retinue_policy.domain.snapshot import Tenant


class Clock:
    def __init__(self):
        self.time = 0.0

    def monotonic(self):
        return self.time

    def now(self):
        return self.time


class Remembering(DirectoryTenants):
    """The real memory, asking a dictionary in place of the directory."""

    def __init__(self, peer, clock):
        super().__init__(peer, clock)
        self.asked = 0
        self.there: dict[str, Tenant] = {}
        self.error: RetinueError | None = None

    async def _ask(self, tenant_id):
        self.asked += 1
        if self.error:
            raise self.error
        if tenant_id not in self.there:
            raise RetinueError(Reason.TENANT_NOT_FOUND, "There is no such tenant.")
        return self.there[tenant_id]


@pytest.fixture
async def tenants():
    peer = Peer("directory", "unix:/nowhere")
    made = Remembering(peer, Clock())
    made.there["ten_a"] = Tenant(model="one")
    yield made
    await peer.close()


async def test_a_tenant_is_asked_for_once_while_it_is_fresh(tenants):
    for _ in range(3):
        assert (await tenants.tenant("ten_a")).model == "one"
    assert tenants.asked == 1


async def test_a_changed_setting_is_seen_after_the_fresh_time(tenants):
    await tenants.tenant("ten_a")
    tenants.there["ten_a"] = Tenant(model="two")
    tenants._clock.time = clients.FRESH_S - 0.1
    assert (await tenants.tenant("ten_a")).model == "one"
    tenants._clock.time = clients.FRESH_S
    assert (await tenants.tenant("ten_a")).model == "two"


async def test_a_silent_directory_is_bridged_and_asked_once_a_second(tenants):
    await tenants.tenant("ten_a")
    tenants.error = RetinueError.unavailable("directory")
    tenants._clock.time = clients.STALE_S - 1
    for _ in range(5):
        assert (await tenants.tenant("ten_a")).model == "one"
    assert tenants.asked == 2
    tenants._clock.time += clients.RETRY_S
    assert (await tenants.tenant("ten_a")).model == "one"
    assert tenants.asked == 3


@pytest.mark.parametrize("error", [RetinueError.unavailable("directory"), RetinueError(Reason.INTERNAL, "broken")])
async def test_too_old_a_memory_and_none_at_all_are_unavailable(tenants, error):
    await tenants.tenant("ten_a")
    tenants.error = error
    tenants._clock.time = clients.STALE_S + 1
    for tenant_id in ("ten_a", "ten_never"):
        with pytest.raises(RetinueError) as caught:
            await tenants.tenant(tenant_id)
        assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert caught.value.metadata == {"dependency": "directory"}


async def test_a_removed_tenant_is_forgotten(tenants):
    await tenants.tenant("ten_a")
    del tenants.there["ten_a"]
    tenants._clock.time = clients.FRESH_S
    with pytest.raises(RetinueError) as caught:
        await tenants.tenant("ten_a")
    assert caught.value.reason is Reason.TENANT_NOT_FOUND
    tenants.error = RetinueError.unavailable("directory")
    with pytest.raises(RetinueError) as caught:
        await tenants.tenant("ten_a")
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_memory_is_bounded_and_drops_the_least_recently_used(tenants, monkeypatch):
    monkeypatch.setattr(clients, "TENANTS_MAX", 2)
    tenants.there |= {"ten_b": Tenant(), "ten_c": Tenant()}
    for tenant_id in ("ten_a", "ten_b", "ten_a", "ten_c"):
        await tenants.tenant(tenant_id)
    assert list(tenants._known) == ["ten_a", "ten_c"]
