"""cursor_monotone: whatever is lost on the way, a watcher sees each durable event once, in order, and misses none."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from retinue_kit import streams, watching
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import START, Appended, Bus, Cursor, Entry, Kind, Opening
from retinue_kit.watch import READ_COUNT_FIRST, Watch
from retinue_kit.watching import Subscriber

KEY = streams.log_key("ten_a", "log_a")
PAGE = 7
"""Small, so that replays take several pages."""


class Story:
    """What a log's holders do: facts are committed to a list, then told on the bus, if at all."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.facts: list[Entry] = []
        self.asked = 0
        self.token = 0
        self.n = 0

    @property
    def last_fact(self) -> Cursor:
        return self.facts[-1].cursor if self.facts else START

    async def durable(self, after: Cursor) -> tuple[Sequence[Entry], bool]:
        """Read the log as the router does: without the bus' own pointers."""
        self.asked += 1
        found = [Entry(e.cursor, e.kind, None, e.run_id, e.type, e.json) for e in self.facts if e.cursor > after]
        return found[:PAGE], len(found) > PAGE

    async def cursors(self, keys: Sequence[str]) -> dict[str, Cursor]:
        return dict.fromkeys(keys, self.last_fact)

    async def tell(self, *entries: Entry, opening: Opening = Opening.NO) -> None:
        """Append as a worker does: it opens a stream that is gone again, once Postgres has confirmed its lease."""
        if await self.bus.append(KEY, entries, opening=opening) is Appended.GONE:
            await self.bus.append(KEY, entries, opening=Opening.CLAIM)

    async def claim(self) -> None:
        self.token += 1
        self.n = 0
        await self.tell(Entry(Cursor(self.token, 0), Kind.MARK, self.last_fact, "", "", b""), opening=Opening.CLAIM)

    def delta(self, text: str = "x") -> Entry:
        self.n += 1
        return Entry(Cursor(self.token, self.n), Kind.TENTATIVE, None, "run_a", "assistant.delta", text.encode())

    def commit(self) -> Entry:
        self.n += 1
        fact = Entry(Cursor(self.token, self.n), Kind.DURABLE, self.last_fact, "run_a", "tool.started", b"{}")
        self.facts.append(fact)
        return fact


@pytest_asyncio.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with streams.connect(redis_url) as client:
        yield client


@pytest.fixture
def story(client: Redis) -> Story:
    return Story(Bus(client))


@pytest_asyncio.fixture
async def subscriber(redis_url: str, story: Story) -> AsyncIterator[Subscriber]:
    """Without the tick: a test that wants one makes its own."""
    async with streams.connect(redis_url, blocking=True) as blocking, Subscriber(blocking, story.bus) as subscriber:
        yield subscriber


async def collect(watch: Watch, until: Cursor) -> list[Entry]:
    """Watch up to a cursor."""
    seen: list[Entry] = []
    async with asyncio.timeout(20):
        while not seen or seen[-1].cursor < until:
            seen += await watch.next()
    return seen


def names(entries: Sequence[Entry]) -> list[str]:
    return [str(entry.cursor) for entry in entries]


async def cut_subscriptions(client: Redis) -> None:
    await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


async def test_live_entries_come_in_order_and_marks_do_not(subscriber: Subscriber, story: Story) -> None:
    watch = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta(), story.delta())
    await story.tell(story.commit())
    assert names(await collect(watch, Cursor(1, 3))) == ["1-1", "1-2", "1-3"]
    assert story.asked == 0, "a watcher who knows where the log ends need not ask"


async def test_a_watcher_begins_after_its_cursor(subscriber: Subscriber, story: Story) -> None:
    await story.claim()
    await story.tell(story.commit(), story.delta(), story.delta())
    watch = await subscriber.open(KEY, Cursor(1, 2), story.durable, known=Cursor(1, 1))
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 4))) == ["1-3", "1-4"]
    assert story.asked == 0


async def test_what_was_not_heard_is_read_from_the_stream(subscriber: Subscriber, story: Story, client: Redis) -> None:
    watch = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 1))) == ["1-1"]
    unheard = story.delta()
    await client.xadd(KEY, {"e": unheard.encode()}, str(unheard.cursor))
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 3))) == ["1-2", "1-3"]


async def test_what_the_bus_has_dropped_comes_from_the_log(subscriber: Subscriber, story: Story, client: Redis) -> None:
    for _ in range(10):
        await story.claim()
        await story.tell(story.delta(), story.commit(), story.delta(), story.commit())
    await client.xtrim(KEY, minid="9-0", approximate=False)
    watch = await subscriber.open(KEY, START, story.durable)
    seen = names(await collect(watch, Cursor(10, 4)))
    assert seen == [f"{t}-{n}" for t in range(1, 9) for n in (2, 4)] + [
        f"{t}-{n}" for t in (9, 10) for n in range(1, 5)
    ]


async def test_an_emptied_bus_hides_no_fact_from_a_new_watcher(
    subscriber: Subscriber, story: Story, client: Redis
) -> None:
    await story.claim()
    await story.tell(story.commit(), story.delta(), story.commit())
    await client.flushall()
    await story.tell(story.delta())
    watch = await subscriber.open(KEY, START, story.durable)
    assert names(await collect(watch, Cursor(1, 4))) == ["1-1", "1-3", "1-4"]


async def test_an_emptied_bus_hides_no_fact_from_a_live_watcher(
    subscriber: Subscriber, story: Story, client: Redis
) -> None:
    watch = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 1))) == ["1-1"]
    story.commit()  # and dies with the bus before it is told
    await client.flushall()
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 3))) == ["1-2", "1-3"]


async def test_a_fact_that_was_refused_is_found_through_its_successors_pointer(
    subscriber: Subscriber, story: Story
) -> None:
    watch = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta())
    fact = story.commit()
    await story.claim()  # the next holder speaks first
    assert await story.bus.append(KEY, [fact], opening=Opening.COMMITTED) is Appended.STALE
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(2, 1))) == ["1-1", "1-2", "2-1"]


async def test_a_fact_that_was_never_told_is_found_on_a_later_page_of_a_long_stream(
    subscriber: Subscriber, story: Story
) -> None:
    """The log is read once and ends behind the bus' first page; its holder died between commit and telling."""
    await story.claim()
    for _ in range(READ_COUNT_FIRST + 20):
        await story.tell(story.delta())
    untold = story.commit()
    await story.claim()
    await story.tell(story.delta())
    await story.tell(story.commit())
    seen = await collect(await subscriber.open(KEY, START, story.durable), story.last_fact)
    assert untold.cursor in [entry.cursor for entry in seen]
    assert names(seen) == names(sorted(seen, key=lambda entry: entry.cursor))


async def test_a_commit_that_was_never_told_is_found_by_the_tick(
    redis_url: str, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "TICK_S", 0.05)
    async with (
        streams.connect(redis_url, blocking=True) as blocking,
        Subscriber(blocking, story.bus, story.cursors) as subscriber,
    ):
        watch = await subscriber.open(KEY, START, story.durable, known=START)
        await story.claim()
        await story.tell(story.delta())
        story.commit()
        assert names(await collect(watch, Cursor(1, 2))) == ["1-1", "1-2"]


async def test_a_cut_subscription_is_made_again_and_misses_nothing(
    subscriber: Subscriber, story: Story, client: Redis
) -> None:
    watch = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 1))) == ["1-1"]
    await cut_subscriptions(client)
    await story.tell(story.delta(), story.commit())  # nobody hears it, nothing follows
    assert names(await collect(watch, Cursor(1, 3))) == ["1-2", "1-3"]


async def test_a_watcher_reads_the_log_while_redis_is_away(
    subscriber: Subscriber, story: Story, redis_server: Any
) -> None:
    await story.claim()
    await story.tell(story.delta(), story.commit())
    redis_server.stop()
    watch = await subscriber.open(KEY, START, story.durable)
    assert names(await collect(watch, Cursor(1, 2))) == ["1-2"]
    story.commit()
    redis_server.start()
    await story.tell(story.delta())
    assert names(await collect(watch, Cursor(1, 4))) == ["1-3", "1-4"]


async def test_a_slow_consumer_is_cut_off_and_resumes_by_its_cursor(subscriber: Subscriber, story: Story) -> None:
    slow = await subscriber.open(KEY, START, story.durable, known=START)
    fast = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta())
    await collect(slow, Cursor(1, 1))
    last = Cursor(1, 1)
    for _ in range(20):
        entry = story.delta("x" * 100_000)
        await story.tell(entry)
        last = entry.cursor
        await collect(fast, last)
    with pytest.raises(RetinueError) as raised:
        await slow.next()
    assert raised.value.reason is Reason.SLOW_CONSUMER
    subscriber.close(slow)
    resumed = await subscriber.open(KEY, slow.last, story.durable, known=START)
    assert len(await collect(resumed, last)) == 20


async def test_a_watcher_that_comes_back_misses_nothing(subscriber: Subscriber, story: Story, client: Redis) -> None:
    first = await subscriber.open(KEY, START, story.durable, known=START)
    await story.claim()
    await story.tell(story.delta())
    assert names(await collect(first, Cursor(1, 1))) == ["1-1"]
    subscriber.close(first)
    await story.tell(story.delta(), story.commit())  # heard, but by nobody
    await cut_subscriptions(client)
    second = await subscriber.open(KEY, first.last, story.durable, known=START)
    await story.tell(story.delta())
    assert names(await collect(second, Cursor(1, 4))) == ["1-2", "1-3", "1-4"]


async def test_a_poke_answers_nothing_and_a_failure_ends(subscriber: Subscriber, story: Story) -> None:
    watch = await subscriber.open(KEY, START, story.durable, known=START)
    watch.poke()
    assert await watch.next() == []
    asyncio.get_running_loop().call_soon(watch.fail, RetinueError(Reason.DRAINING, "bye"))
    with pytest.raises(RetinueError, match="bye"):
        await watch.next()


async def test_a_log_that_does_not_answer_ends_the_watch_and_a_second_try_goes_on(
    subscriber: Subscriber, story: Story
) -> None:
    await story.claim()
    await story.tell(story.commit())
    refusals = iter([RetinueError.unavailable("router")])

    async def durable(after: Cursor) -> tuple[Sequence[Entry], bool]:
        for refusal in refusals:
            raise refusal
        return await story.durable(after)

    watch = await subscriber.open(KEY, START, durable)
    with pytest.raises(RetinueError) as raised:
        await watch.next()
    assert raised.value.metadata == {"dependency": "router"}
    assert names(await watch.next()) == ["1-1"]


@pytest.mark.parametrize("bound", ["time", "number"])
async def test_nothing_stays_behind_when_the_last_watcher_leaves(
    subscriber: Subscriber, story: Story, client: Redis, eventually: Any, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    if bound == "time":
        monkeypatch.setattr(watching, "LINGER_S", 0.1)
    else:
        monkeypatch.setattr(watching, "LINGER_KEYS_MAX", 0)

    async def subscriptions() -> int:
        (_, count), *_ = await client.pubsub_numsub(streams.channel(KEY))
        return int(count)

    first = await subscriber.open(KEY, START, story.durable)
    second = await subscriber.open(KEY, START, story.durable)
    subscriber.close(first)
    assert await subscriptions() == 1
    subscriber.close(second)
    third = await subscriber.open(KEY, START, story.durable)
    assert await subscriptions() == 1
    subscriber.close(third)

    async def none() -> bool:
        return await subscriptions() == 0

    await eventually(none)


async def watch_with_cuts(subscriber: Subscriber, story: Story, chance: random.Random, mine: list[Entry]) -> None:
    """Watch, leave after a while, resume by the last cursor, for ever; all entries come to one list."""
    last = START
    while True:
        known = story.last_fact if chance.random() < 0.5 else None
        watch = await subscriber.open(KEY, last, story.durable, known=known)
        try:
            for _ in range(chance.randint(1, 9)):
                try:
                    async with asyncio.timeout(chance.choice([0.001, 5])):
                        mine += await watch.next()
                except TimeoutError:
                    continue
        finally:
            last = watch.last
            subscriber.close(watch)


async def live(story: Story, chance: random.Random, client: Redis) -> Cursor:
    """Claims, deltas, facts told, told late or never, cut connections, an emptied Redis; answers the last cursor."""
    late: list[Entry] = []
    steps = ["claim", "cut", "empty", "forget", "delay", "catch up", "tell"] + 5 * ["commit"] + 10 * ["say"]
    await story.claim()
    for _ in range(200):
        match chance.choice(steps):
            case "claim":
                await story.claim()
            case "cut":
                await cut_subscriptions(client)
            case "empty":
                await client.flushall()
            case "forget":
                story.commit()
            case "delay":
                late.append(story.commit())
            case "catch up" if late:
                await story.bus.append(KEY, [late.pop(0)], opening=Opening.COMMITTED)
            case "commit":
                await story.tell(story.commit())
            case _:
                await story.tell(*(story.delta() for _ in range(chance.randint(1, 4))))
        for _ in range(chance.choice([0, 1, 20, 200])):
            await client.ping()  # the others get their turn meanwhile
    await story.claim()
    end = story.commit()
    await story.tell(end)
    return end.cursor


@pytest.mark.parametrize("seed", range(8))
async def test_random_losses_and_cuts_lose_and_repeat_no_fact(
    redis_url: str, story: Story, client: Redis, monkeypatch: pytest.MonkeyPatch, eventually: Any, seed: int
) -> None:
    monkeypatch.setattr(watching, "TICK_S", 0.05)
    chance = random.Random(seed)
    seen: list[list[Entry]] = [[] for _ in range(4)]
    async with (
        streams.connect(redis_url, blocking=True) as blocking,
        Subscriber(blocking, story.bus, story.cursors) as subscriber,
    ):
        chances = [random.Random(chance.random()) for _ in seen]
        works = [watch_with_cuts(subscriber, story, c, mine) for c, mine in zip(chances, seen, strict=True)]
        watchers = [asyncio.create_task(work) for work in works]
        try:
            end = await live(story, chance, client)
            await eventually(lambda: all(mine and mine[-1].cursor >= end for mine in seen), 20)
            assert not any(task.done() for task in watchers)
        finally:
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
    for mine in seen:
        assert all(a.cursor < b.cursor for a, b in pairwise(mine))
        assert [e.cursor for e in mine if e.kind is Kind.DURABLE] == [e.cursor for e in story.facts]
