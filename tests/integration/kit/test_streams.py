"""The append script on a real Redis: what it lets in, what it refuses, what it leaves behind."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from retinue_kit import streams
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import STREAM_TTL_S, Appended, Bus, Cursor, Entry, Kind, Opening
from retinue_kit.watch import DurablePage
from retinue_kit.watching import Subscriber

KEY = streams.log_key("ten_a", "log_a")


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with streams.connect(redis_url) as client:
        yield client


@pytest.fixture
def bus(client: Redis) -> Bus:
    return Bus(client)


def delta(token: int, n: int, text: str = "x") -> Entry:
    return Entry(Cursor(token, n), Kind.TENTATIVE, None, "run_a", "assistant.delta", text.encode())


def fact(token: int, n: int, prev: Cursor) -> Entry:
    return Entry(Cursor(token, n), Kind.DURABLE, prev, "run_a", "assistant.message", b'{"a":"\\t"}')


def mark(token: int, prev: Cursor = streams.START) -> Entry:
    return Entry(Cursor(token, 0), Kind.MARK, prev, "", "", b"")


async def cursors(bus: Bus) -> list[str]:
    return [str(entry.cursor) for entry in await bus.read(KEY, streams.START)]


async def test_only_an_opener_creates_a_stream(bus: Bus) -> None:
    assert await bus.append(KEY, [delta(1, 1)]) is Appended.GONE
    assert await cursors(bus) == []
    assert await bus.append(KEY, [mark(1)], opening=Opening.CLAIM) is Appended.OK
    assert await bus.append(KEY, [delta(1, 1)]) is Appended.OK
    assert await cursors(bus) == ["1-0", "1-1"]


async def test_committed_facts_may_create_a_stream(bus: Bus) -> None:
    assert await bus.append(KEY, [fact(3, 4, streams.START)], opening=Opening.COMMITTED) is Appended.OK
    assert await cursors(bus) == ["3-4"]


@pytest.mark.parametrize("opening", list(Opening))
async def test_a_lower_token_is_refused_and_not_heard(bus: Bus, client: Redis, opening: Opening) -> None:
    await bus.append(KEY, [mark(5)], opening=Opening.CLAIM)
    async with client.pubsub() as heard:
        await heard.subscribe(streams.channel(KEY))
        await heard.get_message(timeout=2)
        assert await bus.append(KEY, [delta(4, 9)], opening=opening) is Appended.STALE
        assert await bus.append(KEY, [delta(5, 1)]) is Appended.OK
        message = await heard.get_message(timeout=2)
    assert message is not None
    assert message["data"].startswith(b"5-1 ")
    assert await cursors(bus) == ["5-0", "5-1"]


async def test_a_repeated_batch_changes_nothing_and_is_not_heard_again(bus: Bus, client: Redis) -> None:
    batch = [mark(1), delta(1, 1), delta(1, 2)]
    await bus.append(KEY, batch, opening=Opening.CLAIM)
    async with client.pubsub() as heard:
        await heard.subscribe(streams.channel(KEY))
        await heard.get_message(timeout=2)
        assert await bus.append(KEY, batch, opening=Opening.CLAIM) is Appended.OK
        assert await bus.append(KEY, [delta(1, 2), delta(1, 3)]) is Appended.OK
        message = await heard.get_message(timeout=2)
    assert message is not None
    assert message["data"].startswith(b"1-3 ")
    assert await cursors(bus) == ["1-0", "1-1", "1-2", "1-3"]


async def test_an_opener_trims_what_is_below_the_token_to_keep(bus: Bus) -> None:
    for token in (1, 2, 3):
        await bus.append(KEY, [mark(token), delta(token, 1)], opening=Opening.CLAIM)
    await bus.append(KEY, [mark(4)], opening=Opening.CLAIM, keep_token=2)
    assert await cursors(bus) == ["2-0", "2-1", "3-0", "3-1", "4-0"]
    await bus.append(KEY, [delta(4, 1)], keep_token=4)
    assert len(await cursors(bus)) == 6, "only an opener trims"


async def test_a_stream_that_lacks_what_its_holder_has_told_is_gone_for_it(bus: Bus) -> None:
    await bus.append(KEY, [mark(5), delta(5, 1), delta(5, 2)], opening=Opening.CLAIM)
    assert await bus.append(KEY, [delta(5, 3)], told=Cursor(5, 2)) is Appended.OK
    await bus.delete(KEY)
    await bus.append(KEY, [mark(4), delta(4, 1)], opening=Opening.CLAIM)  # by one who does not know that it is over
    assert await bus.append(KEY, [delta(5, 4)], told=Cursor(5, 3)) is Appended.GONE
    again = [delta(5, 2), delta(5, 4)]
    assert await bus.append(KEY, again, opening=Opening.CLAIM, told=Cursor(5, 3)) is Appended.OK
    assert await bus.append(KEY, [delta(5, 6)], told=Cursor(5, 5)) is Appended.GONE, "its own end is missing"
    assert await cursors(bus) == ["4-0", "4-1", "5-2", "5-4"]


async def test_a_removal_spares_what_a_later_token_told_and_keeps_out_what_comes_too_late(bus: Bus) -> None:
    await bus.append(KEY, [mark(4), delta(4, 1)], opening=Opening.CLAIM)
    await bus.append(KEY, [mark(6), delta(6, 1)], opening=Opening.CLAIM)
    await bus.delete(KEY, through=5)
    assert await cursors(bus) == ["6-0", "6-1"]
    assert await bus.append(KEY, [delta(6, 2)], told=Cursor(6, 1)) is Appended.OK
    for _ in range(2):  # repeated, nothing changes
        await bus.delete(KEY, through=6)
        assert await cursors(bus) == []
    for late in (delta(5, 9), delta(6, 3)):
        await bus.append(KEY, [late], opening=Opening.CLAIM)
    assert await bus.append(KEY, [mark(7)], opening=Opening.CLAIM) is Appended.OK
    assert await cursors(bus) == ["7-0"]


async def test_a_stream_is_removed_only_if_nothing_was_told_since_it_was_looked_at(bus: Bus) -> None:
    assert await bus.top(KEY) is None
    await bus.append(KEY, [mark(4), delta(4, 1)], opening=Opening.CLAIM)
    top = await bus.top(KEY)
    assert top == Cursor(4, 1)
    await bus.append(KEY, [delta(4, 2)])
    await bus.delete(KEY, top=top)
    assert await cursors(bus) == ["4-0", "4-1", "4-2"]
    await bus.delete(KEY, top=Cursor(4, 2))
    assert await bus.top(KEY) is None


async def test_every_append_prolongs_the_streams_life(bus: Bus, client: Redis) -> None:
    await bus.append(KEY, [mark(1)], opening=Opening.CLAIM)
    await client.expire(KEY, 5)
    await bus.append(KEY, [delta(1, 1)])
    assert await client.ttl(KEY) > STREAM_TTL_S - 5


async def test_an_entry_is_read_as_it_was_written(bus: Bus) -> None:
    entries = [mark(7, Cursor(6, 2)), delta(7, 1, '{"text":"a\\tb 你"}'), fact(7, 2, Cursor(6, 2))]
    await bus.append(KEY, entries, opening=Opening.CLAIM)
    assert await bus.read(KEY, streams.START) == entries
    assert await bus.read(KEY, Cursor(7, 0)) == entries[1:]
    assert await bus.read(KEY, Cursor(7, 0), 1) == entries[1:2]
    await bus.delete(KEY)
    assert await bus.read(KEY, streams.START) == []


async def test_a_redis_that_is_away_is_told_as_a_dependency(redis_server: Any, bus: Bus) -> None:
    redis_server.stop()
    for attempt in (bus.append(KEY, [mark(1)]), bus.read(KEY, streams.START), bus.delete(KEY)):
        with pytest.raises(RetinueError) as raised:
            await attempt
        assert raised.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert raised.value.metadata == {"dependency": "redis"}


async def test_a_cancelled_command_stays_cancelled(client: Redis) -> None:
    await client.ping()
    for turn in range(200):
        command = asyncio.create_task(client.xrange(KEY))
        for _ in range(turn % 12):
            await asyncio.sleep(0)
        before = command.done()
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
        assert before or command.cancelled()


async def test_more_commands_than_connections_wait_their_turn(redis_url: str) -> None:
    async with streams.connect(redis_url, max_connections=2) as client:
        assert await asyncio.gather(*(client.ping() for _ in range(200))) == 200 * [True]


async def test_a_redis_that_hangs_is_given_up(bus: Bus, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CALL_TIMEOUT_S", 0.1)
    await client.client_pause(400)
    with pytest.raises(RetinueError) as raised:
        await bus.read(KEY, streams.START)
    assert raised.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_process_hears_the_streams_that_it_watches_and_no_others(
    bus: Bus, client: Redis, redis_url: str
) -> None:
    async def nothing(after: Cursor) -> DurablePage:
        return (), False

    async with streams.connect(redis_url, blocking=True) as blocking, Subscriber(blocking, bus) as subscriber:
        await subscriber.open(KEY, streams.START, nothing, known=streams.START)
        assert await client.pubsub_channels() == [streams.channel(KEY).encode()]
        assert await client.pubsub_numpat() == 0
