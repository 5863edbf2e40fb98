"""Workers die, stall and stop; runs end once all the same. Each test names the invariant that it holds."""

import asyncio
import json
import signal

import pytest
from retinue_kit import ids
from retinue_kit.errors import RetinueError
from retinue_kit.streams import Cursor


@pytest.fixture
def spawn(mesh, launch):
    """Start a worker as a process of its own."""

    def start():
        values = {
            **mesh.settings,
            "address": "unix:" + str(mesh.workspaces / f"{ids.new_id('w')}.sock"),
            "lease_s": "1.5",
        }
        values["renew_s"] = "0.4"
        return launch("retinue_router.worker", **{f"RETINUE_{k.upper()}": v for k, v in values.items()})

    return start


def asked(mesh, count):
    """Say whether the runtime was asked so often."""
    return lambda: len(mesh.adapter.requests) >= count


async def test_ack_is_durable_a_killed_workers_run_is_resumed_by_another_and_ends_once(
    mesh, spawn, eventually, when_over, gate
):
    async def script(request):
        yield {"text_delta": {"text": f"attempt {request.attempt}"}}
        if request.attempt == 1:
            await gate.wait()
        yield {"message_completed": {"text": f"attempt {request.attempt}"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    first = spawn()
    run = await mesh.submit("x")
    await eventually(asked(mesh, 1), timeout_s=20)
    await eventually(lambda: _has_delta(mesh), timeout_s=10)
    first.send_signal(signal.SIGKILL)
    spawn()
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 2, "attempt 2")
    types = await mesh.types()
    assert types == ["user.message", "run.resumed", "assistant.message", "run.succeeded"]
    resumed = await mesh.admin.fetchval("select data from router.events where type = 'run.resumed'")
    first_event = await mesh.admin.fetchrow("select token, n from router.events order by token, n limit 1")
    assert json.loads(resumed) == {"attempt": 2, "rewind_to": f"{first_event['token']}-{first_event['n']}"}


async def _has_delta(mesh):
    return any(e.type == "assistant.delta" for e in await mesh.told())


async def test_no_stale_write_a_stalled_worker_is_refused_after_its_successor_has_spoken(
    mesh, spawn, eventually, when_over, gate
):
    async def script(request):
        yield {"text_delta": {"text": f"attempt {request.attempt}"}}
        if request.attempt == 1:
            await gate.wait()
            yield {"text_delta": {"text": "from the grave"}}
        yield {"message_completed": {"text": f"attempt {request.attempt}"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    zombie = spawn()
    run = await mesh.submit("x")
    await eventually(lambda: _has_delta(mesh), timeout_s=20)
    zombie.send_signal(signal.SIGSTOP)
    spawn()
    row = await when_over(run)
    assert row["attempt"] == 2
    events = await mesh.admin.fetch("select token, n, type from router.events order by token, n")
    gate.set()
    zombie.send_signal(signal.SIGCONT)
    await eventually(lambda: "lease lost" in zombie.log() or "stale write refused" in zombie.log(), timeout_s=15)
    assert await mesh.admin.fetch("select token, n, type from router.events order by token, n") == events
    told = await mesh.told()
    spoke = next(i for i, e in enumerate(told) if e.cursor.token == row["token"])
    assert all(e.cursor.token == row["token"] for e in told[spoke:])
    assert b"from the grave" not in b"".join(e.json for e in told)


async def test_one_runner_two_workers_never_execute_a_session_at_once(mesh, spawn, when_over):
    active, most = 0, 0

    async def script(request):
        nonlocal active, most
        active += 1
        most = max(most, active)
        yield {"text_delta": {"text": "a"}}
        await asyncio.sleep(0.005)
        active -= 1
        yield {"message_completed": {"text": "a"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    spawn(), spawn()
    runs = [await mesh.submit(str(i)) for i in range(30)]
    rows = [await when_over(run) for run in runs]
    assert most == 1
    tokens = [row["token"] for row in rows]
    assert tokens == sorted(set(tokens))


async def test_attempts_are_bounded_a_run_that_kills_its_workers_fails(mesh, spawn, eventually, when_over, gate):
    async def script(request):
        yield {"text_delta": {"text": "a"}}
        await gate.wait()
        yield {"finished": {}}

    mesh.adapter.script = script
    run = await mesh.submit("x")
    for attempt in (1, 2, 3):
        worker = spawn()
        await eventually(asked(mesh, attempt), timeout_s=20)
        worker.send_signal(signal.SIGKILL)
    spawn()
    row = await when_over(run)
    assert row["state"] == "failed"
    assert json.loads(row["error"])["details"][0]["reason"] == "ATTEMPTS_EXHAUSTED"
    assert (await mesh.types())[-1] == "run.failed"


async def test_a_dead_holders_run_with_a_wish_to_stop_is_ended_not_run_again(mesh, spawn, eventually, when_over, gate):
    async def script(request):
        yield {"text_delta": {"text": "a"}}
        await gate.wait()
        yield {"finished": {}}

    mesh.adapter.script = script
    worker = spawn()
    run = await mesh.submit("x")
    await eventually(asked(mesh, 1), timeout_s=20)
    worker.send_signal(signal.SIGKILL)
    await mesh.pool.fetchrow("select * from cancel_run_1('ten_a', $1, 'usr_1')", run)
    spawn()
    row = await when_over(run)
    assert (row["state"], row["attempt"]) == ("cancelled", 1)
    assert len(mesh.adapter.requests) == 1


async def test_session_order_cursors_only_grow_through_faults(mesh, spawn, eventually, when_over):
    worker = spawn()
    runs = [await mesh.submit(f"m{i}") for i in range(10)]
    await eventually(asked(mesh, 3), timeout_s=20)
    worker.send_signal(signal.SIGKILL)
    spawn()
    rows = [await when_over(run) for run in runs]
    assert all(row["state"] == "succeeded" for row in rows)
    events = await mesh.admin.fetch(
        "select token, n, prev_token, prev_n, run_id, type from router.events order by token, n"
    )
    said = [e["run_id"] for e in events if e["type"] == "user.message"]
    assert said == runs
    for before, after in zip(events, events[1:], strict=False):
        assert Cursor(after["prev_token"], after["prev_n"]) == Cursor(before["token"], before["n"])
    ends = [e["run_id"] for e in events if e["type"] == "run.succeeded"]
    assert ends == runs


async def test_a_call_that_is_lost_before_the_adapter_takes_it_up_is_no_attempt(mesh, when_over):
    mesh.adapter.unheard = 2
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], len(mesh.adapter.requests)) == ("succeeded", 1, 1)


async def test_a_call_that_is_lost_after_it_was_taken_up_is_an_attempt_whatever_was_said(mesh, when_over):
    async def script(request):
        if request.attempt == 1:
            raise RetinueError.unavailable("runtime-adapter", private="Socket closed")
        yield {"message_completed": {"text": "at last"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    await mesh.start_worker()
    row = await when_over(await mesh.submit("x"))
    assert (row["state"], row["attempt"], len(mesh.adapter.requests)) == ("succeeded", 2, 2)
