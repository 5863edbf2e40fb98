"""A holder's own clock: it starts nothing under a lease that may be over."""

import asyncio

import pytest
from retinue_kit import streams
from retinue_router.domain.queues import QueueClass
from retinue_router.ring import Rings, Ticket
from retinue_router.worker.keeper import MARGIN_S, Keeper
from retinue_router.worker.leases import Renewed

LEASE_S = 3.0
TICKET = Ticket("ten_a", "log_a")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


class Ring:
    """Remembers which slots were kept; while those of the first class are kept, something may happen."""

    def __init__(self, queue: QueueClass, kept: list[Ticket]) -> None:
        self.queue = queue
        self.kept = kept
        self.meanwhile = lambda: None

    async def held(self, tickets, lease_s):
        self.kept += tickets
        self.meanwhile()


class Store:
    """Answers renewals after some time, or says that the lease is gone."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.takes_s = 0.0
        self.gone = False

    async def renew(self, leases):
        self.clock.at += self.takes_s
        return [] if self.gone else [Renewed(ticket, token, None) for ticket, token in leases]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return Store(clock)


@pytest.fixture
def keeper(clock, store):
    return Keeper(store, None, clock, LEASE_S)


async def test_a_lease_counts_from_when_it_was_asked_for_not_from_when_the_answer_came(keeper, clock):
    asked_at = clock.at
    clock.at += 1.0  # the claim took its time
    lease = keeper.add(TICKET, 1, asked_at)
    clock.at = asked_at + LEASE_S - MARGIN_S - 0.001
    assert keeper.is_valid(lease)
    clock.at = asked_at + LEASE_S - MARGIN_S
    assert not keeper.is_valid(lease)


async def test_a_renewal_counts_from_when_it_was_asked_for(keeper, clock, store):
    lease = keeper.add(TICKET, 1, clock.at)
    store.takes_s = 1.0
    asked_at = clock.at
    assert await keeper.confirm(lease)
    clock.at = asked_at + LEASE_S - MARGIN_S
    assert not keeper.is_valid(lease)


async def test_a_lease_that_is_lost_stays_lost_and_interrupts_what_goes_on_under_it(keeper, clock, store):
    begun = asyncio.Event()

    async def work():
        lease = keeper.add(TICKET, 1, clock.at)
        lease.interruptible = True
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    (lease,) = keeper._leases.values()
    store.gone = True
    assert not await keeper.confirm(lease)
    assert not keeper.is_valid(lease)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_no_stale_write_a_lease_whose_log_this_very_process_was_given_anew_is_lost_and_never_confirmed(
    keeper, clock, store
):
    """Its contact was removed and begun anew, and the first holder has not heard of it."""
    begun = asyncio.Event()
    taken = []

    async def work():
        taken.append(keeper.add(TICKET, 1, clock.at))
        taken[0].interruptible = True
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    later = keeper.add(TICKET, 2, clock.at)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken[0].lost
    assert not keeper.is_valid(taken[0])
    store.gone = True
    assert not await keeper.confirm(taken[0])
    assert keeper.is_valid(later)
    store.gone = False
    assert await keeper.confirm(later)


async def test_a_grant_that_comes_after_a_later_one_of_its_log_is_lost(keeper, clock):
    later = keeper.add(TICKET, 2, clock.at)
    assert not keeper.is_valid(keeper.add(TICKET, 1, clock.at))
    assert keeper.is_valid(later)
    assert keeper.count == 1


async def test_a_lease_that_was_given_back_is_not_confirmed(keeper, clock, store):
    lease = keeper.add(TICKET, 1, clock.at)
    keeper.remove(lease)
    store.gone = True
    assert not await keeper.confirm(lease)


async def test_a_lease_that_ended_while_slots_are_kept_is_not_kept_with_those_after_it(clock, store, eventually):
    rings, kept = Rings(streams.connect("unix:///nowhere")), []
    rings._rings = {queue: Ring(queue, kept) for queue in QueueClass}
    keeper = Keeper(store, rings, clock, LEASE_S)
    chat, task = Ticket("ten_a", "log_a"), Ticket("ten_a", "tsk_a")
    keeper.add(chat, 1, clock.at)
    lease = keeper.add(task, 1, clock.at)
    first = rings.of(next(iter(QueueClass)))
    first.meanwhile = lambda: keeper.remove(lease)
    keeping = asyncio.create_task(keeper.keep_slots_for_ever(0.001))
    await eventually(lambda: kept)
    keeping.cancel()
    assert set(kept) == {chat}
