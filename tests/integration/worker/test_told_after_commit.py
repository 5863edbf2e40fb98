"""Facts are told after their commit, never before: nothing that was told is ever taken back or told twice."""

import pytest

FACTS = {"user.message", "assistant.message", "tool.started", "approval.requested", "run.succeeded"}


async def ending(gate):
    yield {"text_delta": {"text": "so"}}
    await gate.wait()
    yield {"message_completed": {"text": "so"}}
    yield {"finished": {}}


async def using_a_tool(gate):
    yield {"text_delta": {"text": "so"}}
    await gate.wait()
    yield {"tool_started": {"call_id": "c1", "tool": "look"}}
    yield {"finished": {}}


async def asking(gate):
    yield {"text_delta": {"text": "so"}}
    await gate.wait()
    yield {"approval_requested": {"call_id": "c1", "tool": "rm", "summary": "rm", "expire_s": 60, "checkpoint": b"s"}}


@pytest.mark.parametrize(
    ("script", "fact"), [(ending, "run.succeeded"), (using_a_tool, "tool.started"), (asking, "approval.requested")]
)
async def test_a_fact_is_told_after_its_commit_never_before(mesh, eventually, gate, script, fact):
    mesh.adapter.script = lambda request: script(gate)
    await mesh.start_worker()
    await mesh.submit("x")

    async def types():
        return [entry.type for entry in await mesh.told()]

    async def said():
        return "assistant.delta" in await types()

    async def committing():
        sql = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query ~ 'finish_|checkpoint_|park_'"
        return await mesh.admin.fetchval(sql)

    async def told():
        return fact in await types()

    await eventually(said)
    before = FACTS & set(await types())
    async with mesh.admin.acquire() as connection, connection.transaction():
        await connection.execute("select from router.logs for update")  # the commit has to wait
        gate.set()
        await eventually(committing)
        assert FACTS & set(await types()) == before
    await eventually(told)
    assert fact in await mesh.types()
