"""What a holder may put on the bus: after the stream was emptied, outlived its database, or went to another."""

import asyncio

import pytest
from retinue_kit import streams
from retinue_kit.streams import Bus, Cursor, Entry, Kind, Opening
from retinue_router.ring import Ticket
from retinue_router.worker.leases import Held, RunInput
from retinue_router.worker.remains import Remains
from retinue_router.worker.teller import Teller

TICKET = Ticket("ten_a", "log_a")
KEY = streams.log_key(*TICKET)


def held(token):
    return Held(
        token=token, run_id="run_a", attempt=1, kind="chat", contact="ada", session_id="ses_a", input=RunInput(),
        checkpoint=b"", traceparent="", queued_s=0.0, runtime="", runtime_age_s=None, approvals=[], history=[],
        events=[], prev=streams.START, keep_token=0, ring=False,
    )  # fmt: skip


@pytest.fixture
async def bus(redis_url):
    async with streams.connect(redis_url) as client:
        yield Bus(client)


@pytest.fixture
def teller(bus):
    """Make the teller of a holder whose lease is true, or is not."""

    def make(token, *, true):
        async def confirm():
            return true

        return Teller(bus, TICKET, held(token), confirm, Remains(bus))

    return make


async def cursors(bus):
    return [str(entry.cursor) for entry in await bus.read(KEY, streams.START)]


async def say(teller, *texts):
    for text in texts:
        teller.tell("assistant.delta", {"text": text})
        await teller.settle()


async def test_no_stale_write_a_holder_whose_lease_is_lost_does_not_revive_an_emptied_stream(bus, teller):
    zombie = teller(1, true=False)
    await say(zombie, "a")
    await bus.delete(KEY)
    await say(zombie, "b", "c")
    assert await cursors(bus) == []


async def test_a_true_holder_opens_an_emptied_stream_again_with_a_mark_that_names_the_last_fact(bus, teller):
    holder = teller(1, true=True)
    await say(holder, "a")
    await bus.delete(KEY)
    await say(holder, "b")
    mark, delta = await bus.read(KEY, streams.START)
    assert (mark.kind, mark.prev, str(delta.cursor)) == (Kind.MARK, streams.START, "1-2")


async def test_no_stale_write_a_lost_holder_is_refused_by_the_stream_of_its_successor(bus, teller):
    zombie, successor = teller(1, true=False), teller(2, true=True)
    await say(zombie, "a")
    await say(successor, "b")
    before = await cursors(bus)
    await say(zombie, "c", "d")
    assert await cursors(bus) == before == ["1-0", "1-1", "2-0", "2-1"]


async def test_no_stale_write_a_successor_that_speaks_while_a_lease_is_confirmed_keeps_its_stream(bus):
    """The lease goes to another right after Postgres has said that it holds."""
    successor = Teller(bus, TICKET, held(8), None, Remains(bus))

    async def confirm():
        await say(successor, "mine")
        return True

    mark = Entry(Cursor(7, 0), Kind.MARK, streams.START, "", "", b"")
    await bus.append(KEY, [mark], opening=Opening.CLAIM)
    await say(Teller(bus, TICKET, held(6), confirm, Remains(bus)), "a")
    assert await cursors(bus) == ["7-0", "8-0", "8-1"]


async def test_what_is_promised_is_told_again_where_a_former_holder_has_made_the_lost_stream_anew(bus, teller):
    holder = teller(2, true=True)
    holder.tell("run.started", {"attempt": 1}, recorded=True)
    await holder.settle()
    await bus.delete(KEY)
    await say(teller(1, true=False), "late")
    await say(holder, "b")
    assert await cursors(bus) == ["1-0", "1-1", "2-0", "2-1", "2-2"]


async def test_a_holder_tells_on_after_its_telling_was_cut_off_before_it_began(bus, teller):
    holder = teller(1, true=True)
    holder.tell("assistant.delta", {"text": "a"})
    holder._flushing.cancel()
    await asyncio.gather(holder._flushing, return_exceptions=True)
    await say(holder, "b")
    assert await cursors(bus) == ["1-0", "1-1"], "both as one"


async def test_a_stream_that_outlived_the_database_that_it_told_of_gives_way_to_a_true_holder(bus, teller):
    """After the loss of what was committed last, tokens are given out a second time, below those on the bus."""
    mark = Entry(Cursor(7, 0), Kind.MARK, streams.START, "", "", b"")
    await bus.append(KEY, [mark, Entry(Cursor(7, 1), Kind.TENTATIVE, None, "run_x", "assistant.delta", b"{}")],
                     opening=Opening.CLAIM)  # fmt: skip
    holder = teller(6, true=True)
    await say(holder, "a", "b")
    assert [c for c in await cursors(bus) if c.startswith("7-")] == []
    assert (await cursors(bus))[-2:] == ["6-1", "6-2"]


async def test_what_was_told_and_is_not_recorded_yet_is_told_again_in_a_stream_that_was_lost(bus, teller):
    """A watcher that joins after the loss has it from nowhere else: the log does not hold it, and what follows is
    numbered behind it."""
    holder = teller(1, true=True)
    holder.tell("run.started", {"attempt": 1}, recorded=True)
    await holder.settle()
    await say(holder, "a")
    await bus.delete(KEY)
    await say(holder, "b")
    again = await bus.read(KEY, streams.START)
    assert [(str(e.cursor), e.type) for e in again[1:]] == [("1-1", "run.started"), ("1-3", "assistant.delta")]
    await holder.publish([])
    await bus.delete(KEY)
    await say(holder, "c")
    assert await cursors(bus) == ["1-3", "1-4"]  # recorded meanwhile: the log shows it
