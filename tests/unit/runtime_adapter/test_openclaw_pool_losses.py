"""Who is admitted to a gateway of the pool, and what becomes of instances that are lost, idle or too large."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from pretend_gateways import World, begin, ids, running, settle, visit
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import fleet, instance, wear
from retinue_runtime_adapter.openclaw.ports import Isolation

SHARED, CELL = Isolation.SHARED, Isolation.CELL


# --- admission -----------------------------------------------------------------------------------------------------


async def test_no_more_runs_are_in_a_gateway_than_it_bears_and_no_more_wait_than_may() -> None:
    async with running(openclaw_run_count=2, openclaw_waiting_count=3) as world:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(world.pool.place("ten_a", SHARED, wait_s=5))
            waiting = [begin(world, "ten_a") for _ in range(3)]
            await settle()
            (one,) = world.pool.instances()
            assert (one.running_count, one.waiting_count) == (2, 3)
            with pytest.raises(Trouble, match="Too many runs wait"):
                await visit(world, "ten_a")
        await asyncio.gather(*waiting)
        (one,) = world.pool.instances()
        assert (one.running_count, one.waiting_count) == (0, 0)


async def test_a_run_waits_no_longer_than_it_may() -> None:
    async with running(openclaw_run_count=1) as world:
        async with world.pool.place("ten_a", SHARED, wait_s=5):
            with pytest.raises(Trouble, match="no free place in time"):
                async with world.pool.place("ten_b", SHARED, wait_s=0.01):
                    raise AssertionError("there was a slot too many")
        await visit(world, "ten_b")


async def test_a_gateway_that_lags_behind_is_given_fewer_runs() -> None:
    async with running(openclaw_run_count=2) as world:
        world.lags = True
        await world.pool.watch()
        async with world.pool.place("ten_a", SHARED, wait_s=5):
            other = begin(world, "ten_b")
            await settle()
            assert not other.done()
            world.lags = False
            await world.pool.watch()
            await other


async def test_a_gateway_that_lags_behind_for_good_goes_when_its_successor_serves_and_its_runs_are_over() -> None:
    async with running() as world:
        async with world.pool.place("ten_a", SHARED, wait_s=5) as place:
            world.lags = True
            await world.pool.watch()
            world.clock.at += wear.LAG_MAX_S
            await world.pool.watch()
            await settle()
            world.lags = False
            await world.pool.watch()
            assert place.instance_id in world.alive, "its run goes on"
            assert (await visit(world, "ten_b")).instance_id != place.instance_id
        await world.pool.watch()
        await settle()
        assert world.ended == [place.instance_id]


# --- what is lost or idle ------------------------------------------------------------------------------------------


async def test_a_gateway_that_dies_is_replaced_and_its_runs_find_the_new_one() -> None:
    async with running(openclaw_run_count=1) as world:
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(world.pool.place("ten_a", SHARED, wait_s=5))
            waiting = begin(world, "ten_b")
            await settle()
            del world.alive[place.instance_id]
            await world.pool.watch()
            found = await waiting
            assert found.instance_id != place.instance_id
        assert world.ended == [place.instance_id]
        assert ids(world, SHARED, "error") == [place.instance_id], "it is still told of"
        assert (await visit(world, "ten_a")).instance_id == found.instance_id
        world.clock.at += fleet.ERROR_KEPT_S + 1
        await world.pool.watch()
        assert ids(world, SHARED, "error") == []


async def test_the_end_of_a_run_in_trouble_is_looked_into_at_once() -> None:
    async with running() as world:
        (name,) = ids(world, SHARED)

        async def run() -> None:
            async with world.pool.place("ten_a", SHARED, wait_s=5):
                del world.alive[name]
                raise Trouble(Reason.RUNTIME_UNAVAILABLE, "lost")

        with pytest.raises(Trouble, match="lost"):
            await run()
        await settle()
        assert ids(world, SHARED, "error") == [name]


async def test_a_gateway_that_is_silent_for_a_while_is_kept_and_one_that_hangs_is_not() -> None:
    async with running() as world:
        (name,) = ids(world, SHARED)
        world.silent = True
        world.clock.at += instance.SILENCE_MAX_S - 1
        await world.pool.watch()
        assert ids(world, SHARED) == [name]
        world.clock.at += 2
        await world.pool.watch()
        assert ids(world, SHARED, "error") == [name]


async def test_a_gateway_that_serves_but_cannot_be_spoken_to_any_more_is_replaced() -> None:
    async with running() as world:
        await visit(world, "ten_a")
        lost = world.pool.instance_of("ten_a").instance_id
        world.gateway(lost).is_lost = True
        await world.pool.watch()
        await settle()
        await visit(world, "ten_a")
        assert world.pool.instance_of("ten_a").instance_id != lost


async def test_a_gateway_that_begins_no_runs_any_more_is_replaced_and_one_that_begins_some_is_not() -> None:
    async with running() as world:
        for begun in (False, False, False, False, True, False):
            async with world.pool.place("ten_a", Isolation.SHARED, wait_s=1) as place:
                place.report(begun)
        stuck = world.pool.instance_of("ten_a").instance_id
        await world.pool.watch()
        assert ids(world, SHARED) == [stuck]
        for _ in range(instance.UNBEGUN_MAX - 1):
            async with world.pool.place("ten_a", Isolation.SHARED, wait_s=1) as place:
                place.report(False)
        await world.pool.watch()
        await settle()
        await visit(world, "ten_a")
        assert world.pool.instance_of("ten_a").instance_id != stuck


async def test_a_gateway_that_takes_too_much_memory_goes_when_its_successor_serves_and_its_runs_are_over() -> None:
    async with running(openclaw_memory_mib=1000) as world:
        started = world.hold("start")
        async with world.pool.place("ten_a", SHARED, wait_s=5) as place:
            world.memory_mib[place.instance_id] = 1200
            world.clock.at += instance.MEASURE_S
            await world.pool.watch()
            assert (await visit(world, "ten_a")).instance_id == place.instance_id, "there is no other yet"
            started.set()
            await settle()
            found = await visit(world, "ten_a")
            assert found.instance_id != place.instance_id
            world.memory_mib[place.instance_id] = 900
            world.clock.at += instance.MEASURE_S
            await world.pool.watch()
            assert place.instance_id in world.alive
        await world.pool.watch()
        await settle()
        assert world.ended == [place.instance_id]
        assert ids(world, SHARED) == [found.instance_id]


async def test_a_gateway_that_takes_far_too_much_memory_is_ended_at_once() -> None:
    async with running(openclaw_memory_mib=1000) as world, world.pool.place("ten_a", SHARED, wait_s=5) as place:
        world.memory_mib[place.instance_id] = 1501
        world.clock.at += instance.MEASURE_S
        await world.pool.watch()
        await settle()
        assert world.ended == [place.instance_id]


async def test_a_cell_that_takes_too_much_memory_ends_after_its_run() -> None:
    async with running(openclaw_shared_count=0, openclaw_memory_mib=1000) as world:
        async with world.pool.place("ten_a", CELL, wait_s=5) as place:
            world.memory_mib[place.instance_id] = 1200
            world.clock.at += instance.MEASURE_S
            await world.pool.watch()
            assert world.ended == []
        await world.pool.watch()
        await settle()
        assert world.ended == [place.instance_id]
        assert (await visit(world, "ten_a", CELL)).instance_id != place.instance_id


async def test_idle_cells_end_and_idle_agents_go() -> None:
    async with running(openclaw_idle_s=100) as world:
        shared, cell = await visit(world, "ten_a"), await visit(world, "ten_b", CELL)
        world.clock.at += 99
        await world.pool.watch()
        await settle()
        assert cell.instance_id in world.alive
        world.clock.at += 2
        await world.pool.watch()
        await settle()
        assert world.ended == [cell.instance_id]
        assert shared.agent_id not in world.gateway(shared.instance_id).agents


async def test_a_cell_that_waits_for_its_tenant_is_not_idle() -> None:
    async with running(openclaw_warm_cell_count=1, openclaw_idle_s=100) as world:
        world.clock.at += 1_000
        await world.pool.watch()
        await settle()
        assert world.ended == []


async def test_an_end_that_comes_while_a_gateway_begins_leaves_nothing() -> None:
    for step in ("begin", "start"):
        world = World()
        held = world.hold(step)
        await world.pool.start()
        waiting = begin(world, "ten_a")
        await settle()
        closing = asyncio.create_task(world.pool.close())
        await settle()
        held.set()
        await closing
        assert not world.alive
        with pytest.raises(Trouble, match="shutting down"):
            await waiting
