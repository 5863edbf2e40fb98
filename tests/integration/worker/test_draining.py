"""A worker that is told to stop: what runs ends within the grace, what does not goes on with another at once."""

import asyncio
import json
import signal

import pytest
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2_grpc as adapter_grpc
from retinue_kit import ids
from retinue_kit.server import Server, Service


@pytest.fixture
def spawn(mesh, launch):
    """Start a worker as a process of its own, with a lease that a test cannot outwait."""

    def start(**settings):
        address = "unix:" + str(mesh.workspaces / f"{ids.new_id('w')}.sock")
        values = {**mesh.settings, "address": address, "lease_s": "60", "drain_s": "0.2", **settings}
        return launch("retinue_router.worker", **{f"RETINUE_{k.upper()}": v for k, v in values.items()})

    return start


@pytest.fixture
def held_once(mesh, gate):
    """A runtime whose first call speaks and then waits for the gate; answers what it was asked."""

    async def script(request):
        yield {"text_delta": {"text": "half"}}
        if len(mesh.adapter.requests) == 1:
            await gate.wait()
        yield {"message_completed": {"text": "whole"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    return mesh.adapter.requests


async def half_told(mesh):
    return any(entry.type == "assistant.delta" for entry in await mesh.told())


async def test_a_run_that_ends_within_the_grace_is_not_interrupted(mesh, spawn, held_once, gate, eventually, when_over):
    worker = spawn(drain_s="30")
    run = await mesh.submit("x")
    await eventually(lambda: half_told(mesh), timeout_s=20)
    worker.send_signal(signal.SIGTERM)
    await eventually(lambda: "draining" in worker.log())
    gate.set()
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, "whole")
    assert "run.resumed" not in await mesh.types()
    assert await eventually(lambda: worker.poll() is not None)
    assert worker.returncode == 0, worker.log()


async def test_a_worker_that_is_told_again_gives_back_what_runs_at_once(mesh, spawn, held_once, eventually):
    worker = spawn(drain_s="300")
    run = await mesh.submit("x")
    await eventually(lambda: half_told(mesh), timeout_s=20)

    async def given_back():
        row = await mesh.run(run)
        if row["state"] == "running":
            worker.send_signal(signal.SIGTERM)
        return (row["state"], row["attempt"]) == ("queued", 0)

    await eventually(given_back)
    assert await eventually(lambda: worker.poll() is not None)
    assert worker.returncode == 0, worker.log()
    assert "Traceback" not in worker.log()


@pytest.mark.parametrize("times", [1, 2])
async def test_what_runs_when_the_grace_is_over_goes_on_with_another_worker_at_once(
    mesh, spawn, held_once, eventually, when_over, times
):
    first = spawn()
    run = await mesh.submit("x")
    await eventually(lambda: half_told(mesh), timeout_s=20)
    second = spawn()
    await eventually(lambda: "serving" in second.log(), timeout_s=20)
    for _ in range(times):
        first.send_signal(signal.SIGTERM)
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, "whole"), "the attempt was given back"
    assert await mesh.types() == ["user.message", "run.resumed", "run.started", "assistant.message", "run.succeeded"]
    resumed = await mesh.admin.fetchval("select data from router.events where type = 'run.resumed'")
    assert json.loads(resumed)["attempt"] == 1
    assert await eventually(lambda: first.poll() is not None)
    assert first.returncode == 0, first.log()
    assert mesh.adapter.aborted == 1, "the model is not paid for what nobody hears"


async def test_a_released_run_goes_on_from_its_checkpoint(mesh, eventually, when_over, gate):
    async def script(request):
        if not request.checkpoint:
            yield {"tool_started": {"call_id": "c1", "tool": "look", "arguments": {}}}
            yield {"checkpoint": {"state": b"step"}}
            yield {"tool_finished": {"call_id": "c1", "ok": True, "result": "seen"}}
            yield {"text_delta": {"text": "half"}}
            await gate.wait()
        yield {"message_completed": {"text": "whole"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    first = await mesh.start_worker(lease_s=60, drain_s=0)
    run = await mesh.submit("x")
    await eventually(lambda: half_told(mesh))
    await mesh.start_worker()
    await first.aclose()
    row = await when_over(run)
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    assert [request.checkpoint for request in mesh.adapter.requests] == [b"", b"step"]
    types = await mesh.types()
    assert types.count("run.started") == 1
    assert types.count("tool.started") == 1


async def test_a_wish_to_stop_wins_over_a_release(mesh, held_once, eventually, when_over):
    first = await mesh.start_worker(lease_s=60, renew_s=30, drain_s=0)
    run = await mesh.submit("x")
    await eventually(lambda: half_told(mesh))
    await mesh.pool.fetchrow("select * from cancel_run_1('ten_a', $1, 'usr_1')", run)
    await first.aclose()
    row = await when_over(run)
    assert row["state"] == "cancelled"


async def test_a_parked_run_is_left_to_its_approval(mesh, eventually):
    async def asking(request):
        yield {
            "approval_requested": {
                "call_id": "c1", "tool": "rm", "summary": "rm -r x", "expire_s": 600, "checkpoint": b"step",
            }
        }  # fmt: skip

    mesh.adapter.script = asking
    worker = await mesh.start_worker(drain_s=0)
    run = await mesh.submit("x")

    async def waiting():
        return (await mesh.run(run))["state"] == "waiting"

    await eventually(waiting)
    before = await mesh.types()
    await worker.aclose()
    assert await waiting()
    assert await mesh.types() == before


async def test_a_run_that_a_stopping_adapter_cuts_off_keeps_its_attempt_and_goes_on_with_its_successor(
    mesh, serve, held_once, eventually, when_over
):
    address = mesh.settings["runtime_adapter_address"]
    await mesh.start_worker()
    run = await mesh.submit("x")
    await eventually(lambda: half_told(mesh))
    await serve.server(address).drain(0.6)

    async def put_back():
        row = await mesh.run(run)
        return (row["state"], row["attempt"]) == ("queued", 0)

    await eventually(put_back)
    add = adapter_grpc.add_RuntimeAdapterServiceServicer_to_server
    successor = Server(address, [Service(add, mesh.adapter, "retinue.runtime_adapter.v1.RuntimeAdapterService")])
    await successor.start()
    try:
        row = await when_over(run)
        assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, "whole")
    finally:
        await successor.drain(0)


async def test_a_flood_loses_nothing_when_workers_take_turns_in_stopping(mesh, eventually, when_over):
    async def script(request):
        yield {"text_delta": {"text": "a"}}
        await asyncio.sleep(0.01)
        yield {"message_completed": {"text": "a"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    workers = [await mesh.start_worker(lease_s=60, drain_s=0) for _ in range(2)]
    runs = [await mesh.submit("x", contact=f"c{n % 8}") for n in range(80)]
    for count in (8, 16, 24, 32):
        await eventually(lambda count=count: len(mesh.adapter.requests) >= count)
        await workers.pop(0).aclose()
        workers.append(await mesh.start_worker(lease_s=60, drain_s=0))
    rows = [await when_over(run) for run in runs]
    assert {(row["state"], row["attempt"]) for row in rows} == {("succeeded", 1)}
