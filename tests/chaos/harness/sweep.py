"""One seed after another against one living mesh: talk, strike, look at everything, judge."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness import boxes, checks, faults, keepers, operators
from harness.board import Board
from harness.clients import Client
from harness.faults import Blow, Hand
from harness.history import Contact, Cursor, Effect, Event, History
from harness.operators import Receiver
from harness.points import ROOT, declared
from harness.stage import Stage, recorded_of, runs_of
from harness.watching import Watcher
from harness.workload import WAYS, Person, Way

TENANTS = 3
ROUNDS_MAX = 40
"""Rounds of each person while the faults of a seed are still to come: they take ten or so."""

TALK_TIMEOUT_S = 150.0
SETTLE_TIMEOUT_S = 60.0
"""Time for runs to end once nobody talks any more: three lost attempts take less."""

SEE_TIMEOUT_S = 20.0
"""Time for watchers to see the last of it."""

KEPT = ROOT / ".build" / "chaos"
"""Where the histories of failed seeds are kept."""


@dataclass
class Outcome:
    """What came of a seed."""

    seed: int
    blows: list[Blow]
    violations: list[str]
    runs: int
    seconds: float
    file: Path | None = None


async def sweep(stage: Stage, seeds: Iterable[int]) -> AsyncIterator[Outcome]:
    """Play seeds in order; a failed one's history is kept."""
    points = declared()
    for seed in seeds:
        began = time.monotonic()
        history, blows = await Seed(stage, seed).play(points)
        found = checks.violations(history)
        runs = sum(len(contact.runs) for contact in history.contacts)
        outcome = Outcome(seed, blows, found, runs, time.monotonic() - began)
        if found:
            outcome.file = KEPT / f"seed-{seed}.json"
            history.write(outcome.file)
        yield outcome


class Seed:
    """Tenants, contacts, people and watchers of one seed; none of them was there before."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self._stage = stage
        self._seed = seed
        self._rng = random.Random(f"people of {seed}")
        self._board = Board()
        self._history = History(seed)
        self._striking = True
        self._receiver = Receiver()
        self._watchers: list[Watcher] = []
        self._tenants: dict[str, str] = {}

    async def play(self, points: list[str]) -> tuple[History, list[Blow]]:
        """Answers what was seen, and what befell the mesh."""
        stage = self._stage
        await stage.until_well()
        stage.forget_ledger()
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._receiver.serve())
            people = [person async for person in self._people(stack)]
            watching = self._watch([person for person, _ in people])
            talking = [asyncio.create_task(self._talk(person, way)) for person, way in people]
            stack.callback(_cancel, [*watching, *talking])
            blows = await self._strike(points)
            self._striking = False
            _, late = await asyncio.wait(talking, timeout=TALK_TIMEOUT_S)
            self._history.errors += [f"talk of {TALK_TIMEOUT_S:.0f} s has not come to an end"] * bool(late)
            for task in talking:
                if task.done() and task.exception() is not None:
                    raise task.exception() from None  # type: ignore[misc]
            await stage.until_well()
            await self._look(people)
        return self._history, blows

    async def _people(self, stack: contextlib.AsyncExitStack) -> AsyncIterator[tuple[Person, Way]]:
        clients = []
        for letter in "abc"[:TENANTS]:
            name = f"s{self._seed}{letter}{self._rng.randrange(1 << 32):08x}"
            self._tenants[name], token = await asyncio.to_thread(self._stage.tenant, name)
            client = Client(self._stage.mesh.url, name, token, self._history, self._board)
            await stack.enter_async_context(client.http)
            clients.append(client)
        # Tenants share names of contacts, so that a mix-up would show.
        ways = [*WAYS, *operators.WAYS, *boxes.WAYS, *keepers.WAYS]
        self._rng.shuffle(ways)
        for number, way in enumerate(ways):
            contact = f"friend-{number // TENANTS}"
            rng = random.Random(f"{self._seed} {number}")
            yield Person(clients[number % TENANTS], contact, rng, self._receiver, self._stage.bring_about), way

    def _watch(self, people: list[Person]) -> list["asyncio.Task[None]"]:
        tasks = []
        for number, person in enumerate(people):
            name = f"{person.client.tenant} {person.contact}"
            steady = Watcher(person.client, person.contact, f"{name} steady")
            self._watchers.append(steady)
            tasks.append(asyncio.create_task(steady.follow()))
            if number % 3 == 0:
                socket = Watcher(person.client, person.contact, f"{name} socket")
                self._watchers.append(socket)
                tasks.append(asyncio.create_task(socket.follow_by_socket()))
            elif number % 3 == 1:
                restless = Watcher(person.client, person.contact, f"{name} restless", leaves=person.rng)
                self._watchers.append(restless)
                tasks.append(asyncio.create_task(restless.follow()))
        return tasks

    async def _talk(self, person: Person, way: Way) -> None:
        await asyncio.sleep(person.rng.uniform(0, 0.4))
        for _ in range(ROUNDS_MAX):
            await way(person)
            if not self._striking:
                return
            await asyncio.sleep(person.rng.uniform(0, 0.3))

    async def _strike(self, points: list[str]) -> list[Blow]:
        hand = Hand(self._stage, self._board, random.Random(f"hand of {self._seed}"))
        await hand.strike(faults.plan(self._seed, points))
        blows = hand.blows
        self._history.faults = [blow.words for blow in blows]
        self._history.bus_lost = any("redis" in blow.words for blow in blows)
        self._history.holder_lost = any("worker" in blow.words for blow in blows)
        return blows

    async def _look(self, people: list[tuple[Person, Way]]) -> None:
        """Wait until nothing goes on, then read everything there is."""
        contacts = {(p.client.tenant, p.contact): p for p, _ in people}
        recorded: dict[tuple[str, str], set[Cursor]] = {}
        async with self._stage.database() as database:
            await self._settle(database)
            rows = await database.fetch(
                "select tenant_id, contact, last_token, last_n from router.logs where tenant_id = any($1)"
                " and contact is not null",
                list(self._tenants.values()),
            )
            names = {tenant_id: name for name, tenant_id in self._tenants.items()}
            ends = {(names[r["tenant_id"]], r["contact"]): (r["last_token"], r["last_n"]) for r in rows}
            for name, person in contacts.items():
                runs = await runs_of(database, self._tenants[name[0]], name[1])
                recorded[name] = await recorded_of(database, self._tenants[name[0]], name[1])
                self._history.contacts.append(Contact(*name, runs=runs, deleted=person.deleted))
        for watcher in self._watchers:
            watcher.aim(ends.get((watcher.watch.tenant, watcher.watch.contact), (0, 0)))
        await _until(lambda: all(watcher.has_all for watcher in self._watchers), SEE_TIMEOUT_S)
        for contact in self._history.contacts:
            client = contacts[contact.tenant, contact.name].client
            contact.log = await _read_log(client, contact.name, ends.get((contact.tenant, contact.name), (0, 0)))
            told = {event.cursor for event in checks.durable(contact.log)}
            contact.unrecorded = sorted(told - recorded[contact.tenant, contact.name])
            for cursor in sorted(recorded[contact.tenant, contact.name] - told):
                self._history.errors.append(f"{contact.tenant} {contact.name}: recorded at {cursor} and not told")
            contact.messages = await _read_messages(client, contact.name)
            self._stage.read_thread(self._tenants[contact.tenant], contact)
        runs = {(a.tenant, a.key): a.run_id for a in self._history.answers if a.run_id}
        for intent in self._history.intents:
            if intent.effect and (intent.tenant, intent.key) in runs:
                count = self._stage.lines_of(self._tenants[intent.tenant], intent.effect)
                self._history.effects.append(Effect(runs[intent.tenant, intent.key], count))
        self._history.ledger = self._stage.ledger({r.run_id for c in self._history.contacts for r in c.runs})

    async def _settle(self, database) -> None:  # type: ignore[no-untyped-def]
        tenants = list(self._tenants.values())
        end = time.monotonic() + SETTLE_TIMEOUT_S
        while time.monotonic() < end:
            left = await database.fetchval(
                "select (select count(*) from router.runs where tenant_id = any($1)"
                " and state not in ('succeeded', 'failed', 'cancelled'))"
                " + (select count(*) from router.mail where tenant_id = any($1))",
                tenants,
            )
            if not left:
                return
            await asyncio.sleep(0.05)


async def _until(check, timeout_s: float) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + timeout_s
    while not check() and time.monotonic() < end:
        await asyncio.sleep(0.02)


async def _read_log(client: Client, contact: str, end: tuple[int, int]) -> list[Event]:
    """Read a contact's stream from its start to its last durable event, as one who comes late does."""
    found: list[Event] = []
    if end == (0, 0):
        return found
    async with contextlib.aclosing(client.events(f"/v1/contacts/{contact}/events", "0-0")) as events:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEE_TIMEOUT_S):
                async for event in events:
                    found.append(event)
                    if event.cursor >= end:
                        break
    if not found or found[-1].cursor < end:
        client.history.errors.append(f"{contact}: the stream from the start does not come to {end}")
    return found


async def _read_messages(client: Client, contact: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    page = ""
    while True:
        response = await client.call(
            "GET",
            f"/v1/contacts/{contact}/messages",
            params={"page_size": 200, "page_token": page},
            expected=(200, 404),
        )
        if response is None or response.status_code == 404:
            return found
        told = response.json()
        found += [(message["run_id"], message["text"]) for message in told["messages"]]
        page = told["next_page_token"]
        if not page:
            return found


def _cancel(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
