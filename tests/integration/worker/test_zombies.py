"""no_stale_write: a worker is stopped past its lease, at the worst moment, and wakes: each sink refuses and counts."""

import asyncio
import json
import os
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families
from retinue_kit import ids
from retinue_router.crash_points import Point
from retinue_router.ring import Ticket
from retinue_router.worker import projection
from retinue_router.worker.projection import Projector

TENANT = "ten_a"


class Worker:
    """A worker as a process of its own, which can be made to stop at a point."""

    def __init__(self, process, folder, metrics):
        self.process = process
        self._folder = folder
        self._metrics = metrics

    def arm(self, point):
        (self._folder / "armed").mkdir(parents=True, exist_ok=True)
        (self._folder / "armed" / point).write_text("stop")

    def stopped_at(self, point):
        return (self._folder / "fired" / f"{point}.{self.process.pid}").exists() and self._state() == "T"

    def _state(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            return file.read().rpartition(") ")[2][0]

    def stop(self):
        self.process.send_signal(signal.SIGSTOP)

    def wake(self):
        self.process.send_signal(signal.SIGCONT)

    async def counted(self, name, **labels):
        reader, writer = await asyncio.open_unix_connection(self._metrics)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        body = (await reader.read()).decode().partition("\r\n\r\n")[2]
        writer.close()
        samples = [s for family in text_string_to_metric_families(body) for s in family.samples]
        return next((s.value for s in samples if s.name == name and s.labels == labels), 0.0)

    async def refused(self, sink):
        return await self.counted("retinue_stale_writes_refused_total", sink=sink)


@pytest.fixture
def spawn(mesh, launch):
    """Start a worker whose lease is short."""

    def start():
        name = ids.new_id("w")
        values = {**mesh.settings, "address": f"unix:{mesh.workspaces}/{name}.sock", "lease_s": "1.2", "renew_s": "0.3"}
        metrics, folder = f"{mesh.workspaces}/{name}.m", mesh.workspaces / f"{name}.crash"
        environ = {f"RETINUE_{k.upper()}": v for k, v in values.items()}
        process = launch(
            "retinue_router.worker", **environ, RETINUE_METRICS_ADDRESS=f"unix:{metrics}", RETINUE_CRASH_DIR=str(folder)
        )
        return Worker(process, folder, metrics)

    return start


async def in_steps(request):
    yield {"text_delta": {"text": f"attempt {request.attempt}"}}
    yield {"message_completed": {"text": f"attempt {request.attempt}"}}
    yield {"checkpoint": {"state": b"1"}}
    yield {"text_delta": {"text": "and on"}}
    yield {"message_completed": {"text": "and on"}}
    yield {"finished": {}}


async def facts(mesh):
    return await mesh.admin.fetch("select token, n, type, data from router.events order by token, n")


def lines(mesh):
    path = mesh.workspaces / TENANT / "contacts" / "ada" / "thread.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("point", [Point.CHECKPOINT_COMMITTING, Point.FINISH_COMMITTING])
async def test_a_commit_of_a_woken_worker_is_refused_and_counted(mesh, spawn, eventually, when_over, point):
    mesh.adapter.script = in_steps
    zombie = spawn()
    zombie.arm(point)
    run = await mesh.submit("x")
    await eventually(lambda: zombie.stopped_at(point), timeout_s=30)
    successor = spawn()
    row = await when_over(run)
    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    before = await facts(mesh)
    zombie.wake()
    await eventually(lambda: _is(zombie.refused("postgres"), 1), timeout_s=30)
    assert await facts(mesh) == before
    assert await mesh.run(run) == row
    assert await successor.counted("retinue_runs_resumed_total") == 1
    assert await successor.refused("postgres") == 0


async def _is(awaited, wanted):
    return await awaited == wanted


async def test_what_a_woken_worker_tells_the_stream_is_refused_and_counted(mesh, spawn, eventually, when_over):
    mesh.adapter.script = in_steps
    zombie = spawn()
    run = await mesh.submit("warm up", contact="eve")
    await when_over(run)
    zombie.arm(Point.APPENDING)
    run = await mesh.submit("x")
    await eventually(lambda: zombie.stopped_at(Point.APPENDING), timeout_s=30)
    spawn()
    row = await when_over(run)
    told = await eventually(lambda: _ended(mesh))
    zombie.wake()
    await eventually(lambda: _is(zombie.refused("stream"), 1), timeout_s=30)
    await eventually(lambda: _is(zombie.counted("retinue_leases_lost_total"), 1), timeout_s=30)
    assert await mesh.told() == told
    assert {e.cursor.token for e in told} == {row["token"]}


async def _ended(mesh):
    told = await mesh.told()
    return told if told and told[-1].type == "run.succeeded" else None


async def test_a_worker_stopped_amid_a_projection_blocks_nobody_and_writes_nothing_twice(
    mesh, spawn, eventually, when_over
):
    zombie = spawn()
    zombie.arm(Point.PROJECTING)
    await when_over(await mesh.submit("one"))
    await eventually(lambda: zombie.stopped_at(Point.PROJECTING), timeout_s=30)
    spawn()
    await when_over(await mesh.submit("two"))
    await eventually(lambda: len(lines(mesh)) == 4, timeout_s=30)
    before = lines(mesh)
    zombie.wake()
    await eventually(lambda: _is(zombie.refused("workspace"), 1), timeout_s=30)
    assert lines(mesh) == before
    assert [line["text"] for line in before] == ["one", "one ", "two", "two "]


@pytest.fixture
def thread(mesh):
    """Bring a contact's file up to date, without a worker."""
    projector = Projector(mesh.pool, mesh.workspaces)
    return lambda: projector.bring_up(Ticket(TENANT, "log_ada"), "ada")


async def test_a_line_has_its_place_however_late_it_is_written(mesh, when_over, thread, monkeypatch):
    stack = await mesh.start_worker()
    await when_over(await mesh.submit("one"))
    await stack.aclose()
    path = mesh.workspaces / TENANT / "contacts" / "ada" / "thread.jsonl"
    path.unlink()
    held: list[tuple[bytes, int]] = []
    with monkeypatch.context() as patched:
        # A worker that is stopped between its last look and its write.
        patched.setattr(projection.os, "pwrite", lambda file, data, at: held.append((data, at)))
        await thread()
    stack = await mesh.start_worker()
    await when_over(await mesh.submit("two"))
    await stack.aclose()
    before = path.read_bytes()
    assert len(lines(mesh)) == 4
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), *held[0])
    assert path.read_bytes() == before


async def test_a_file_that_a_crash_cut_off_or_somebody_spoilt_is_made_whole(mesh, when_over, thread):
    stack = await mesh.start_worker()
    for text in ("one", "two"):
        await when_over(await mesh.submit(text))
    await stack.aclose()
    path = mesh.workspaces / TENANT / "contacts" / "ada" / "thread.jsonl"
    whole = path.read_bytes()
    for spoilt in (whole[:-7], whole[:20], b"", b"not ours\n", whole + b"{}\n"):
        path.write_bytes(spoilt)
        await thread()
        assert path.read_bytes() == whole, spoilt[:20]


async def test_a_deleted_contacts_folder_is_not_made_again(mesh, when_over, thread):
    stack = await mesh.start_worker()
    await when_over(await mesh.submit("one"))
    await stack.aclose()
    await mesh.pool.fetch("select * from delete_contact_1('ten_a', 'ada', 'log_ada')")
    folder = mesh.workspaces / TENANT / "contacts" / "ada"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    await thread()
    assert not folder.exists()
