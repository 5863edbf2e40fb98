"""Schedules whose time has come: each tick is fired once, whoever looks and whatever is in the way."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from retinue_kit import postgres, streams
from retinue_kit.ids import new_id
from retinue_router.domain.contacts import log_id_of
from retinue_router.doorbell import Doorbell
from retinue_router.ring import Rings
from retinue_router.store.load import LoadStore
from retinue_router.store.runs import NewIds, Room
from retinue_router.store.schedules import ScheduleStore
from retinue_router.worker.scheduler import PUT_OFF_S, Scheduler, WholeRoom

ROOM = Room(waiting_max=100, later_max=100)
ANNA = log_id_of("ten_a", "anna")
HOUR = timedelta(hours=1)


@dataclass
class Firing:
    """What fires, and what it does it to."""

    scheduler: Scheduler
    store: ScheduleStore
    core: Any
    admin: asyncpg.Connection
    make: Callable[..., Scheduler]

    async def due(
        self, count: int = 1, *, cron: str = "0 0 * * *", behind: timedelta = timedelta(hours=1)
    ) -> list[Any]:
        """Make schedules whose time came a while ago; answers their ids."""
        ids = [new_id("sch") for _ in range(count)]
        for schedule_id in ids:
            made = await self.core.call(
                "create_schedule_1", schedule_id, "anna", ANNA, "digest", '{"text": "News?"}', cron, "UTC", "usr_1",
                await self.store.now() - behind, None, None, 100,
            )  # fmt: skip
            assert made["outcome"] == "created"
        return ids

    async def schedule(self, schedule_id: str) -> Any:
        """Read a schedule's row."""
        return await self.admin.fetchrow("select * from router.schedules where schedule_id = $1", schedule_id)

    async def runs(self) -> list[Any]:
        """Read all runs, oldest first."""
        return await self.core.seen("select * from router.runs order by run_id")


@pytest_asyncio.fixture
async def firing(core, database, redis_url) -> AsyncIterator[Firing]:
    """Answer a scheduler on the core's database."""
    sweep_pool = await postgres.connect(database.dsn("retinue_sweep"), max_size=4)
    client = streams.connect(redis_url)
    store, doorbell = ScheduleStore(core.pool), Doorbell(Rings(client), client)

    def make(room: Room = ROOM, waiting_max: int = 100) -> Scheduler:
        return Scheduler(sweep_pool, store, doorbell, room, WholeRoom(LoadStore(sweep_pool), waiting_max))

    yield Firing(make(), store, core, core.admin, make)
    await client.aclose()
    await sweep_pool.close()


async def test_a_tick_is_a_task_in_a_log_of_its_own_and_the_schedule_moves_on(firing, core):
    (schedule_id,) = await firing.due()
    assert await firing.scheduler.fire_due() == 1
    (run,) = await firing.runs()
    assert (run["kind"], run["contact"], run["state"], run["notify_log"]) == ("digest", "anna", "queued", ANNA)
    assert run["log_id"].startswith("tsk_")
    body = json.loads(run["input"])
    assert (body["text"], body["input"], body["principal"]) == ("News?", {"text": "News?"}, "usr_1")
    row = await firing.schedule(schedule_id)
    assert row["last_run_id"] == run["run_id"]
    now = await firing.store.now()
    assert now < row["next_time"] <= now + timedelta(days=1)
    assert (row["next_time"].hour, row["next_time"].minute, row["next_time"].microsecond) == (0, 0, 0)
    assert (await core.claim(run["log_id"]))["run_id"] == run["run_id"]
    assert await firing.scheduler.fire_due() == 0


async def test_ticks_that_were_missed_are_made_up_for_once(firing):
    await firing.due(cron="* * * * *", behind=timedelta(days=3))
    assert [await firing.scheduler.fire_due() for _ in range(3)] == [1, 0, 0]
    assert len(await firing.runs()) == 1


async def test_however_many_fire_each_tick_is_fired_once(firing):
    (schedule_id,) = await firing.due()
    found = await firing.store.look("ten_a", schedule_id)
    following = found["now"] + timedelta(days=1)

    async def fire() -> str:
        ids = NewIds(new_id("tsk"), new_id("ses"), new_id("run"), ANNA)
        answer = await firing.store.fire("ten_a", schedule_id, found["next_time"], following, ids, b"{}", ROOM)
        return str(answer["outcome"])

    assert sorted(await asyncio.gather(*(fire() for _ in range(8)))) == ["accepted", *["moved"] * 7]
    assert len(await firing.runs()) == 1


async def test_schedulers_side_by_side_fire_all_that_is_due_once(firing, eventually):
    ids = await firing.due(20)
    others = [firing.make(ROOM) for _ in range(3)]

    async def all_fired() -> bool:
        await asyncio.gather(*(scheduler.fire_due() for scheduler in others))
        return len(await firing.runs()) >= len(ids)

    await eventually(all_fired)
    await asyncio.gather(*(scheduler.fire_due() for scheduler in others))
    last = [(await firing.schedule(schedule_id))["last_run_id"] for schedule_id in ids]
    assert sorted(last) == [run["run_id"] for run in await firing.runs()]


async def test_a_scheduler_that_dies_before_its_commit_has_fired_nothing(firing, core):
    (schedule_id,) = await firing.due()
    found = await firing.store.look("ten_a", schedule_id)
    before = await firing.schedule(schedule_id)
    connection = await core.pool.acquire()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "select * from fire_schedule_1('ten_a', $1, $2, now(), $3, 'tsk_1', 'ses_1', 'run_1', '{}', 9, 9)",
        schedule_id, found["next_time"], ANNA,
    )  # fmt: skip
    connection.terminate()
    await core.pool.release(connection)
    assert await firing.runs() == []
    assert await firing.schedule(schedule_id) == before
    assert await firing.scheduler.fire_due() == 1


async def test_what_was_fired_without_redis_is_found_by_the_sweeper(firing, core, database, redis_url, run_dir):
    nowhere = streams.connect(f"unix://{run_dir}/none.sock")
    sweep_pool = await postgres.connect(database.dsn("retinue_sweep"), max_size=1)
    deaf = Scheduler(
        sweep_pool, firing.store, Doorbell(Rings(nowhere), nowhere), ROOM, WholeRoom(LoadStore(sweep_pool), 100)
    )
    await firing.due()
    assert await deaf.fire_due() == 1
    (run,) = await firing.runs()
    assert (await core.log(run["log_id"]))["due_time"] <= await firing.store.now()
    await nowhere.aclose()
    await sweep_pool.close()


@pytest.mark.parametrize("change", ["set next_time = null", "delete"])
async def test_a_schedule_that_is_paused_or_deleted_while_it_is_looked_at_does_not_fire(firing, core, change):
    (schedule_id,) = await firing.due()
    found = await firing.store.look("ten_a", schedule_id)
    table = "router.schedules"
    await core.admin.execute(f"delete from {table}" if change == "delete" else f"update {table} {change}")
    ids = NewIds("tsk_1", "ses_1", "run_1", ANNA)
    answer = await firing.store.fire("ten_a", schedule_id, found["next_time"], found["now"], ids, b"{}", ROOM)
    assert (answer["outcome"], await firing.runs()) == ("moved", [])
    assert not await firing.store.put_off("ten_a", schedule_id, found["next_time"], found["now"])
    assert await firing.scheduler.fire_due() == 0


async def test_a_tick_that_finds_the_queue_full_is_put_off_and_comes_when_there_is_room(firing, core):
    await core.submit(contact="berta")
    (schedule_id,) = await firing.due()
    (often,) = await firing.due(cron="* * * * *")
    narrow = firing.make(Room(waiting_max=1, later_max=100))
    before = await firing.store.now()
    assert await narrow.fire_due() == 2
    assert len(await firing.runs()) == 1
    put_off = (await firing.schedule(schedule_id))["next_time"] - before
    assert timedelta(seconds=PUT_OFF_S) <= put_off < timedelta(seconds=PUT_OFF_S + 60)
    assert (await firing.schedule(often))["next_time"] > before
    assert (await firing.schedule(schedule_id))["last_run_id"] is None
    await core.finish(await core.claim("log_berta"), log="log_berta")
    await core.admin.execute("update router.schedules set next_time = now() - interval '1 s'")
    assert await firing.scheduler.fire_due() == 2
    assert len(await firing.runs()) == 3


async def test_no_tick_makes_more_runs_wait_than_may_over_all_tenants(firing, core):
    await type(core)(core.pool, core.admin, "ten_b").submit()
    ids = await firing.due(3)
    before = await firing.store.now()
    assert await firing.make(waiting_max=2).fire_due() == 3
    assert len(await firing.runs()) == 2, "what was accepted since the count is counted on top"
    rows = [await firing.schedule(schedule_id) for schedule_id in ids]
    put_off = [row["next_time"] for row in rows if row["last_run_id"] is None]
    assert len(put_off) == 2
    assert all(time >= before + timedelta(seconds=PUT_OFF_S) for time in put_off)
    assert await firing.make(waiting_max=2).fire_due() == 0
    await core.admin.execute("update router.schedules set next_time = now() - interval '1 s' where last_run_id is null")
    assert await firing.make(waiting_max=4).fire_due() == 2
    assert len(await firing.runs()) == 4


async def test_a_schedule_that_cannot_be_read_is_put_off_and_holds_nobody_up(firing):
    broken, whole = await firing.due(2)
    await firing.admin.execute(
        "update router.schedules set time_zone = 'Gone/Zone', next_time = next_time - interval '1 h'"
        " where schedule_id = $1",
        broken,
    )
    assert await firing.scheduler.fire_due() == 2
    assert [run["run_id"] for run in await firing.runs()] == [(await firing.schedule(whole))["last_run_id"]]
    assert (await firing.schedule(broken))["next_time"] > await firing.store.now()
    assert await firing.scheduler.fire_due() == 0


async def test_a_schedule_whose_last_time_has_come_fires_and_rests(firing):
    (schedule_id,) = await firing.due()
    found = await firing.store.look("ten_a", schedule_id)
    ids = NewIds("tsk_1", "ses_1", "run_1", ANNA)
    answer = await firing.store.fire("ten_a", schedule_id, found["next_time"], None, ids, b"{}", ROOM)
    assert (answer["outcome"], (await firing.schedule(schedule_id))["next_time"]) == ("accepted", None)


async def test_schedules_that_fire_while_their_contact_is_deleted_leave_nothing(firing, core):
    for _ in range(8):
        await firing.due(3)
        answers = await asyncio.gather(
            firing.scheduler.fire_due(),
            core.call("delete_contact_1", "anna", ANNA),
            firing.make(ROOM).fire_due(),
            return_exceptions=True,
        )
        assert [answer for answer in answers if isinstance(answer, BaseException)] == []
        await core.call("delete_contact_1", "anna", ANNA)
        for table in ("contacts", "logs", "runs", "mail", "schedules"):
            assert await core.seen(f"select * from router.{table}") == []
