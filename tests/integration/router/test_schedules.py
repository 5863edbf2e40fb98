"""Schedules over the wire: made once, read, paused, resumed, deleted, and gone with their contact."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.json_format import MessageToDict
from retinue_kit.errors import Reason, RetinueError
from retinue_router.domain.schedules import Schedule
from retinue_router.operations.schedules import Schedules
from retinue_router.store.schedules import ScheduleStore

DAILY = {
    "contact": "anna",
    "kind": "digest",
    "input": {"text": "What is new?"},
    "cron": "30 7 * * MON-FRI",
    "time_zone": "Europe/Berlin",
    "principal": "usr_1",
}


async def create(router, **fields):
    return await router.call("CreateSchedule", **{**DAILY, **fields})


async def made(router, **fields):
    return (await create(router, **fields)).schedule


async def refusal(call):
    with pytest.raises(RetinueError) as refused:
        await call
    return refused.value


async def test_a_schedule_is_answered_and_read_back_as_it_was_asked(router):
    schedule = await made(router)
    shown = MessageToDict(schedule, preserving_proto_field_name=True)
    asked = {name: value for name, value in DAILY.items() if name != "principal"}
    assert {name: shown[name] for name in asked} == asked
    assert (schedule.state, schedule.last_run_id) == ("active", "")
    assert schedule.schedule_id.startswith("sch_")
    next_time = schedule.next_time.ToDatetime(UTC)
    assert schedule.create_time.ToDatetime(UTC) < next_time < datetime.now(UTC) + timedelta(days=4)
    assert (await router.call("GetSchedule", schedule_id=schedule.schedule_id)).schedule == schedule


async def test_a_schedule_makes_its_contact_and_is_read_in_utc_unless_it_says_otherwise(router):
    schedule = await made(router, cron=" 0   0 * *\t* ", time_zone="")
    assert (schedule.cron, schedule.time_zone) == ("0 0 * * *", "UTC")
    assert (await router.call("GetContact", contact="anna")).contact.contact == "anna"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "every day"}, "cron"),
        ({"cron": "* * * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "* * */20 * 1L"}, "cron"),
        ({"cron": ""}, "cron"),
        ({"time_zone": "Berlin"}, "time_zone"),
        ({"kind": "chat"}, "kind"),
        ({"contact": "a/b"}, "contact"),
        ({"idempotency_key": "a b"}, "idempotency_key"),
    ],
)
async def test_what_could_not_be_executed_is_refused_and_not_made(router, core, fields, field):
    error = await refusal(create(router, **fields))
    assert (error.reason, error.metadata["field"]) == (Reason.FIELD_INVALID, field)
    assert await core.seen("select from router.schedules") == []
    assert await core.seen("select from router.contacts") == []


async def test_same_key_same_answer_whoever_asks_at_the_same_time(router, core):
    answers = await asyncio.gather(*(create(router, idempotency_key="k") for _ in range(8)))
    assert len({answer.schedule.schedule_id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False, *[True] * 7]
    assert len(await core.seen("select from router.schedules")) == 1
    # The same intent, whatever it looked like, and whoever asked.
    assert (await create(router, idempotency_key="k", cron="30 7  * * MON-FRI", principal="usr_2")).replayed
    error = await refusal(create(router, idempotency_key="k", cron="31 7 * * MON-FRI"))
    assert (error.reason, error.metadata["schedule_id"]) == (
        Reason.IDEMPOTENCY_KEY_REUSED,
        answers[0].schedule.schedule_id,
    )


async def test_a_key_outlives_its_schedule_and_does_not_make_it_again(router, core):
    schedule = await made(router, idempotency_key="k")
    await router.call("DeleteSchedule", schedule_id=schedule.schedule_id)
    assert (await refusal(create(router, idempotency_key="k"))).reason == Reason.SCHEDULE_NOT_FOUND
    assert (await refusal(create(router, idempotency_key="k", kind="x"))).reason == Reason.IDEMPOTENCY_KEY_REUSED
    assert await core.seen("select from router.schedules") == []
    # A tenant's old keys go when a later one is kept.
    await core.admin.execute("update router.deleted_schedules set delete_time = now() - interval '31 days'")
    later = await made(router, idempotency_key="k2")
    await router.call("DeleteSchedule", schedule_id=later.schedule_id)
    assert [row["idem_key"] for row in await core.seen("select idem_key from router.deleted_schedules")] == ["k2"]


async def test_a_tenant_has_so_many_schedules_and_no_more(core):
    schedules = Schedules(ScheduleStore(core.pool), schedules_max=3)
    asked = Schedule(tenant_id="ten_a", contact="anna", kind="x", input={}, cron="0 0 * * *", time_zone="")
    answers = await asyncio.gather(*(schedules.create(asked) for _ in range(6)), return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, RetinueError)]
    assert [error.reason for error in errors] == [Reason.QUOTA_EXCEEDED] * 3
    assert (errors[0].metadata["limit"], errors[0].retry_after_s) == ("3", None)
    assert len(await core.seen("select from router.schedules")) == 3


async def test_schedules_are_listed_newest_first_in_pages_each_once(router):
    found = [(await made(router, contact=contact)).schedule_id for contact in ("anna", "berta", "anna", "anna")]
    seen, token = [], ""
    while True:
        page = await router.call("ListSchedules", page_size=3, page_token=token)
        seen += [schedule.schedule_id for schedule in page.schedules]
        token = page.next_page_token
        if not token:
            break
    assert seen == found[::-1]
    of_anna = await router.call("ListSchedules", contact="anna", page_size=2)
    assert [schedule.schedule_id for schedule in of_anna.schedules] == [found[3], found[2]]
    rest = await router.call("ListSchedules", contact="anna", page_token=of_anna.next_page_token)
    assert [schedule.schedule_id for schedule in rest.schedules] == [found[0]]
    assert (await refusal(router.call("ListSchedules", page_token="r.run_1"))).reason == Reason.CURSOR_INVALID


@pytest.mark.parametrize("name", ["GetSchedule", "PauseSchedule", "ResumeSchedule", "DeleteSchedule"])
async def test_no_cross_tenant_anothers_schedule_is_one_that_is_not_there(router, name):
    schedule = await made(router)
    missing = await refusal(router.call(name, schedule_id="sch_none"))
    router.tenant = "ten_b"
    foreign = await refusal(router.call(name, schedule_id=schedule.schedule_id))
    assert (foreign.reason, foreign.message) == (missing.reason, missing.message)
    assert foreign.reason == Reason.SCHEDULE_NOT_FOUND
    assert not (await router.call("ListSchedules")).schedules
    # A key is its tenant's own.
    router.tenant = "ten_a"
    assert (await router.call("GetSchedule", schedule_id=schedule.schedule_id)).schedule == schedule


async def test_a_schedule_rests_and_goes_on_from_now(router, core):
    schedule = await made(router)
    for _ in range(2):
        paused = (await router.call("PauseSchedule", schedule_id=schedule.schedule_id)).schedule
        assert (paused.state, paused.HasField("next_time")) == ("paused", False)
    for _ in range(2):
        resumed = (await router.call("ResumeSchedule", schedule_id=schedule.schedule_id)).schedule
        assert resumed == schedule
    # One that is due stays due.
    await core.admin.execute("update router.schedules set next_time = now() - interval '1 hour'")
    due = (await router.call("ResumeSchedule", schedule_id=schedule.schedule_id)).schedule
    assert due.next_time.ToDatetime(UTC) < datetime.now(UTC)
    # One that rested through its time is not.
    await router.call("PauseSchedule", schedule_id=schedule.schedule_id)
    assert (await router.call("ResumeSchedule", schedule_id=schedule.schedule_id)).schedule == schedule


async def test_deleting_a_contact_takes_its_schedules_along_and_keeps_their_keys(router, core):
    await made(router, idempotency_key="k")
    await made(router)
    other = await made(router, contact="berta")
    await router.call("DeleteContact", contact="anna")
    assert [s.schedule_id for s in (await router.call("ListSchedules")).schedules] == [other.schedule_id]
    assert (await refusal(create(router, idempotency_key="k"))).reason == Reason.SCHEDULE_NOT_FOUND
    assert "What is new?" not in repr(await core.seen("select * from router.deleted_schedules"))


async def test_schedules_that_are_made_while_their_contact_is_deleted_are_never_left_without_it(router, core):
    for _ in range(5):
        await made(router)
        await asyncio.gather(
            *(made(router) for _ in range(4)), router.call("DeleteContact", contact="anna"), made(router)
        )
        left = await core.seen("select from router.schedules")
        contacts = await core.seen("select from router.contacts")
        assert bool(left) <= bool(contacts)
        if contacts:
            await router.call("DeleteContact", contact="anna")
        assert await core.seen("select from router.schedules") == []
