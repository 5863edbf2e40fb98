"""Credentials of gateways' agents: whose each is, and how one takes the place of another."""

from typing import Any

import pytest
from pretend_gateways import ids, quiet, running, settle, visit
from retinue_runtime_adapter.openclaw import seats
from retinue_runtime_adapter.openclaw.ports import Isolation
from retinue_runtime_adapter.openclaw.proxy.credentials import OVERLAP_S
from retinue_runtime_adapter.openclaw.proxy.ledger import Ledger, Run

KEY, OTHER = ("ins_a", "ten_a"), ("ins_a", "ten_b")


def run(run_id: str = "run_a") -> Run:
    return Run(run_id=run_id, trace_id="", model="", parameters={}, on_reasoning=None, before=())


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_a_credential_goes_over_to_whom_it_is_assigned(ledger: Ledger) -> None:
    spare, own = ledger.credentials.make(("ins_a", "spare")), ledger.credentials.make(KEY)
    following = ledger.credentials.renew(("ins_a", "spare"))
    ledger.credentials.assign(("ins_a", "spare"), KEY)
    assert ledger.key(spare, 0) == ledger.key(following, 0) == KEY
    assert ledger.key(own, 0) is None
    assert (ledger.credentials.make(KEY), ledger.credentials.renew(KEY)) == (spare, following)
    ledger.credentials.assign(("ins_a", "spare"), OTHER)
    assert ledger.key(spare, 0) == KEY
    ledger.credentials.forget(*KEY)
    assert ledger.key(spare, 0) is ledger.key(following, 0) is None


def test_until_its_gateway_has_it_the_next_credential_is_good_beside_the_present_one(ledger: Ledger) -> None:
    first = ledger.credentials.make(KEY)
    second = ledger.credentials.renew(KEY)
    assert second == ledger.credentials.renew(KEY) != first, "a gateway that did not answer may have taken it"
    assert ledger.credentials.make(KEY) == first
    assert ledger.key(first, 10**9) == ledger.key(second, 10**9) == KEY
    ledger.renewed(KEY, 100)
    ledger.renewed(KEY, 100)
    assert ledger.credentials.make(KEY) == second
    assert ledger.key(first, 100 + OVERLAP_S - 1) == KEY
    assert ledger.key(first, 100 + OVERLAP_S) is None
    assert ledger.key(second, 10**9) == KEY


def test_a_run_that_began_with_the_former_credential_keeps_it_and_a_later_one_does_not(ledger: Ledger) -> None:
    first = ledger.credentials.make(KEY)
    with ledger.run(KEY, run("later")):
        with ledger.run(KEY, run("earlier")):
            ledger.credentials.renew(KEY)
            ledger.renewed(KEY, 0)
            assert ledger.key(first, 10 * OVERLAP_S) == KEY
        assert ledger.key(first, 10 * OVERLAP_S) == KEY
    with ledger.run(KEY, run("new")):
        assert ledger.key(first, 10 * OVERLAP_S) is None


def test_bounded_no_credential_but_the_last_two_is_good_and_nothing_is_left_of_one_that_is_forgotten(
    ledger: Ledger,
) -> None:
    made = [ledger.credentials.make(KEY)]
    for _ in range(5):
        made.append(ledger.credentials.renew(KEY))
        ledger.renewed(KEY, 0)
    assert [ledger.key(one, 0) for one in made] == [None, None, None, None, KEY, KEY]
    assert len(ledger.credentials._keys) == 2
    ledger.credentials.renew(KEY)
    ledger.credentials.forget("ins_a", "")
    assert not ledger.credentials._keys
    ledger.renewed(KEY, 0)
    assert ledger.key(made[-1], 0) is None


def providers(world: Any, instance_id: str) -> set[str]:
    """The credentials that a gateway's agents have."""
    found = world.gateway(instance_id).providers.items()
    return {provider["apiKey"] for name, provider in found if name != "nobody"}


async def test_old_credentials_are_replaced_by_one_change_while_runs_go_on() -> None:
    async with running() as world:
        (name,) = ids(world, Isolation.SHARED)
        await visit(world, "ten_a")
        await quiet(world)
        gateway, former = world.gateway(name), providers(world, name)
        async with world.pool.place("ten_a", Isolation.SHARED, wait_s=5):
            before, old = gateway.changes.count("config.patch"), providers(world, name)
            world.clock.at += seats.CREDENTIAL_AGE_MAX_S
            await world.pool.watch()
            await settle()
            assert gateway.changes.count("config.patch") == before + 1
            assert not (former | old) & providers(world, name)
            assert providers(world, name) == set(world.proxy.credentials.values())
            assert not world.proxy.following
            assert name in world.alive
        world.clock.at += seats.CREDENTIAL_AGE_MAX_S / 2 - 1
        await world.pool.watch()
        await settle()
        assert gateway.changes.count("config.patch") == before + 1


async def test_one_that_its_gateway_does_not_take_stays_good_and_is_offered_again_after_a_pause() -> None:
    async with running(openclaw_idle_s=10 * seats.CREDENTIAL_AGE_MAX_S) as world:
        (name,) = ids(world, Isolation.SHARED)
        gateway = world.gateway(name)
        await visit(world, "ten_a")
        await quiet(world)
        former = providers(world, name)
        world.refuse("config.patch", seats.PATCH_TRIES_MAX)
        world.clock.at += seats.CREDENTIAL_AGE_MAX_S
        for _ in range(3):
            await world.pool.watch()
            await settle()
        assert former == providers(world, name) == set(world.proxy.credentials.values())
        offered = set(world.proxy.following.values())
        before = gateway.changes.count("config.patch")
        world.clock.at += seats.RENEW_AGAIN_S
        await world.pool.watch()
        await settle()
        assert providers(world, name) == offered
        assert gateway.changes.count("config.patch") == before + 1
