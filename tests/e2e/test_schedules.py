"""Tasks at a time of their own and tasks that come again, as a client makes, watches and ends them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
import pytest_asyncio
from refusals import assert_refused

NIGHTLY = {"kind": "digest", "input": {"text": "#echo=news"}, "cron": "30 2 * * *", "time_zone": "Europe/Berlin"}


@pytest_asyncio.fixture
async def database(mesh):
    connection = await asyncpg.connect(mesh.dsn())
    yield connection
    await connection.close()


async def bring(database, schedule_id):
    """Have a schedule's time come now, without waiting for a night."""
    await database.execute(
        "update router.schedules set next_time = clock_timestamp() where schedule_id = $1", schedule_id
    )


async def first_of(client, contact, kind):
    """Read a contact's stream from its beginning to the first event of a kind; answers its data."""
    async with client.stream("GET", f"/v1/contacts/{contact}/events", params={"after": "0-0"}) as response:
        wanted = False
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                wanted = line == f"event: {kind}"
            elif wanted and line.startswith("data: "):
                return json.loads(line.removeprefix("data: "))["data"]
    return None


async def make(client, contact, *, key="", **fields):
    headers = {"idempotency-key": key} if key else {}
    return await client.post("/v1/schedules", json={"contact": contact, **NIGHTLY, **fields}, headers=headers)


async def test_a_schedule_fires_its_contact_hears_of_it_and_it_goes_on_until_it_is_deleted(client, contact, database):
    made = await make(client, contact, key=f"k-{contact}")
    assert made.status_code == 200, made.text
    schedule = made.json()["schedule"]
    path = f"/v1/schedules/{schedule['schedule_id']}"
    assert {name: schedule[name] for name in NIGHTLY} == NIGHTLY
    assert (schedule["contact"], schedule["state"], schedule["last_run_id"]) == (contact, "active", "")
    again = await make(client, contact, key=f"k-{contact}")
    assert again.json() == made.json()
    assert (made.headers.get("idempotent-replay"), again.headers["idempotent-replay"]) == (None, "true")

    await bring(database, schedule["schedule_id"])
    finished = await first_of(client, contact, "task.finished")
    assert {**finished, "run_id": ""} == {"run_id": "", "kind": "digest", "state": "succeeded", "summary": "news"}
    fired = (await client.get(path)).json()["schedule"]
    assert fired["last_run_id"] == finished["run_id"]
    assert fired["next_time"] == schedule["next_time"]
    run = (await client.get(f"/v1/runs/{finished['run_id']}")).json()["run"]
    assert (run["kind"], run["contact"], run["output"]["text"]) == ("digest", contact, "news")

    paused = (await client.post(f"{path}:pause", json={})).json()["schedule"]
    assert (paused["state"], "next_time" in paused) == ("paused", False)
    resumed = (await client.post(f"{path}:resume", json={})).json()["schedule"]
    assert (resumed["state"], resumed["next_time"]) == ("active", schedule["next_time"])
    listed = (await client.get("/v1/schedules", params={"contact": contact})).json()
    assert listed == {"schedules": [resumed], "next_page_token": ""}

    assert (await client.delete(path)).status_code == 200
    assert_refused(await client.get(path), 404, "SCHEDULE_NOT_FOUND")
    assert_refused(await client.delete(path), 404, "SCHEDULE_NOT_FOUND")
    assert_refused(await make(client, contact, key=f"k-{contact}"), 404, "SCHEDULE_NOT_FOUND")
    assert (await client.get(f"/v1/runs/{finished['run_id']}")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "soon"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "x" * 129}, "cron"),
        ({"time_zone": "Berlin"}, "time_zone"),
        ({"kind": "chat"}, "kind"),
        ({"input": {"text": "a\0"}}, "input"),
    ],
)
async def test_a_schedule_out_of_its_limits_is_refused_by_the_field_s_name(client, contact, fields, field):
    assert_refused(await make(client, contact, **fields), 400, "FIELD_INVALID", field)
    assert (await client.get(f"/v1/contacts/{contact}")).status_code == 404


async def test_a_key_is_one_schedule_s(client, contact):
    await make(client, contact, key=f"k-{contact}")
    assert_refused(await make(client, contact, key=f"k-{contact}", kind="other"), 409, "IDEMPOTENCY_KEY_REUSED")


async def test_no_cross_tenant_anothers_schedule_is_not_there(client, client_of, contact):
    path = f"/v1/schedules/{(await make(client, contact)).json()['schedule']['schedule_id']}"
    async with client_of(f"other-{contact}") as other:
        for call in (other.get(path), other.delete(path), other.post(f"{path}:pause"), other.post(f"{path}:resume")):
            assert_refused(await call, 404, "SCHEDULE_NOT_FOUND")
        assert (await other.get("/v1/schedules")).json()["schedules"] == []
    async with client_of("") as nobody:
        assert_refused(await nobody.get(path), 401, "CREDENTIAL_MISSING")
    assert (await client.get(path)).json()["schedule"]["state"] == "active"


async def test_deleting_a_contact_deletes_its_schedules(client, contact):
    path = f"/v1/schedules/{(await make(client, contact)).json()['schedule']['schedule_id']}"
    assert (await client.delete(f"/v1/contacts/{contact}")).status_code == 200
    assert_refused(await client.get(path), 404, "SCHEDULE_NOT_FOUND")


async def test_a_task_begins_at_its_time_and_not_before(client, contact, mesh):
    def task(ahead, key=""):
        run_at = (datetime.now(UTC) + ahead).isoformat().replace("+00:00", "Z")
        return {"contact": contact, "kind": "extract", "input": {"text": "#echo=done"}, "run_at": run_at}

    later = task(timedelta(days=1))
    headers = {"idempotency-key": f"k-{contact}"}
    waiting = (await client.post("/v1/tasks", json=later, headers=headers)).json()["run"]
    assert waiting["state"] == "queued"
    assert datetime.fromisoformat(waiting["run_at"]) == datetime.fromisoformat(later["run_at"])
    again = await client.post("/v1/tasks", json=later, headers=headers)
    assert (again.json()["run"], again.headers["idempotent-replay"]) == (waiting, "true")
    changed = {**later, "run_at": "2020-01-01T00:00:00Z"}
    assert_refused(await client.post("/v1/tasks", json=changed, headers=headers), 409, "IDEMPOTENCY_KEY_REUSED")

    soon, past = [
        (await client.post("/v1/tasks", json=task(timedelta(seconds=ahead)))).json()["run"] for ahead in (0.3, -9)
    ]
    for run in (soon, past):
        done = (await client.post(f"/v1/runs/{run['run_id']}:wait?timeout_s=20")).json()["run"]
        assert done["state"] == "succeeded"
        assert done["start_time"] >= done["run_at"]
    path = f"/v1/runs/{waiting['run_id']}"
    assert (await client.get(path)).json()["run"]["state"] == "queued"
    assert (await client.post(f"{path}:cancel", json={})).json()["run"]["state"] == "cancelled"


@pytest.mark.parametrize("run_at", ["9999-12-31T23:59:59Z", "tomorrow", 5])
async def test_a_time_that_nobody_means_is_refused(client, contact, run_at):
    body = {"contact": contact, "kind": "extract", "run_at": run_at}
    assert_refused(await client.post("/v1/tasks", json=body), 400, "FIELD_INVALID", "run_at")


async def test_the_command_makes_shows_and_ends_schedules(mesh, contact):
    tenant = ("--tenant", "e2e")

    async def say(*arguments, check=True):
        return await asyncio.to_thread(mesh.command, "schedules", *arguments, *tenant, check=check)

    made = (await say("create", contact, "30 7 * * MON-FRI", "What is new?", "--time-zone", "Europe/Berlin")).stdout
    schedule_id, *words = made.split()
    assert schedule_id.startswith("sch_")
    assert words[:3] == ["comes", "next", "at"]
    (listed,) = json.loads((await say("list", "--contact", contact, "--json")).stdout)
    assert (listed["kind"], listed["input"], listed["state"]) == ("scheduled", {"text": "What is new?"}, "active")
    shown = (await say("show", schedule_id)).stdout
    assert f"schedule:    {schedule_id}\ncontact:     {contact}\n" in shown
    assert "comes:       30 7 * * MON-FRI in Europe/Berlin\n" in shown
    assert 'input:       {"text": "What is new?"}\n' in shown
    assert (await say("pause", schedule_id)).stdout == f"{schedule_id} is paused.\n"
    assert "30 7 * * MON-FRI  Europe/Berlin  paused" in (await say("list", "--contact", contact)).stdout
    assert (await say("resume", schedule_id)).stdout == made
    await say("delete", schedule_id)
    for refused, why in (
        (("delete", schedule_id), "error: There is no such schedule.\n"),
        (("create", contact, "soon", "x"), "error: cron: must have five fields: minute, hour, day of month, month"),
    ):
        answer = await say(*refused, check=False)
        assert answer.returncode != 0
        assert answer.stderr.startswith(why)
