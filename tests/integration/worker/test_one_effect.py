"""A scripted runtime that counts what its tools do: workers die, runs are parked, and nothing is done twice."""

import asyncio
import json
from collections import Counter

import pytest
import scripted_adapter
from retinue_kit import ids
from retinue_router.crash_points import Point
from retinue_router.store.approvals import ApprovalStore

TENANT = "ten_a"
NOT_AT_ALL, ONCE = (0, False), (1, True)
"""How often a call was made, and whether its end is recorded as known."""


@pytest.fixture
async def ledger(mesh, serve, peer, run_dir):
    """The file that the runtime counts in; workers are told where the runtime is."""
    servicer = scripted_adapter.ScriptedServicer(
        peer("runtime-adapter", f"unix:{run_dir}/none.sock"), run_dir / "ledger"
    )
    mesh.settings["runtime_adapter_address"] = await serve([scripted_adapter.service(servicer)])
    yield run_dir / "ledger"
    servicer.close()


def scripted(*actions):
    return scripted_adapter.MARK + json.dumps(actions)


def calls_of(ledger, run):
    """What was done for a run: call and token."""
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [(line["name"], line["token"]) for line in lines if line["run_id"] == run and line["kind"] != "step"]


async def told_of(mesh, run, type_):
    """The events of a type: call, token and data."""
    rows = await mesh.admin.fetch(
        "select token, data from router.events where run_id = $1 and type = $2 order by token, n", run, type_
    )
    told = [(row["token"], json.loads(row["data"])) for row in rows]
    return [(data["call_id"], token, data) for token, data in told]


async def test_one_effect_wherever_a_worker_dies_about_a_pause(mesh, ledger, launch, when_over):
    """What had not begun is done, what had begun is done again only if it may be, and is unknown otherwise."""

    async def dies_at(point, again):
        folder, address = mesh.workspaces / str(point), f"unix:{mesh.workspaces}/{ids.new_id('w')}.sock"
        (folder / "armed").mkdir(parents=True)
        (folder / "armed" / point).write_text("kill")
        values = {**mesh.settings, "address": address, "lease_s": "1.2", "renew_s": "0.3"}
        environ = {f"RETINUE_{name.upper()}": value for name, value in values.items()}
        dying = launch("retinue_router.worker", **environ, RETINUE_CRASH_DIR=str(folder))
        script = scripted(["words", "Let me see.", 0], ["calls", ["a", "b"], again], ["words", "Done.", 0])
        run = await mesh.submit(script, contact=f"c{point}")
        assert await asyncio.to_thread(dying.wait, 30) != 0
        async with await mesh.start_worker():
            row = await when_over(run)
        assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 2, "Let me see.\n\nDone."), point
        return run

    async def outcomes(run):
        made = calls_of(ledger, run)
        begun = {(call, token) for call, token, _ in await told_of(mesh, run, "tool.started")}
        assert set(made) <= begun, "a call begins in the log before it is made"
        times = Counter(call for call, _ in made)
        known = {call: data["ok"] for call, _, data in await told_of(mesh, run, "tool.finished")}
        return [(times[call], known[call]) for call in ("a", "b")]

    for point, again, wanted in (
        (Point.PAUSED, False, [ONCE, ONCE]),
        (Point.PAUSE_COMMITTED, False, [NOT_AT_ALL, NOT_AT_ALL]),
        (Point.REINVOKING, True, [ONCE, ONCE]),
    ):
        assert await outcomes(await dies_at(point, again)) == wanted, point
    (first_times, first_known), (second_times, _) = await outcomes(await dies_at(Point.TOOL_FINISHED, False))
    assert (first_times, first_known) == (1, False)  # done, and nobody was there to write it down
    assert second_times <= 1


@pytest.mark.parametrize("silent", [True, False])
async def test_a_call_that_is_denied_or_not_answered_in_time_is_not_made_and_the_run_goes_on(
    mesh, ledger, monkeypatch, eventually, when_over, silent
):
    monkeypatch.setattr(scripted_adapter, "EXPIRE_S", 1 if silent else 600)
    question = ["approval", "a"], ["words", "So be it.", 0]
    await mesh.start_worker()
    run = await mesh.submit(scripted(*question))
    if not silent:
        asked = await eventually(lambda: mesh.admin.fetchval("select approval_id from router.approvals"))
        await ApprovalStore(mesh.pool).decide(TENANT, asked, "deny", "usr_1")
    row = await when_over(run)
    heard = "expired" if silent else "deny"
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, f"{heard} So be it.")
    (told,) = await mesh.admin.fetch("select data from router.events where type = 'approval.decided'")
    decided = json.loads(told["data"])
    assert (decided["decision"], decided["by"]) == ("deny", "expiry" if silent else "usr_1")
    assert calls_of(ledger, run) == []


async def test_a_run_that_waits_frees_its_worker_outlives_it_and_goes_on_once_when_it_is_allowed(
    mesh, ledger, eventually, when_over
):
    async def waits():
        return (await mesh.run(run))["state"] == "waiting"

    async with await mesh.start_worker(slots=1):
        question = ["words", "May I?", 0], ["say"], ["approval", "a", "count *"], ["calls", ["a"]]
        run = await mesh.submit(scripted(*question), contact="asks")
        await eventually(waits)
        other = await mesh.submit(scripted(["words", "Hello.", 0]), contact="other")
        assert (await when_over(other))["state"] == "succeeded"
    assert calls_of(ledger, run) == []
    (asked,) = await mesh.admin.fetch("select approval_id, pattern from router.approvals")
    assert asked["pattern"] == "count *"
    async with await mesh.start_worker(slots=1):
        approvals = ApprovalStore(mesh.pool)
        answers = [
            await approvals.decide(TENANT, asked["approval_id"], decision, "usr_1")
            for decision in ("allow_always", "allow_once", "deny")
        ]
        assert [answer["outcome"] for answer in answers] == ["decided", "closed", "closed"]
        row = await when_over(run)
        assert (await approvals.decide(TENANT, asked["approval_id"], "deny", "usr_1"))["outcome"] == "closed"
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 1, "May I?\n\nallow_always")
    assert [call for call, _ in calls_of(ledger, run)] == ["a"]
    assert [tuple(row) for row in await mesh.admin.fetch("select tool, pattern from router.allowances")] == [
        ("count", "count *")
    ]
    types = await mesh.types("asks")
    assert types[types.index("approval.requested") :] == [
        "approval.requested", "approval.decided", "assistant.message", "tool.started", "tool.finished", "run.succeeded",
    ]  # fmt: skip
