"""Holders and watchers over a model of bus and log in which every wait may fail, take long, or lose what was there."""

import asyncio
import random
from datetime import UTC, datetime

import pytest
from retinue_kit import watch
from retinue_kit.errors import RetinueError
from retinue_kit.streams import START, Appended, Cursor, Entry, Kind, Opening
from retinue_kit.watch import Watch
from retinue_router.domain.events import render
from retinue_router.ring import Ticket
from retinue_router.worker.leases import Held, RunInput
from retinue_router.worker.remains import Remains
from retinue_router.worker.teller import Teller

WORLDS = 100
ATTEMPTS = 5
WATCHERS = 3
STEPS_MAX = 50_000
"""Turns of the loop after which a watcher has come to its end, or hangs."""


FRESH_STEPS = 3_000
"""Turns for which a watcher holds back what may follow something missing: longer than any holder here is silent."""


class World:
    """What one seed makes happen."""

    def __init__(self, seed, *, loses):
        self.rng = random.Random(seed)
        self.loses = loses
        self.calm = False
        self.steps = 0
        self._first_asked = {}

    def is_fresh(self, entry):
        """Whether an entry was told a moment ago, by turns of the loop: machines are slow at times."""
        return self.steps - self._first_asked.setdefault(entry.cursor, self.steps) < FRESH_STEPS

    async def pass_time(self):
        for _ in range(self.rng.choice([0, 0, 1, 2, 5, 20])):
            await asyncio.sleep(0)

    async def trouble(self, percent):
        await self.pass_time()
        if not self.calm and self.rng.randrange(100) < percent:
            raise RetinueError.unavailable("model")


class ModelBus:
    """The stream as its scripts keep it, and those who hear it."""

    def __init__(self, world):
        self.world = world
        self.entries = None
        self.last = START
        self.hearers = set()

    async def append(self, _key, entries, *, opening=Opening.NO, keep_token=0, told=None):
        await self.world.trouble(8)
        answer = self._append(entries, opening, told)
        await self.world.trouble(8)  # it was taken, and nobody says so
        return answer

    def _append(self, entries, opening, told):
        token = entries[0].cursor.token
        if self.entries is None and opening is Opening.NO:
            return Appended.GONE
        last = START if self.entries is None else self.last
        if last.token > token:
            return Appended.STALE
        if opening is Opening.NO and told is not None and last < told:
            return Appended.GONE
        self.entries = self.entries or []
        for entry in entries:
            if entry.cursor > last or (last == START and not self.entries):
                self.entries.append(entry)
                self.last = entry.cursor
                for hearer in list(self.hearers):
                    hearer.hear(entry)
        return Appended.OK

    async def top(self, _key):
        await self.world.trouble(8)
        return None if self.entries is None else self.last

    async def delete(self, _key, *, through=0, top=None):
        await self.world.trouble(8)
        if top is None or (self.entries is not None and top == self.last):
            self.lose()

    def lose(self):
        self.entries, self.last = None, START

    async def read(self, _key, after, count):
        await self.world.trouble(10)
        found = [entry for entry in self.entries or [] if entry.cursor > after][:count]
        await self.world.pass_time()
        return found


class ModelLog:
    """What is committed."""

    def __init__(self, world):
        self.world = world
        self.facts = []

    @property
    def last(self):
        return self.facts[-1].cursor if self.facts else START

    def commit(self, token, events):
        made = []
        for n, type_ in events:
            cursor = Cursor(token, n)
            json = render(cursor, type_, "ses_a", "run_a", _now(), {})
            made.append(Entry(cursor, Kind.DURABLE, self.last, "run_a", type_, json))
            self.facts.append(made[-1])
        return made

    async def page(self, after):
        await self.world.trouble(5)
        size = self.world.rng.choice([1, 2, 500])
        found = [entry for entry in self.facts if entry.cursor > after]
        await self.world.pass_time()
        return found[:size], len(found) > size


class Watcher:
    """Follows from the start, is cut off, misses what is said while it is deaf, and comes back."""

    def __init__(self, world, bus, log):
        self.world, self.bus, self.log = world, bus, log
        self.seen = []
        self.watch = None
        self.deaf = False

    @property
    def last(self):
        return self.seen[-1].cursor if self.seen else START

    def hear(self, entry):
        if self.watch is None:
            return
        if not self.world.calm and self.world.rng.randrange(100) < 4:
            self.deaf = True
        elif self.deaf and self.world.rng.randrange(100) < 30:
            self.deaf = False
            self.watch.ask_catch_up()  # as after each new subscription
        if not self.deaf:
            self.watch.put(entry)

    async def follow(self):
        while True:
            known = self.log.last
            await self.world.pass_time()
            self.deaf = False
            self.watch = Watch(self.bus, "log", self.last, self.log.page, known > self.last)
            self.bus.hearers.add(self)
            await self.world.pass_time()
            try:
                while self.world.calm or self.world.rng.randrange(100) >= 12:
                    self.seen += await self.watch.next()
            except RetinueError:
                pass
            self.bus.hearers.discard(self)
            self.watch = None

    async def tick(self):
        while True:
            await asyncio.sleep(0)
            self.world.steps += 1
            if self.world.rng.randrange(50) == 0 and self.watch is not None:
                self.watch.tell(self.log.last)


def _now():
    return datetime.now(UTC).isoformat()


class Story:
    """Attempts one after another; some are lost before they commit, and told on as zombies."""

    def __init__(self, world, bus, log):
        self.world, self.bus, self.log = world, bus, log
        self.current = 0
        self.promised = {}
        self.remains = Remains(bus)
        self.tasks = []

    async def go(self):
        for token in range(1, ATTEMPTS + 1):
            self.current = token
            lost = token < ATTEMPTS and self.world.rng.randrange(100) < 40
            attempt = asyncio.create_task(self._attempt(token, lost))
            if lost:
                self.tasks.append(attempt)
                for _ in range(self.world.rng.randrange(60)):
                    await asyncio.sleep(0)
            else:
                await attempt
        await asyncio.gather(*self.tasks)

    async def _attempt(self, token, lost):
        world, prev = self.world, self.log.last
        facts = self.log.commit(token, [(1, "user.message" if token == 1 else "run.resumed")])
        held = Held(
            token=token, run_id="run_a", attempt=1, kind="chat", contact="ada", session_id="ses_a", input=RunInput(),
            checkpoint=b"", traceparent="", queued_s=0.0, runtime="", runtime_age_s=None, approvals=[], history=[],
            events=facts, prev=prev, keep_token=0, ring=False,
        )  # fmt: skip

        async def confirm():
            await world.trouble(8)
            return self.current == token

        teller = Teller(self.bus, Ticket("ten_a", "log_a"), held, confirm, self.remains)
        for _ in range(world.rng.randrange(1, 4)):
            await self._tell(teller, world.rng.randrange(20 if lost else 8))
            if lost:
                continue
            await teller.freeze()
            n = teller.next_n()
            events = [(event["n"], event["type"]) for event in teller._unrecorded] + [(n, "assistant.message")]
            await world.pass_time()
            entries = self.log.commit(token, events)
            await world.pass_time()
            await teller.publish(entries)
        teller.leave()

    async def _tell(self, teller, count):
        """Promise a fact, and say something after it."""
        teller.tell("run.started", {}, recorded=True)
        for _ in range(count):
            await self.world.pass_time()
            teller.tell("assistant.delta", {"text": "x"})
            if self.world.rng.randrange(3) == 0:
                await self._settle(teller)
            if self.world.loses and self.world.rng.randrange(30) == 0:
                self.bus.lose()

    async def _settle(self, teller):
        settling = asyncio.create_task(teller.settle())
        if self.world.rng.randrange(6) == 0:  # somebody wishes that it stops
            await self.world.pass_time()
            settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)


async def play(seed, monkeypatch, *, loses):
    """Answers what was committed, and what each watcher saw."""
    world = World(seed, loses=loses)
    monkeypatch.setattr(watch, "_is_fresh", world.is_fresh)
    bus, log = ModelBus(world), ModelLog(world)
    watchers = [Watcher(world, bus, log) for _ in range(WATCHERS)]
    tasks = [asyncio.create_task(run()) for watcher in watchers for run in (watcher.follow, watcher.tick)]
    try:
        await Story(world, bus, log).go()
        world.calm = True
        for _ in range(STEPS_MAX):
            if all(watcher.last >= log.last for watcher in watchers):
                break
            await asyncio.sleep(0)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
    return log.facts, [watcher.seen for watcher in watchers]


@pytest.mark.parametrize("loses", [False, True])
async def test_cursor_monotone_whatever_fails_each_fact_is_seen_once_and_nothing_promised_is_passed_over(
    loses, monkeypatch
):
    monkeypatch.setattr(watch, "HOLD_LOOK_S", 0.0005)
    monkeypatch.setattr("retinue_router.worker.teller.FLUSH_GAP_S", 0.0001)
    for seed in range(WORLDS):
        facts, all_seen = await play(seed, monkeypatch, loses=loses)
        for seen in all_seen:
            cursors = [entry.cursor for entry in seen]
            assert cursors == sorted(set(cursors)), f"seed {seed}"
            missed = [f"{fact.type} {fact.cursor}" for fact in facts if fact.cursor not in cursors]
            assert not missed, f"seed {seed}: {missed}"
