"""Boxes made ahead, over boxes that run nothing: who finds one ready, and what becomes of those nobody comes for."""

import asyncio
import os

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox import spares
from retinue_sandbox.ports import Isolation, Profile, Workspace
from retinue_sandbox.spares import SPARE_TTL_S, SPARES_TENANT_MAX, Spares

PLAIN = Profile()
WIDE = Profile(egress=("example.com:443",))
OTHER = Profile(egress=("example.org:443",))


class FakeBox:
    isolation = Isolation.NAMESPACE

    def __init__(self, kind):
        self.kind = kind
        self.lost = asyncio.Event()

    async def close(self):
        self.lost.set()


class Files:
    """The tenants' files: a folder of the machine for each."""

    def open(self, tenant_id):
        return Workspace(tenant_id, os.open("/", os.O_PATH), 1000)


class World:
    """A backend, the tenants' files and a clock, and what is made of them."""

    def __init__(self, spares_max=4):
        self.boxes, self.time, self.fail = [], 1000.0, False
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.spares = Spares(self, Files(), spares_max, self)

    def monotonic(self):
        return self.time

    now = monotonic

    async def open(self, workspace, profile):
        await self.may_open.wait()
        if self.fail:
            raise RetinueError(Reason.SANDBOX_UNAVAILABLE, "There is none.", check="box")
        self.boxes.append(FakeBox((workspace.tenant_id, profile)))
        return self.boxes[-1]

    async def take(self, tenant="ten_a", profile=PLAIN):
        return await self.spares.take(tenant, profile)

    @property
    def open_boxes(self):
        return [box for box in self.boxes if not box.lost.is_set()]


@pytest.fixture
async def world(monkeypatch):
    monkeypatch.setattr(spares, "REST_S", 0.001)
    made = World()
    yield made
    await made.spares.close()
    assert made.spares.count == 0


async def test_who_needs_two_boxes_shortly_after_one_another_finds_the_third_ready(world, eventually):
    first, second = await world.take(), await world.take()
    await eventually(lambda: len(world.boxes) == 3)
    assert await world.take() is world.boxes[2], "it was there before it was asked for"
    assert len({first, second, world.boxes[2]}) == 3, "no box is given twice"


async def test_who_needs_a_box_now_and_then_has_none_kept(world):
    await world.take()
    world.time += SPARE_TTL_S + 1
    await world.take()
    await world.take("ten_b")
    await world.take(profile=WIDE)
    assert world.spares.count == 0


async def test_no_cross_tenant_a_spare_goes_to_its_own_tenant_and_profile_alone(world, eventually):
    await world.take()
    await world.take()
    await eventually(lambda: len(world.boxes) == 3)
    for kind in (("ten_b", PLAIN), ("ten_a", WIDE)):
        box = await world.take(*kind)
        assert (box.kind, box is world.boxes[2]) == (kind, False)
    assert await world.take() is world.boxes[2]


async def test_bounded_the_spare_needed_longest_ago_gives_way(world, eventually):
    for tenant in ("ten_a", "ten_b", "ten_c", "ten_d", "ten_e"):
        await world.take(tenant)
        await world.take(tenant)
    await eventually(lambda: len(world.open_boxes) == 10 + 4)
    assert world.spares.count == 4
    assert [box.kind[0] for box in world.boxes if box.lost.is_set()] in ([], ["ten_a"]), "or it was not even made"


async def test_bounded_one_tenant_has_few_spares(world, eventually):
    for profile in (PLAIN, WIDE, OTHER):
        await world.take(profile=profile)
        await world.take(profile=profile)
    await eventually(lambda: len(world.open_boxes) == 6 + SPARES_TENANT_MAX)
    assert world.spares.count == SPARES_TENANT_MAX


async def test_a_spare_that_nobody_comes_for_ends(world, eventually):
    await world.take()
    await world.take()
    await eventually(lambda: len(world.boxes) == 3)
    world.time += SPARE_TTL_S - 1
    await world.spares.reap()
    assert len(world.open_boxes) == 3
    world.time += 1
    await world.spares.reap()
    assert world.boxes[2].lost.is_set()
    assert world.spares.count == 0


async def test_a_spare_that_has_ended_by_itself_is_given_to_nobody(world, eventually):
    await world.take()
    await world.take()
    await eventually(lambda: len(world.boxes) == 3)
    await world.boxes[2].close()
    assert not (await world.take()).lost.is_set()
    await eventually(lambda: len(world.boxes) == 5)
    await world.boxes[4].close()
    await world.spares.reap()
    assert world.spares.count == 0


async def test_who_comes_while_a_spare_is_made_gets_it_and_who_leaves_takes_it_along(world, eventually):
    await world.take()
    await world.take()
    world.may_open.clear()
    await eventually(lambda: len(world.boxes) == 3 or world.spares.count == 1)
    coming = asyncio.create_task(world.take())
    await eventually(lambda: world.spares.count == 0)
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    world.may_open.set()
    await world.spares.close()
    assert len(world.open_boxes) == 2


async def test_a_spare_that_cannot_be_had_hides_no_error_and_breaks_nothing(world, eventually):
    await world.take()
    world.fail = True
    with pytest.raises(RetinueError):
        await world.take()
    world.fail = False
    await world.take()
    world.fail = True
    await eventually(lambda: world.spares.count == 1 and next(iter(world.spares._spares.values())).making.done())
    world.fail = False
    assert not (await world.take()).lost.is_set()


async def test_without_places_for_spares_none_is_made():
    world = World(spares_max=0)
    for _ in range(3):
        await world.take()
    assert (world.spares.count, len(world.boxes)) == (0, 3)
