"""Agents for tenants to come are made while nobody speaks, and yet in time."""

import pytest
from pretend_gateways import PretendClock, begin, ids, quiet, running, settle, visit
from retinue_runtime_adapter.openclaw import instance
from retinue_runtime_adapter.openclaw.ports import Isolation
from retinue_runtime_adapter.openclaw.preparing import NONE_LEFT_WAIT_MAX_S, QUIET_S, WAIT_MAX_S, Preparing

SHARED = Isolation.SHARED


def test_a_gateway_that_has_just_begun_prepares_at_once() -> None:
    preparing = Preparing(PretendClock())
    assert preparing.is_time(missing=2, warm_count=0, is_used=False, is_busy=False)
    assert not preparing.is_time(missing=0, warm_count=2, is_used=False, is_busy=False)


def test_nothing_is_prepared_until_a_claim_and_a_run_are_some_time_ago() -> None:
    clock = PretendClock()
    preparing = Preparing(clock)
    assert preparing.stir() == clock.at
    clock.at += QUIET_S - 0.1
    assert not preparing.is_time(missing=1, warm_count=1, is_used=False, is_busy=False)
    clock.at += 0.2
    assert not preparing.is_time(missing=1, warm_count=1, is_used=True, is_busy=False)
    assert not preparing.is_time(missing=1, warm_count=1, is_used=False, is_busy=True)
    assert preparing.is_time(missing=1, warm_count=1, is_used=False, is_busy=False)


@pytest.mark.parametrize(
    ("warm_count", "is_busy", "wait_s"),
    [(1, False, WAIT_MAX_S), (0, False, NONE_LEFT_WAIT_MAX_S), (0, True, WAIT_MAX_S)],
)
def test_bounded_an_agent_waits_for_quiet_so_long_at_most_and_the_next_one_anew(
    warm_count: int, is_busy: bool, wait_s: float
) -> None:
    clock = PretendClock()
    preparing = Preparing(clock)

    def is_time() -> bool:
        preparing.stir()
        return preparing.is_time(missing=1, warm_count=warm_count, is_used=True, is_busy=is_busy)

    for _ in range(2):
        assert not is_time()
        clock.at += wait_s - 0.1
        assert not is_time()
        clock.at += 0.2
        assert is_time()
        preparing.prepared()
    assert not is_time()
    preparing.is_time(missing=0, warm_count=2, is_used=True, is_busy=False)
    clock.at += wait_s
    assert not is_time(), "it waits from when one is missing, not from the last time one was"


async def test_a_new_tenants_first_turn_has_nothing_made_beside_it() -> None:
    async with running() as world:
        gateway = world.gateway(ids(world, SHARED)[0])
        warm_ups = len(gateway.runs)
        await world.pool.create("ten_a", SHARED)
        await settle()
        assert world.counts["config.patch"] == 0, "its first message comes next"
        async with world.pool.place("ten_a", SHARED, wait_s=5):
            await quiet(world)
            assert world.counts["config.patch"] == 0
        await quiet(world)
        assert world.counts["config.patch"] == 1
        assert len(gateway.runs) == warm_ups + 1
        assert f"{instance.SPARE_COUNT} warm agents" in world.pool.instances()[0].detail


async def test_bounded_a_gateway_that_is_never_left_alone_has_warm_agents_again() -> None:
    async with running() as world:
        gateway = world.gateway(ids(world, SHARED)[0])
        warm_ups = len(gateway.runs)
        async with world.pool.place("ten_a", SHARED, wait_s=5):
            await visit(world, "ten_b")
            await world.pool.watch()
            await settle()
            assert "0 warm agents" in world.pool.instances()[0].detail
            for number, wait_s in enumerate((NONE_LEFT_WAIT_MAX_S, WAIT_MAX_S), 1):
                world.clock.at += wait_s - 0.1
                await world.pool.watch()
                await settle()
                assert len(gateway.runs) == warm_ups + number - 1
                world.clock.at += 0.2
                await world.pool.watch()
                await settle()
                assert len(gateway.runs) == warm_ups + number, "one at a time"
            assert gateway.changes.count("config.patch") == 1


async def test_an_agent_is_not_made_while_another_has_its_first_turn() -> None:
    async with running() as world:
        gateway = world.gateway(ids(world, SHARED)[0])
        await visit(world, "ten_a")
        held = world.hold("run")
        await quiet(world)
        assert gateway.changes.count("config.patch") == 1
        await world.pool.create("ten_b", SHARED)
        await quiet(world)
        assert gateway.changes.count("config.patch") == 1, "a first turn is under way"
        held.set()
        await quiet(world)
        assert gateway.changes.count("config.patch") == 2


async def test_a_tenant_that_finds_no_agent_is_given_one_however_busy_the_gateway_is() -> None:
    async with running(openclaw_run_count=instance.SPARE_COUNT + 1) as world:
        async with world.pool.place("ten_a", SHARED, wait_s=5):
            await visit(world, "ten_b")
            place = await begin(world, "ten_c")
        assert world.pool.tenant_of(place.instance_id, place.agent_id) == "ten_c"
        assert world.counts["config.patch"] == 1
