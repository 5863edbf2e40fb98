"""Commits whose answers are lost, wishes that come while something is committed, and what no store can hold."""

import asyncio

import asyncpg
import pytest
from retinue_kit import streams
from retinue_kit.errors import RetinueError
from retinue_router.store.contacts import ContactStore
from retinue_router.worker.leases import LeaseStore


@pytest.fixture
def losing(monkeypatch):
    """Make a method of the store lose its next answer: what it did is done, but nobody hears of it."""

    def lose(name):
        method = getattr(LeaseStore, name)
        lost = []

        async def once(self, *args, **kwargs):
            answer = await method(self, *args, **kwargs)
            if not lost and answer is not None:
                lost.append(answer)
                raise RetinueError.unavailable("postgres", private="the answer was lost")
            return answer

        monkeypatch.setattr(LeaseStore, name, once)
        return lost

    return lose


async def using_a_tool(request):
    yield {"text_delta": {"text": "Let me look."}}
    yield {"message_completed": {"text": "Let me look."}}
    yield {"tool_started": {"call_id": "c1", "tool": "look"}}
    yield {"tool_finished": {"call_id": "c1", "ok": True, "result": "sun", "duration_ms": 1}}
    yield {"message_completed": {"text": "Sunny."}}
    yield {"finished": {"usage": {"input_tokens": 3, "output_tokens": 2, "model": "fake"}}}


@pytest.mark.parametrize("method", ["claim", "checkpoint", "finish"])
async def test_a_lost_answer_of_a_commit_neither_repeats_nor_loses_anything(mesh, losing, when_over, method):
    mesh.adapter.script = using_a_tool
    lost = losing(method)
    await mesh.start_worker()
    run = await mesh.submit("the weather?")
    row = await when_over(run)
    assert lost
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    told = ["assistant.message", "tool.started", "tool.finished", "assistant.message"]
    assert await mesh.types() == ["user.message", "run.started", *told, "run.succeeded"]
    assert len(mesh.adapter.requests) == 1


async def test_one_effect_a_lost_answer_of_a_pause_s_commit_begins_nothing_twice(mesh, losing, when_over):
    async def planning(request):
        if not request.checkpoint:
            yield {"paused": {"state": b"begun", "starting": [{"call_id": "c1", "tool": "look"}]}}
            return
        yield {"checkpoint": {"state": b"done"}}
        yield {"tool_finished": {"call_id": "c1", "ok": True, "result": "sun"}}
        yield {"message_completed": {"text": "Sunny."}}
        yield {"finished": {}}

    mesh.adapter.script = planning
    lost = losing("checkpoint")
    await mesh.start_worker()
    row = await when_over(await mesh.submit("the weather?"))
    assert lost
    assert (row["state"], row["attempt"]) == ("succeeded", 1)
    told = ["tool.started", "tool.finished", "assistant.message"]
    assert await mesh.types() == ["user.message", "run.started", *told, "run.succeeded"]
    assert [request.checkpoint for request in mesh.adapter.requests] == [b"", b"begun"]


async def test_a_lost_answer_of_parking_leaves_the_run_parked(mesh, losing, eventually):
    async def asking(request):
        question = {"call_id": "c1", "tool": "rm", "summary": "rm", "expire_s": 60, "checkpoint": b"s"}
        yield {"approval_requested": question}

    mesh.adapter.script = asking
    lost = losing("park")
    await mesh.start_worker()
    run = await mesh.submit("remove it")
    await eventually(lambda: lost)

    async def parked():
        row = await mesh.run(run)
        return row["state"] == "waiting" and not await mesh.ring.waiting()

    assert await eventually(parked)
    assert (await mesh.run(run))["attempt"] == 1
    assert (await mesh.types()).count("approval.requested") == 1


async def test_a_wish_to_stop_that_meets_a_commit_ends_the_run_at_once(mesh, monkeypatch, eventually, when_over):
    checkpoint, committed = LeaseStore.checkpoint, asyncio.Event()

    async def slow(self, *args):
        answer = await checkpoint(self, *args)
        if not committed.is_set():
            committed.set()
            await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(LeaseStore, "checkpoint", slow)
    mesh.adapter.script = using_a_tool
    await mesh.start_worker()
    run = await mesh.submit("the weather?")
    await asyncio.wait_for(committed.wait(), 5)
    following = await mesh.submit("never mind", busy="interrupt")
    row = await when_over(run)
    assert (row["state"], row["attempt"]) == ("cancelled", 1)
    assert (row["output"], row["token"]) == ("Let me look.", 1)  # ended by its own holder, not after its lease ran out
    assert (await when_over(following))["state"] == "succeeded"
    types = await mesh.types()
    assert types.count("tool.started") == 2
    assert types.count("run.cancelled") == 1


async def test_a_commit_that_loses_a_race_is_tried_again_without_asking_the_model(mesh, monkeypatch, when_over):
    tries = []

    async def refused(self, query, *args, **kwargs):
        if "finish_2" in query and not tries:
            tries.append(query)
            raise asyncpg.DeadlockDetectedError("deadlock detected")
        return await fetchrow(self, query, *args, **kwargs)

    fetchrow = asyncpg.Pool.fetchrow
    monkeypatch.setattr(asyncpg.Pool, "fetchrow", refused)
    await mesh.start_worker()
    row = await when_over(await mesh.submit("hello"))
    assert tries
    assert (row["state"], row["attempt"], len(mesh.adapter.requests)) == ("succeeded", 1, 1)


async def test_a_card_with_a_null_character_does_not_break_the_run(mesh, when_over):
    async def card(request):
        yield {"card": {"kind": "k\0", "title": "t\0", "body": {"a\0": ["b\0", {"c": "d\0"}]}}}
        yield {"message_completed": {"text": "Look."}}
        yield {"finished": {"usage": {"input_tokens": 3, "output_tokens": 2, "model": "fa\0ke"}}}

    mesh.adapter.script = card
    await mesh.start_worker()
    row = await when_over(await mesh.submit("a card"))
    assert (row["state"], row["attempt"]) == ("succeeded", 1)


async def test_what_a_holder_tells_of_a_contact_after_its_deletion_is_not_kept(mesh, monkeypatch, eventually):
    finish, deleted = LeaseStore.finish, asyncio.Event()

    async def and_then_deleted(self, ticket, *args, **kwargs):
        ended = await finish(self, ticket, *args, **kwargs)
        store = ContactStore(mesh.pool)
        for log, token in (await store.delete(ticket.tenant_id, "ada", ticket.log_id)).items():
            await streams.Bus(mesh.redis).delete(streams.log_key(ticket.tenant_id, log), through=token)
        deleted.set()
        return ended

    monkeypatch.setattr(LeaseStore, "finish", and_then_deleted)
    stack = await mesh.start_worker()
    await mesh.submit("a secret")
    await asyncio.wait_for(deleted.wait(), 5)
    await stack.aclose()  # drains what is under way
    assert await mesh.told() == []

    monkeypatch.undo()
    await mesh.start_worker()
    await mesh.submit("hello again")
    assert await eventually(lambda: _has_ended(mesh))


async def _has_ended(mesh):
    return [entry.type for entry in await mesh.told()][-1:] == ["run.succeeded"]
