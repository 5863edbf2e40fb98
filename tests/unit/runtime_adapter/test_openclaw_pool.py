"""Where tenants are served: what is kept running, who gets which instance, and what becomes of what is lost or idle."""

import asyncio
import os
from contextlib import AsyncExitStack

import pytest
from pretend_gateways import World, begin, ids, quiet, running, settle, visit
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import fleet, instance, pool, seats
from retinue_runtime_adapter.openclaw.ports import Isolation

SHARED, CELL = Isolation.SHARED, Isolation.CELL


# --- what is kept running ------------------------------------------------------------------------------------------


async def test_gateways_are_there_before_anybody_needs_them() -> None:
    async with running(openclaw_shared_count=2, openclaw_warm_cell_count=1) as world:
        assert len(ids(world, SHARED)) == 2
        assert len(ids(world, CELL)) == 1
        assert world.pool.status() == (True, "openclaw 1, 2 shared gateways, 1 cell")


async def test_until_the_first_gateway_serves_no_run_could_be_taken() -> None:
    world = World()
    started = world.hold("start")
    await world.pool.start()
    await settle()
    assert world.pool.status() == (False, "starting the first gateway")
    assert [one.state for one in world.pool.instances()] == ["pending"]
    waiting = begin(world, "ten_a")
    await settle()
    assert not waiting.done()
    started.set()
    await waiting
    assert world.pool.status()[0]
    await world.pool.close()
    assert world.pool.status() == (False, "shutting down")


async def test_a_machine_without_openclaw_says_so() -> None:
    world = World()
    world.refuse("prepare", 10)
    await world.pool.start()
    await settle()
    assert world.pool.status() == (False, "no prepare today")
    with pytest.raises(Trouble, match="no prepare today"):
        await visit(world, "ten_a")
    await world.pool.close()


async def test_cells_only_need_no_gateway_to_be_available() -> None:
    async with running(openclaw_shared_count=0) as world:
        assert world.pool.status() == (True, "openclaw 1, 0 shared gateways, 0 cells")
        await visit(world, "ten_a", CELL)
        await visit(world, "ten_b", SHARED)
        assert world.pool.instance_of("ten_b").isolation == "cell", "there is nothing else here"


async def test_a_gateway_that_does_not_start_is_tried_again_after_ever_longer_pauses() -> None:
    world = World()
    world.refuse("start", 3)
    await world.pool.start()
    pauses = []
    for _ in range(3):
        await settle()
        assert world.pool.status() == (False, "no start today")
        with pytest.raises(Trouble) as refused:
            await visit(world, "ten_a")
        pauses.append(refused.value.error.retry_after_s)
        begun = world.counts["begin"]
        world.clock.at += fleet.BACKOFF_MIN_S * 2 ** len(pauses) / 2 - 0.1
        await world.pool.watch()
        await settle()
        assert world.counts["begin"] == begun, "it waits for its time"
        world.clock.at += 0.2
        await world.pool.watch()
    await settle()
    assert pauses == sorted(pauses)
    assert world.pool.status()[0]
    assert [one.state for one in world.pool.instances()].count("ready") == 1
    assert world.counts["begin"] == 4
    await world.pool.close()


async def test_few_gateways_start_at_the_same_time() -> None:
    world = World(openclaw_shared_count=3)
    started = world.hold("start")
    await world.pool.start()
    await settle()
    assert world.counts["begin"] == min(3, max(1, (os.cpu_count() or 1) // fleet.CORES_PER_START))
    started.set()
    await settle()
    assert len(ids(world, SHARED)) == 3
    await world.pool.close()


# --- who gets which instance ---------------------------------------------------------------------------------------


async def test_tenants_are_spread_over_gateways_and_stay_where_they_are() -> None:
    async with running(openclaw_shared_count=2) as world:
        first = {tenant_id: (await visit(world, tenant_id)).instance_id for tenant_id in "abcdef"}
        again = {tenant_id: (await visit(world, tenant_id)).instance_id for tenant_id in "fedcba"}
        assert first == again
        assert sorted(list(first.values()).count(one) for one in ids(world, SHARED)) == [3, 3]


async def test_a_tenant_that_comes_first_finds_a_warm_agent_and_another_is_made_behind_it() -> None:
    async with running() as world:
        (name,) = ids(world, SHARED)
        gateway = world.gateway(name)
        warm = {call.agent_id for call in gateway.runs}
        assert len(warm) == instance.SPARE_COUNT
        world.hold("config.patch")
        place = await visit(world, "ten_a")
        assert place.agent_id in warm
        assert gateway.providers[f"p-{place.agent_id}"]["apiKey"] == world.proxy.credentials[name, "ten_a"]
        await quiet(world)
        assert world.counts["config.patch"] == 1


async def test_many_tenants_at_once_are_added_by_few_changes() -> None:
    async with running(openclaw_run_count=20) as world:
        gateway = world.gateway(ids(world, SHARED)[0])
        held = world.hold("config.get")
        tasks = [begin(world, f"ten_{number}") for number in range(20)]
        await settle()
        held.set()
        places = await asyncio.gather(*tasks)
        assert len({place.agent_id for place in places}) == 20
        assert gateway.changes.count("config.patch") <= 3
        for number, place in enumerate(places):
            key = gateway.providers[f"p-{place.agent_id}"]["apiKey"]
            assert world.proxy.credentials[place.instance_id, f"ten_{number}"] == key
            assert world.pool.tenant_of(place.instance_id, place.agent_id) == f"ten_{number}"


async def test_several_runs_of_a_new_tenant_share_one_agent() -> None:
    async with running() as world:
        places = await asyncio.gather(*(begin(world, "ten_a") for _ in range(5)))
        assert len({place.agent_id for place in places}) == 1
        assert len({id(place.sessions) for place in places}) == 1


async def test_a_free_cell_is_given_at_once_and_replaced() -> None:
    async with running(openclaw_shared_count=0, openclaw_warm_cell_count=1) as world:
        (warm,) = ids(world, CELL)
        held = world.hold("config.patch")
        place = await visit(world, "ten_a", CELL)
        assert place.instance_id == warm
        await settle()
        assert len(ids(world, CELL)) == 2
        assert not held.is_set()


async def test_a_cell_is_never_given_to_another_tenant() -> None:
    async with running(openclaw_shared_count=0) as world:
        place = await visit(world, "ten_a", CELL)
        await world.pool.delete("ten_a")
        await settle()
        assert world.ended == [place.instance_id]
        other = await visit(world, "ten_b", CELL)
        assert other.instance_id != place.instance_id
        with pytest.raises(AssertionError, match="second tenant"):
            world.pool._fleet.open(CELL)[0].claim("ten_c")


async def test_when_all_cells_are_taken_the_longest_idle_one_gives_way() -> None:
    async with running(openclaw_shared_count=0, openclaw_cell_count_max=2) as world:
        first = await visit(world, "ten_a", CELL)
        world.clock.at += 1
        await visit(world, "ten_b", CELL)
        times = []
        for pause_s in (0, pool.CELL_KEPT_S - 4, 2.5):
            world.clock.at += pause_s
            with pytest.raises(Trouble, match="All cells are in use") as refused:
                await visit(world, "ten_c", CELL)
            times.append(refused.value.error.retry_after_s)
        assert times == [pool.NO_CELL_MAX_S, 3, pool.NO_CELL_MIN_S], "as long as until the oldest may give way"
        world.clock.at += 0.5
        await visit(world, "ten_c", CELL)
        await settle()
        assert world.ended == [first.instance_id]
        assert len(world.alive) == 2


async def test_a_cell_with_a_run_gives_way_to_nobody() -> None:
    async with (
        running(openclaw_shared_count=0, openclaw_cell_count_max=1) as world,
        world.pool.place("ten_a", CELL, wait_s=5),
    ):
        world.clock.at += 10 * pool.CELL_KEPT_S
        with pytest.raises(Trouble, match="All cells are in use") as refused:
            await visit(world, "ten_b", CELL)
        assert refused.value.error.retry_after_s == pool.NO_CELL_MAX_S


async def test_a_tenant_whose_plan_changes_moves() -> None:
    async with running() as world:
        shared = await visit(world, "ten_a")
        cell = await visit(world, "ten_a", CELL)
        await settle()
        assert cell.instance_id != shared.instance_id
        assert shared.agent_id not in world.gateway(shared.instance_id).agents
        assert world.pool.instance_of("ten_a").isolation == "cell"
        again = await visit(world, "ten_a")
        await settle()
        assert again.instance_id == shared.instance_id
        assert again.agent_id != shared.agent_id
        assert world.ended == [cell.instance_id]


async def test_an_agent_whose_tenant_moves_stays_until_its_run_is_over() -> None:
    async with running() as world:
        async with world.pool.place("ten_a", SHARED, wait_s=5) as place:
            await visit(world, "ten_a", CELL)
            await settle()
            assert place.agent_id in world.gateway(place.instance_id).agents
        await settle()
        assert place.agent_id not in world.gateway(place.instance_id).agents


async def test_a_full_gateway_lets_the_longest_idle_agent_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SEATS_MAX", 2)
    async with running() as world:
        first = await visit(world, "ten_a")
        world.clock.at += 1
        await visit(world, "ten_b")
        with pytest.raises(Trouble, match="as many tenants as it can"):
            await visit(world, "ten_c")
        world.clock.at += pool.SEAT_KEPT_S
        await visit(world, "ten_c")
        await settle()
        assert first.agent_id not in world.gateway(first.instance_id).agents


# --- agents --------------------------------------------------------------------------------------------------------


async def test_an_agent_that_is_asked_for_without_a_run_is_warmed_up() -> None:
    async with running() as world:
        world.hold("config.patch").set()
        created = [await world.pool.create(f"ten_{number}", SHARED) for number in range(4)]
        assert {one.state for one in created} <= {"ready", "pending"}
        await settle()
        assert {world.pool.instance_of(f"ten_{number}").state for number in range(4)} == {"ready"}
        await quiet(world)
        await quiet(world)
        assert len(world.gateway(created[0].instance_id).runs) == 4 + instance.SPARE_COUNT
        assert world.pool.instance_of("ten_3").tenant_ids == ["ten_3"]


async def test_agents_have_their_first_turns_one_after_the_other_and_before_any_run() -> None:
    world = World()
    held = world.hold("run")
    await world.pool.start()
    await settle()
    tasks = [begin(world, f"ten_{number}") for number in range(4)]
    await settle()
    (gateway,) = world.gateways.values()
    assert len(gateway.runs) == 1, "side by side they would take many times as long"
    assert not any(task.done() for task in tasks)
    held.set()
    places = await asyncio.gather(*tasks)
    turns = [call.agent_id for call in gateway.runs]
    assert {place.agent_id for place in places} <= set(turns)
    assert len(turns) == len(set(turns))
    await world.pool.close()


async def test_a_tenant_that_takes_an_agent_which_is_being_warmed_up_waits_for_it() -> None:
    world = World()
    held = world.hold("run")
    await world.pool.start()
    await settle()
    tasks = [begin(world, f"ten_{number}") for number in range(instance.SPARE_COUNT)]
    await settle()
    assert not any(task.done() for task in tasks)
    held.set()
    await asyncio.gather(*tasks)
    for number, task in enumerate(tasks):
        place = task.result()
        key = world.gateway(place.instance_id).providers[f"p-{place.agent_id}"]["apiKey"]
        assert world.proxy.credentials[place.instance_id, f"ten_{number}"] == key
    await world.pool.close()


async def test_a_warm_up_that_fails_harms_nobody() -> None:
    world = World()
    world.refuse("run", instance.SPARE_COUNT)
    await world.pool.start()
    await settle()
    await visit(world, "ten_a")
    await world.pool.close()


async def test_a_change_that_somebody_came_before_is_made_again() -> None:
    async with running() as world:
        (name,) = ids(world, SHARED)
        await asyncio.gather(*(begin(world, f"ten_{number}") for number in range(instance.SPARE_COUNT + 1)))
        await settle()
        world.gateway(name).revision += 1
        await asyncio.gather(*(begin(world, f"new_{number}") for number in range(instance.SPARE_COUNT + 1)))


async def test_an_agent_that_cannot_be_made_is_a_trouble_that_passes() -> None:
    async with running() as world:
        world.refuse("config.patch", seats.PATCH_TRIES_MAX * pool.PLACES_MAX * 10)
        tasks = [begin(world, f"ten_{number}") for number in range(instance.SPARE_COUNT + 1)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [error for error in found if isinstance(error, Trouble)]
        assert [error.reason for error in refused] == [Reason.RUNTIME_UNAVAILABLE]
        world.refuse("config.patch", 0)
        for number in range(instance.SPARE_COUNT + 1):
            await visit(world, f"ten_{number}")


async def test_a_tenant_that_is_deleted_leaves_nothing() -> None:
    async with running() as world:
        place = await visit(world, "ten_a")
        await world.pool.delete("ten_a")
        await settle()
        gateway = world.gateway(place.instance_id)
        assert place.agent_id not in gateway.agents
        assert f"p-{place.agent_id}" not in gateway.providers
        assert (place.instance_id, "ten_a") not in world.proxy.credentials
        with pytest.raises(RetinueError) as refused:
            world.pool.instance_of("ten_a")
        assert refused.value.reason is Reason.INSTANCE_NOT_FOUND
        with pytest.raises(RetinueError) as refused:
            await world.pool.delete("ten_a")
        assert refused.value.reason is Reason.INSTANCE_NOT_FOUND
        again = await visit(world, "ten_a")
        assert again.agent_id != place.agent_id
        assert again.sessions is not place.sessions


async def test_bounded_a_tenant_gives_its_instance_back_so_often_within_a_time_and_others_as_well() -> None:
    async with running(openclaw_shared_count=0) as world:
        for _ in range(pool.RETURNS_MAX):
            await world.pool.create("ten_a", CELL)
            await settle()
            await world.pool.delete("ten_a")
            world.clock.at += 1
        kept = await world.pool.create("ten_a", CELL)
        await settle()
        for _ in range(2):
            with pytest.raises(RetinueError) as refused:
                await world.pool.delete("ten_a")
            assert refused.value.reason is Reason.QUOTA_EXCEEDED
            assert refused.value.retry_after_s == pool.RETURNS_WINDOW_S - pool.RETURNS_MAX
        assert world.pool.instance_of("ten_a").instance_id == kept.instance_id, "nothing was lost"
        assert world.counts["begin"] == pool.RETURNS_MAX + 1
        await world.pool.create("ten_b", CELL)
        await world.pool.delete("ten_b")
        world.clock.at += pool.RETURNS_WINDOW_S - pool.RETURNS_MAX
        await world.pool.delete("ten_a")


async def test_a_run_that_waits_while_its_tenant_is_deleted_gets_a_new_agent() -> None:
    async with running(openclaw_run_count=1) as world:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(world.pool.place("ten_b", SHARED, wait_s=5))
            former = await world.pool.create("ten_a", SHARED)
            waiting = begin(world, "ten_a")
            await settle()
            await world.pool.delete("ten_a")
        place = await waiting
        assert place.instance_id == former.instance_id
        assert world.pool.tenant_of(place.instance_id, place.agent_id) == "ten_a"
