"""The fair ring decides who is looked at next; these tests assert the order of dispatch, never times."""

import asyncio

import pytest
from retinue_kit import streams
from retinue_router.ring import Ring, Ticket


@pytest.fixture
async def client(redis_url):
    redis = streams.connect(redis_url)
    yield redis
    await redis.aclose()


@pytest.fixture
async def ring(client):
    """A ring that its worker knows; before that, nothing is handed over."""
    ring = Ring(client)
    assert await ring.pop() is None
    return ring


async def pops(ring, count, *, done=True):
    """Pop so many tickets; answers their tenants."""
    tenants = []
    for _ in range(count):
        popped = await ring.pop(10)
        tenants.append(popped.ticket.tenant_id if popped else None)
        if popped and done:
            await ring.done(popped.ticket)
    return tenants


async def test_fair_share_a_flood_of_one_tenant_does_not_delay_another(ring):
    for i in range(100):
        await ring.push("flood", f"log_{i}")
    await pops(ring, 3)
    await ring.push("other", "log_x")
    assert "other" in await pops(ring, 2)


@pytest.mark.parametrize(("weight", "share"), [(1.0, 50), (4.0, 80)])
async def test_fair_share_weights_are_met(ring, weight, share):
    await ring.tell_limits("a", 64, weight)
    for i in range(200):
        await ring.push("a", f"log_{i}")
        await ring.push("b", f"log_{i}")
    tenants = await pops(ring, 100)
    assert abs(tenants.count("a") - share) <= 5


async def test_a_log_is_in_the_ring_once(ring):
    await ring.push("z", "log_0")
    await ring.push("a", "log_1")
    await ring.push("a", "log_1")
    assert await pops(ring, 3) == ["z", "a", None]
    assert not await ring.waiting()


async def test_bounded_a_tenant_at_its_limit_waits_until_a_slot_is_given_back(ring):
    await ring.tell_limits("a", 2, 1.0)
    for i in range(3):
        await ring.push("a", f"log_{i}")
    held = [(await ring.pop(10)).ticket, (await ring.pop(10)).ticket]
    assert await ring.pop(10) is None
    assert await ring.waiting()
    await ring.done(held[0])
    assert (await ring.pop(10)).ticket == Ticket("a", "log_2")


async def test_a_slot_that_nobody_keeps_expires(ring, client):
    await ring.tell_limits("a", 1, 1.0)
    await ring.push("a", "log_1")
    await ring.push("a", "log_2")
    assert (await ring.pop()).ticket == Ticket("a", "log_1")
    assert await ring.pop() is None
    await client.zadd("{r:chat}:run:a", {"log_1": 0})  # its lease is long over
    assert (await ring.pop()).ticket == Ticket("a", "log_2")
    await ring.push("a", "log_3")
    await ring.held([Ticket("a", "log_2")], 10)
    assert await ring.pop() is None


async def test_an_empty_ring_keeps_no_tickets_that_would_wake_workers_for_nothing(ring, client):
    for i in range(5):
        await ring.push("a", f"log_{i}")
    await pops(ring, 6)
    assert await client.llen("{r:chat}:bell") == 0


async def test_while_nothing_waits_a_log_is_handed_over_with_the_bell(ring, client):
    await ring.push("a", "log_1")
    assert not await client.exists("{r:chat}:ring")
    assert await ring.wait_for_bell(client, 1) == Ticket("a", "log_1")
    await ring.push("a", "log_2")
    await ring.push("b", "log_3")
    assert await ring.wait_for_bell(client, 1) is None  # the newest ticket names nothing
    assert (await ring.pop()).ticket == Ticket("a", "log_2"), "what was handed over comes first"
    assert (await ring.pop()).ticket == Ticket("b", "log_3")


async def test_a_tenant_at_its_limit_is_not_handed_a_slot(ring, client):
    await ring.tell_limits("a", 1, 1.0)
    await ring.push("a", "log_1")
    assert await ring.wait_for_bell(client, 1) == Ticket("a", "log_1")
    await ring.push("a", "log_2")
    assert await ring.waiting()
    assert await ring.pop() is None
    await ring.done(Ticket("a", "log_1"))
    assert (await ring.pop()).ticket == Ticket("a", "log_2")


async def test_a_queue_that_redis_dropped_does_not_stop_the_ring(ring, client):
    for tenant in ("a", "b"):
        await ring.push(tenant, "log_1")
        await ring.push(tenant, "log_2")
    await client.delete("{r:chat}:q:a", "{r:chat}:in")
    assert [(await ring.pop()).ticket for _ in range(3)] == [
        Ticket("a", "log_1"),  # it was handed over
        Ticket("b", "log_1"),
        Ticket("b", "log_2"),
    ]
    assert await ring.pop() is None


async def test_a_log_that_is_worked_on_is_not_handed_over_and_its_ticket_takes_no_slot(ring, client):
    await ring.push("a", "log_1")
    assert (await ring.pop()).made
    await ring.push("a", "log_1")
    assert await ring.wait_for_bell(client, 1) is None, "whoever is handed a log takes its slot with it"
    popped = await ring.pop()
    assert popped.ticket == Ticket("a", "log_1")
    assert not popped.made


async def test_a_slot_that_expired_before_its_log_came_again_is_taken_anew(ring, client):
    await ring.push("a", "log_1")
    assert (await ring.pop()).made
    await ring.push("a", "log_1")
    await client.zadd("{r:chat}:run:a", {"log_1": 0})
    assert (await ring.pop()).made


async def test_a_slot_that_is_given_back_while_slots_are_kept_is_free(ring, client):
    """Both are under way at once: what is kept was looked up before the run ended, and arrives late."""
    await ring.push("a", "log_1")
    ticket = (await ring.pop()).ticket
    script, gate = ring._script, asyncio.Event()

    async def late(keys, args):
        if args[0] == "held":
            await gate.wait()
        return await script(keys=keys, args=args)

    ring._script = late
    async with asyncio.TaskGroup() as group:
        keeping = group.create_task(ring.held([ticket], 10))
        group.create_task(ring.done(ticket))
        await client.ping()  # time enough for what does not wait
        assert not keeping.done()
        gate.set()
    assert not await client.exists("{r:chat}:run:a")
