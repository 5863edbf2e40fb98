"""fair_share, on the real ring: the order of dispatch over long runs, and what it holds whatever is asked of it."""

import asyncio
from collections import Counter, deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from retinue_kit import streams
from retinue_router.domain.queues import QueueClass
from retinue_router.ring import Ring, Rings, Ticket


@pytest.fixture
async def client(redis_url):
    redis = streams.connect(redis_url)
    yield redis
    await redis.aclose()


class Floods:
    """Tenants that always have more to do, and workers that take a log whenever one of their slots is free."""

    def __init__(self, ring, slots):
        self.ring = ring
        self.slots = slots
        self.running = deque()
        self.pushed = Counter()

    async def push(self, tenant, count):
        for _ in range(count):
            self.pushed[tenant] += 1
            await self.ring.push(tenant, f"log_{self.pushed[tenant]}")

    async def dispatch(self, count, tenants=()):
        """So many dispatches in order: fills the slots, then each end of the oldest run lets another begin."""
        order = []
        while len(order) < count:
            popped = await self.ring.pop(1000) if len(self.running) < self.slots else None
            if popped is None:
                await self.ring.done(self.running.popleft())
                continue
            order.append(popped.ticket.tenant_id)
            self.running.append(popped.ticket)
            if popped.ticket.tenant_id in tenants:
                await self.push(popped.ticket.tenant_id, 1)
        return order


@pytest.mark.parametrize(
    ("weights", "limits", "slots", "shares"),
    [
        ((1, 1), (64, 64), 16, (0.5, 0.5)),
        ((4, 1), (64, 64), 16, (0.8, 0.2)),
        ((4, 1), (64, 64), 1, (0.8, 0.2)),
        ((4, 1), (8, 64), 16, (0.5, 0.5)),
        ((4, 1), (64, 2), 16, (0.875, 0.125)),
        ((1.5, 1), (64, 64), 10, (0.6, 0.4)),
        ((0.1, 1), (64, 64), 16, (1 / 11, 10 / 11)),
        ((1, 1, 2), (64, 64, 64), 8, (0.25, 0.25, 0.5)),
        ((1, 1, 2), (64, 1, 64), 8, (7 / 24, 1 / 8, 14 / 24)),
        ((0.001, 1), (64, 64), 16, (1 / 11, 10 / 11)),
    ],
)
async def test_fair_share_weights_are_met_within_5_percent_in_the_long_run(client, weights, limits, slots, shares):
    ring = Ring(client)
    floods = Floods(ring, slots)
    names = [f"ten_{n}" for n in range(len(weights))]
    for name, weight, limit in zip(names, weights, limits, strict=True):
        await ring.tell_limits(name, limit, weight)
        await floods.push(name, 30)
    order = await floods.dispatch(600, names)
    found = Counter(order[100:])
    for name, share in zip(names, shares, strict=True):
        assert found[name] / 500 == pytest.approx(share, rel=0.05, abs=0.005), found


@pytest.mark.parametrize("contacts", [2000, 1])
async def test_fair_share_the_first_run_of_another_begins_at_once_beside_a_flood(client, contacts):
    ring = Ring(client)
    floods = Floods(ring, 128)
    await ring.push_all([Ticket("flood", f"log_{n}") for n in range(contacts)])
    await floods.dispatch(min(contacts, 64))
    assert await ring.pop() is None, "the flood is at its limit, which leaves slots"
    for n in range(64):
        await ring.push("other", f"log_{n}")
        assert (await ring.pop()).ticket == Ticket("other", f"log_{n}")


async def test_fair_share_beside_floods_that_fill_every_slot_the_next_free_one_but_their_turns_is_another_s(client):
    ring = Ring(client)
    floods = Floods(ring, 128)
    for name in ("a", "b", "c"):
        await ring.tell_limits(name, 64, 2)
        await ring.push_all([Ticket(name, f"log_{n}") for n in range(200)])
    await floods.dispatch(150)
    await ring.push("other", "log_1")
    order = await floods.dispatch(7)
    assert "other" in order, "each of the three had its turn of two at most"


async def test_no_tenant_starves_among_many_of_any_weight(client):
    ring = Ring(client)
    floods = Floods(ring, 8)
    names = [f"ten_{n}" for n in range(40)]
    for n, name in enumerate(names):
        await ring.tell_limits(name, 4, (0.1, 1, 5, 100)[n % 4])
        await floods.push(name, 5)
    seen = Counter(await floods.dispatch(5 * len(names)))
    assert set(seen) == set(names)


async def test_limits_weights_and_slots_are_back_with_the_first_look_at_a_ring_that_was_emptied(client):
    one, two = Ring(client), Ring(client)
    await one.tell_limits("a", 2, 4.0)
    for n in range(3):
        await one.push("a", f"log_{n}")
    held = [(await one.pop(1000)).ticket, (await one.pop(1000)).ticket]
    await client.flushall()
    await two.push("a", "log_3")
    assert not await client.keys("{r:chat}:bell*|*"), "nothing is handed over past limits that are not known"
    assert await one.pop() is None, "two are running still"
    assert await client.hget("{r:chat}:w", "a") == b"4.0"
    await one.done(held[0])
    assert (await two.pop()).ticket == Ticket("a", "log_3")
    assert await two.pop() is None


async def test_a_worker_that_hears_of_an_emptied_ring_second_tells_what_only_it_knows(client):
    one, two = Ring(client), Ring(client)
    await one.pop()
    await two.tell_limits("b", 1, 1.0)
    await client.flushall()
    await one.pop()
    await two.pop()
    assert await client.hget("{r:chat}:lim", "b") == b"1"


async def test_tasks_and_chats_wait_in_rings_of_their_own(client):
    rings = Rings(client)
    await rings.push("a", "tsk_1")
    await rings.push("a", "log_1")
    await rings.push_all([Ticket("a", "tsk_2"), Ticket("a", "log_2")])
    for queue, prefix in ((QueueClass.CHAT, "log"), (QueueClass.TASK, "tsk")):
        ring = rings.of(queue)
        assert [(await ring.pop()).ticket.log_id for _ in range(2)] == [f"{prefix}_1", f"{prefix}_2"]
        assert await ring.pop() is None


async def test_a_tenant_may_have_one_task_for_four_chats_at_once(client):
    rings = Rings(client)
    for ticket in (Ticket("a", "tsk_0"), Ticket("a", "log_0")):
        await rings.tell_limits(ticket, 8, 1.0)
    tickets = [Ticket("a", f"{kind}_{n}") for kind in ("tsk", "log") for n in range(10)]
    await rings.push_all(tickets)
    assert [bool(await rings.of(QueueClass.TASK).pop()) for _ in range(3)] == [True, True, False]
    assert [bool(await rings.of(QueueClass.CHAT).pop()) for _ in range(9)] == [True] * 8 + [False]


LIMITS = {"a": 1, "b": 2, "c": 64}
TICKETS = st.tuples(st.sampled_from(sorted(LIMITS)), st.integers(0, 5))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), TICKETS),
        st.tuples(st.just("sweep"), st.lists(TICKETS, max_size=8)),
        st.tuples(st.sampled_from(["pop", "bell", "done", "empty"]), st.none()),
    ),
    max_size=40,
)


class Model:
    """What the ring must do, in a few lines: the waiting logs, each once, and those that run."""

    def __init__(self, client):
        self.client = client
        self.ring = Ring(client)
        self.waiting: set[Ticket] = set()
        self.running: list[Ticket] = []

    def take(self, ticket):
        assert ticket in self.waiting, "what nobody pushed, or was taken before"
        self.waiting.remove(ticket)
        self.running.append(ticket)
        assert len({t for t in self.running if t.tenant_id == ticket.tenant_id}) <= LIMITS[ticket.tenant_id]

    async def step(self, name, what):
        match name:
            case "push":
                self.waiting.add(Ticket(what[0], f"log_{what[1]}"))
                await self.ring.push(what[0], f"log_{what[1]}")
            case "sweep":
                tickets = [Ticket(tenant, f"log_{n}") for tenant, n in what]
                self.waiting.update(tickets)
                await self.ring.push_all(tickets)
            case "pop":
                popped = await self.ring.pop(1000)
                if popped is not None:
                    self.take(popped.ticket)
                    return
                free = {t for t, limit in LIMITS.items() if len({r for r in self.running if r.tenant_id == t}) < limit}
                assert not {ticket.tenant_id for ticket in self.waiting} & free, "work waits and a slot is free for it"
            case "bell":
                if await self.client.llen("{r:chat}:bell") and (
                    ticket := await self.ring.wait_for_bell(self.client, 1)
                ):
                    self.take(ticket)
            case "done" if self.running:
                ticket = self.running.pop(0)
                if ticket not in self.running:
                    await self.ring.done(ticket)
            case "empty":
                await self.client.flushall()
                await self.ring.push_all(sorted(self.waiting))  # as the sweeper does


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
async def test_each_log_is_taken_once_within_limits_and_none_waits_beside_a_free_slot(client, steps):
    await client.flushall()
    model = Model(client)
    for tenant, limit in LIMITS.items():
        await model.ring.tell_limits(tenant, limit, 1.0)
    for name, what in steps:
        await model.step(name, what)
    async with asyncio.timeout(10):
        while model.waiting:
            await model.step("done", None)
            await model.step("pop", None)
    assert await model.ring.pop() is None
    assert not await client.keys("{r:chat}:q:*")
    assert not await client.scard("{r:chat}:in")
