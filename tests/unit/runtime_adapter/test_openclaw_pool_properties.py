"""What holds of a pool whatever happens to it, in whatever order."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_gateways import World, settle
from retinue_kit.errors import RetinueError
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw.ports import Isolation, Place

CELLS_MAX = 2
RUNS_MAX = 2
WAITING_MAX = 3

NUMBER = st.integers(0, 7)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["shared", "cell"]), st.integers(0, 3)),
        st.tuples(st.sampled_from(["shared", "cell"]), st.integers(0, 3)),
        st.tuples(st.sampled_from(["leave", "cancel", "kill", "eat", "create", "delete"]), NUMBER),
        st.tuples(st.just("refuse"), st.sampled_from(["begin", "start", "config.patch", "agents.delete", "run"])),
        st.tuples(st.just("time"), st.sampled_from([1, 40, 100, 2_000])),
        st.tuples(st.sampled_from(["watch", "turn", "turns"]), st.just(0)),
    ),
    max_size=50,
)


class Story:
    """Tenants that come and go, and what they must never see."""

    def __init__(self) -> None:
        self.world = World(
            openclaw_shared_count=2,
            openclaw_warm_cell_count=1,
            openclaw_cell_count_max=CELLS_MAX,
            openclaw_run_count=RUNS_MAX,
            openclaw_waiting_count=WAITING_MAX,
            openclaw_memory_mib=2_000,
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.inside: list[asyncio.Event] = []
        self.running: defaultdict[str, int] = defaultdict(int)
        self.tenant_of_cell: dict[str, str] = {}
        self.tenant_of_agent: dict[tuple[str, str], str] = {}

    async def run(self, tenant_id: str, isolation: Isolation) -> None:
        try:
            async with self.world.pool.place(tenant_id, isolation, wait_s=60) as place:
                over = asyncio.Event()
                self.inside.append(over)
                self.running[place.instance_id] += 1
                try:
                    self.enter(tenant_id, isolation, place)
                    await over.wait()
                finally:
                    self.running[place.instance_id] -= 1
                    self.inside.remove(over)
        except Trouble:
            pass

    def enter(self, tenant_id: str, isolation: Isolation, place: Place) -> None:
        if isolation is Isolation.CELL:
            assert self.tenant_of_cell.setdefault(place.instance_id, tenant_id) == tenant_id
        else:
            assert place.instance_id not in self.tenant_of_cell
        assert self.tenant_of_agent.setdefault((place.instance_id, place.agent_id), tenant_id) == tenant_id
        assert place.sessions.setdefault("whose", tenant_id) == tenant_id
        assert self.world.pool.tenant_of(place.instance_id, place.agent_id) == tenant_id
        if place.instance_id in self.world.alive:
            gateway = self.world.gateway(place.instance_id)
            key = gateway.providers[f"p-{place.agent_id}"]["apiKey"]
            assert self.world.proxy.credentials[place.instance_id, tenant_id] == key

    def check(self) -> None:
        assert all(0 <= count <= RUNS_MAX for count in self.running.values())
        open_ones = [one for one in self.world.pool.instances() if one.state != "error"]
        assert sum(one.isolation == "cell" for one in open_ones) <= CELLS_MAX
        for one in self.world.pool.instances():
            assert 0 <= one.running_count <= RUNS_MAX
            assert 0 <= one.waiting_count <= WAITING_MAX + RUNS_MAX
            if one.isolation == "cell":
                assert one.tenant_count <= 1

    async def step(self, what: str, value: Any) -> None:
        world = self.world
        match what:
            case "shared" | "cell":
                self.tasks.append(asyncio.create_task(self.run(f"ten_{value}", Isolation(what))))
            case "leave" | "cancel":
                self.stop(what, value)
            case "kill" | "eat":
                self.harm(what, value)
            case "create" | "delete":
                await self.ask(what, value)
            case "refuse":
                world.refuse(value, 2)
            case "time":
                world.clock.at += value
            case "watch":
                await world.pool.watch()
            case "turns":
                await settle()
            case _:
                await asyncio.sleep(0)

    def stop(self, what: str, value: int) -> None:
        if what == "leave" and self.inside:
            self.inside[value % len(self.inside)].set()
        elif what == "cancel" and self.tasks:
            self.tasks[value % len(self.tasks)].cancel()

    def harm(self, what: str, value: int) -> None:
        names = sorted(self.world.alive)
        if names and what == "kill":
            del self.world.alive[names[value % len(names)]]
        elif names:
            self.world.memory_mib[names[value % len(names)]] = 3_000 if value % 2 else 100_000

    async def ask(self, what: str, value: int) -> None:
        with suppress(RetinueError):
            if what == "delete":
                await self.world.pool.delete(f"ten_{value % 4}")
            else:
                await self.world.pool.create(f"ten_{value % 4}", Isolation.CELL if value % 2 else Isolation.SHARED)

    async def tell(self, steps: list[tuple[str, Any]]) -> None:
        await self.world.pool.start()
        for what, value in steps:
            await self.step(what, value)
            self.check()
        await settle()
        self.check()
        for task in self.tasks:
            task.cancel()
        ends = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
        assert all((one.running_count, one.waiting_count) == (0, 0) for one in self.world.pool.instances())
        await self.recover()
        await self.world.pool.close()
        assert not self.world.alive
        assert not self.world.proxy.credentials

    async def recover(self) -> None:
        """Whatever has happened, tenants are served again once nothing happens any more."""
        for what in ("begin", "start", "config.patch", "agents.delete", "run"):
            self.world.refuse(what, 0)
        for _ in range(3):
            self.world.clock.at += 100
            await self.world.pool.watch()
            await settle()
        for isolation in Isolation:
            async with self.world.pool.place("ten_last", isolation, wait_s=5) as place:
                self.enter("ten_last", isolation, place)


@settings(max_examples=60)
@given(steps=STEPS)
def test_no_cell_serves_two_tenants_and_no_slot_is_lost_whatever_happens(steps: list[tuple[str, Any]]) -> None:
    asyncio.run(Story().tell(steps))
