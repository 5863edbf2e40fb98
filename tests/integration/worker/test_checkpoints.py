"""A run goes on from the step that was recorded last: nothing is told twice, and all that was used is counted."""

import json
import signal

import pytest
from retinue_kit import ids
from retinue_router.worker.leases import LeaseStore

STEPS = 3


def usage(tokens):
    return {"input_tokens": tokens, "output_tokens": 1, "model": "fake"}


@pytest.fixture
def spawn(mesh, launch):
    """Start a worker whose lease is short, as a process."""

    def start():
        name = f"unix:{mesh.workspaces}/{ids.new_id('w')}.sock"
        values = {**mesh.settings, "address": name, "lease_s": "1.2", "renew_s": "0.3"}
        return launch("retinue_router.worker", **{f"RETINUE_{k.upper()}": v for k, v in values.items()})

    return start


def stepping(gate, *, lost_after):
    """A runtime of three steps, which goes on from its checkpoint; its first attempt ends in the middle of a step."""

    async def script(request):
        done = int(request.checkpoint or b"0")
        for step in range(1, STEPS + 1):
            if step <= done:
                # What a checkpoint holds, a runtime may tell again; it was recorded.
                yield {"message_completed": {"text": f"step {step}"}}
                continue
            yield {"text_delta": {"text": f"step {step}, attempt {request.attempt}"}}
            if request.attempt == 1 and step > lost_after:
                await gate.wait()
            yield {"message_completed": {"text": f"step {step}"}}
            yield {"checkpoint": {"state": str(step).encode()}}
        yield {"finished": {"usage": usage(10)}}

    return script


async def test_a_lost_workers_run_goes_on_after_its_second_step(mesh, spawn, eventually, when_over, gate):
    mesh.adapter.script = stepping(gate, lost_after=2)
    first = spawn()
    run = await mesh.submit("x")
    await eventually(lambda: _told(mesh, "step 3, attempt 1"), timeout_s=30)
    first.send_signal(signal.SIGKILL)
    spawn()
    row = await when_over(run)
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 2, "step 1\n\nstep 2\n\nstep 3")
    assert [r.checkpoint for r in mesh.adapter.requests] == [b"", b"2"]
    said = await mesh.admin.fetch(
        "select token, n, data from router.events where type = 'assistant.message' order by token, n"
    )
    assert [json.loads(one["data"])["text"] for one in said] == ["step 1", "step 2", "step 3"]
    resumed = json.loads(await mesh.admin.fetchval("select data from router.events where type = 'run.resumed'"))
    # All after the second step is told again, and nothing before.
    assert resumed == {"attempt": 2, "rewind_to": f"{said[1]['token']}-{said[1]['n']}"}
    deltas = [json.loads(e.json)["data"]["text"] for e in await mesh.told() if e.type == "assistant.delta"]
    assert deltas == ["step 1, attempt 1", "step 2, attempt 1", "step 3, attempt 1", "step 3, attempt 2"]


async def _told(mesh, text):
    return any(text.encode() in e.json for e in await mesh.told())


async def test_a_tools_end_is_recorded_together_with_the_step_that_it_was(mesh, monkeypatch, when_over):
    """Between the two nothing can be lost, so that what is recorded as finished is not done again."""
    commit, commits = LeaseStore.checkpoint, []

    async def noted(self, *args):
        commits.append(([event["type"] for event in json.loads(args[3])], b"after" in args[4]))
        return await commit(self, *args)

    async def script(request):
        yield {"tool_started": {"call_id": "c1", "tool": "count"}}
        yield {"checkpoint": {"state": b"after"}}
        yield {"tool_finished": {"call_id": "c1", "ok": True, "result": "1"}}
        yield {"text_delta": {"text": "1"}}
        yield {"message_completed": {"text": "1"}}
        yield {"finished": {"usage": usage(1)}}

    monkeypatch.setattr(LeaseStore, "checkpoint", noted)
    mesh.adapter.script = script
    await mesh.start_worker()
    assert (await when_over(await mesh.submit("count")))["state"] == "succeeded"
    assert commits == [(["run.started", "tool.started"], False), (["tool.finished"], True)]


async def test_what_every_attempt_used_is_counted_in_the_end(mesh, when_over):
    async def script(request):
        yield {"text_delta": {"text": "x"}}
        if request.attempt < 3:
            error = {"code": 14, "message": "The model broke off."}
            yield {"failed": {"error": error, "retryable": True, "usage": usage(request.attempt)}}
            return
        yield {"message_completed": {"text": "x"}}
        yield {"finished": {"usage": usage(10)}}

    mesh.adapter.script = script
    await mesh.start_worker()
    run = await mesh.submit("x")
    row = await when_over(run)
    assert row["state"] == "succeeded"
    assert json.loads(row["usage"]) == {"input_tokens": 13, "output_tokens": 3, "model": "fake"}
    ended = await mesh.admin.fetchval("select data from router.events where type = 'run.succeeded'")
    assert json.loads(ended)["usage"] == json.loads(row["usage"])
    rows = await mesh.admin.fetch("select attempt, input_tokens from router.usage_logs order by attempt")
    assert [(r["attempt"], r["input_tokens"]) for r in rows] == [(1, 1), (2, 2), (3, 10)]
