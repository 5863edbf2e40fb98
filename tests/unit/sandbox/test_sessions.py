"""Sessions, over boxes that run nothing: who gets which box, for how long, and who is refused."""

import asyncio
import os
import threading
from contextlib import aclosing

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox import running
from retinue_sandbox.bwrap.agent_box import lost
from retinue_sandbox.ports import Command, Exit, Isolation, Limits, Outcome, Piece, Profile, Workspace
from retinue_sandbox.sessions import Bounds, Caller, Sessions

DONE, FOREVER, CHATTY, SLOW = ("done",), ("forever",), ("chatty",), ("slow",)
PLAIN = Profile()
WIDE = Profile(egress=("example.com:443",))


class FakeBox:
    isolation = Isolation.NAMESPACE

    def __init__(self, tenant_id, profile, may_go):
        self.tenant_id, self.profile, self.may_go = tenant_id, profile, may_go
        self.lost = asyncio.Event()
        self.at_work = 0

    async def run(self, work, limits):
        self.at_work += 1
        try:
            if self.lost.is_set():
                raise lost()
            yield Piece("stdout", b"hi")
            if work.argv == FOREVER:
                await self.lost.wait()
                raise lost()
            while work.argv == CHATTY and not self.lost.is_set():
                yield Piece("stdout", b"more")
            yield Exit(Outcome.EXITED, duration_ms=500 if work.argv == SLOW else 1)
        finally:
            self.at_work -= 1

    async def close(self):
        self.lost.set()
        await self.may_go.wait()


class FakeBackend:
    name = "fake"
    isolation = Isolation.NAMESPACE

    def __init__(self):
        self.boxes = []
        self.held = 0
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def check(self):
        return []

    async def open(self, workspace, profile):
        await asyncio.sleep(0)
        self.boxes.append(FakeBox(workspace.tenant_id, profile, self.may_go))
        return self.boxes[-1]

    async def held_bytes(self, tenant_id):
        return self.held

    async def close(self):
        pass


class FakeWorkspaces:
    def __init__(self):
        self.held_max = 1000
        self.problem = ""
        self.fds = []

    def open(self, tenant_id):
        self.fds.append(os.open("/", os.O_PATH))
        return Workspace(tenant_id, self.fds[-1], 1000)

    async def over_quota(self, tenant_id, held_bytes=0):
        return self.problem or ("Too much is held." if held_bytes > self.held_max else "")


class Clock:
    def __init__(self):
        self.time = 1000.0

    def monotonic(self):
        return self.time

    now = monotonic


class House:
    """Sessions and all that they stand on."""

    def __init__(self, **bounds):
        self.backend, self.workspaces, self.clock = FakeBackend(), FakeWorkspaces(), Clock()
        self.sessions = Sessions(self.backend, self.workspaces, Bounds(**bounds), self.clock)

    def begin(self, argv=DONE, token=1, session="ses_a", tenant="ten_a", profile=PLAIN, **more):
        caller = Caller(tenant, session, token)
        return self.sessions.run(caller, profile, Command(argv), Limits(), **more)

    async def exec(self, *arguments, **named):
        async with aclosing(self.begin(*arguments, **named)) as items:
            return [item async for item in items][-1]

    async def open(self, token=1, session="ses_a", tenant="ten_a", profile=PLAIN):
        return await self.sessions.open(Caller(tenant, session, token), profile)


@pytest.fixture
async def house():
    made = House()
    yield made
    await made.sessions.close()
    assert all(box.lost.is_set() and not box.at_work for box in made.backend.boxes)


async def refusal(awaitable):
    with pytest.raises(RetinueError) as caught:
        await awaitable
    return caught.value


async def under_way(house, **named):
    """Begin what goes on for ever; answers it, having said something."""
    items = house.begin(FOREVER, **named)
    assert await anext(items) == Piece("stdout", b"hi")
    return items


async def test_executions_of_a_session_share_its_box_and_others_have_their_own(house):
    assert await house.open() == (Isolation.NAMESPACE, False)
    assert await house.open() == (Isolation.NAMESPACE, True)
    for session, tenant in (("ses_a", "ten_a"), ("ses_b", "ten_a"), ("ses_a", "ten_b"), ("ses_a", "ten_a")):
        assert (await house.exec(session=session, tenant=tenant)).outcome == Outcome.EXITED
    assert [box.tenant_id for box in house.backend.boxes] == ["ten_a", "ten_a", "ten_b"]
    assert house.sessions.count == 3
    for fd in house.workspaces.fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_calls_at_the_same_time_open_one_box(house):
    await asyncio.gather(*(house.exec() for _ in range(5)), house.open())
    assert len(house.backend.boxes) == 1


async def test_no_stale_write_a_lower_token_is_refused_everywhere(house):
    await house.open(token=2)
    caller = Caller("ten_a", "ses_a", 1)
    for call in (house.open(token=1), house.exec(token=1), house.sessions.close_session(caller)):
        assert (await refusal(call)).reason == Reason.STALE_FENCING_TOKEN
    with pytest.raises(RetinueError):
        house.sessions.fence("ten_a", "ses_a", 1)
    assert (await house.exec(token=2)).outcome == Outcome.EXITED
    assert (await house.exec(token=1, session="ses_b")).outcome == Outcome.EXITED


async def test_no_stale_write_a_higher_token_ends_what_runs_under_a_lower_one(house):
    items = await under_way(house, token=1)
    rest = asyncio.create_task(refusal(anext(items)))
    await asyncio.sleep(0)
    await house.open(token=2)
    assert house.backend.boxes[0].at_work == 0, "it has ended once the new attempt goes on"
    assert (await rest).reason == Reason.STALE_FENCING_TOKEN
    assert (await house.exec(token=2)).outcome == Outcome.EXITED
    assert len(house.backend.boxes) == 1


async def test_no_stale_write_a_fence_of_another_thread_ends_it_too(house):
    items = await under_way(house, token=1)
    rest = asyncio.create_task(refusal(anext(items)))
    await asyncio.to_thread(house.sessions.fence, "ten_a", "ses_a", 2)
    assert (await rest).reason == Reason.STALE_FENCING_TOKEN


async def test_no_stale_write_one_who_does_not_read_cannot_hold_up_the_next_attempt(house, monkeypatch):
    monkeypatch.setattr("retinue_sandbox.sessions.QUIET_S", 0.01)
    items = house.begin(CHATTY, token=1)
    await anext(items)
    await house.open(token=2)
    first, second = house.backend.boxes
    assert first.lost.is_set()
    assert not second.lost.is_set()
    assert (await refusal(anext(items))).reason == Reason.STALE_FENCING_TOKEN


async def test_a_one_shot_has_a_box_of_its_own_that_ends_with_it(house):
    await house.exec(one_shot=True)
    (box,) = house.backend.boxes
    assert box.lost.is_set()
    assert house.sessions.count == 0
    items = await under_way(house, token=1, one_shot=True)
    rest = asyncio.create_task(refusal(anext(items)))
    await asyncio.sleep(0)
    await house.open(token=2)
    assert (await rest).reason == Reason.STALE_FENCING_TOKEN


async def test_the_end_of_a_one_shot_is_told_once_its_box_is_killed_and_bounded_it_counts_until_it_is_gone():
    house = House(tenant_boxes_max=1)
    house.backend.may_go.clear()
    assert (await house.exec(one_shot=True)).outcome == Outcome.EXITED
    assert house.backend.boxes[0].lost.is_set()
    second = asyncio.create_task(house.exec(one_shot=True))
    await asyncio.wait([second], timeout=0.02)
    assert len(house.backend.boxes) == 1, "the first is not gone"
    house.backend.may_go.set()
    assert (await second).outcome == Outcome.EXITED
    await house.sessions.close()


async def test_leaving_an_execution_ends_it_and_the_session_goes_on(house):
    items = await under_way(house)
    await items.aclose()
    assert house.backend.boxes[0].at_work == 0
    assert (await house.exec()).outcome == Outcome.EXITED
    assert len(house.backend.boxes) == 1


async def test_a_lost_box_is_told_of_and_the_next_call_gets_a_new_one(house):
    items = await under_way(house)
    house.backend.boxes[0].lost.set()
    error = await refusal(anext(items))
    assert (error.reason, error.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "box_lost"})
    assert (await house.exec()).outcome == Outcome.EXITED
    assert len(house.backend.boxes) == 2


async def test_closing_a_session_ends_what_runs_in_it(house):
    items = await under_way(house)
    rest = asyncio.create_task(anext(items))
    await asyncio.sleep(0)
    assert await house.sessions.close_session(Caller("ten_a", "ses_a", 1))
    end = await rest
    assert (end.outcome, end.exit_code) == (Outcome.CANCELLED, 137)
    assert not await house.sessions.close_session(Caller("ten_a", "ses_a", 1))
    assert house.sessions.count == 0


async def test_what_is_no_longer_granted_ends_with_the_box_that_has_it(house):
    await house.open(token=1, profile=WIDE)
    assert (await house.open(token=1, profile=WIDE))[1]
    assert not (await house.open(token=1))[1]
    assert (await house.open(token=2))[1]
    assert [box.profile for box in house.backend.boxes] == [WIDE, Profile()]
    assert house.backend.boxes[0].lost.is_set()


async def test_a_box_in_which_something_runs_is_not_exchanged_below_it(house):
    items = await under_way(house)
    error = await refusal(house.open(token=1, profile=WIDE))
    assert (error.reason, bool(error.retry_after_s)) == (Reason.QUEUE_FULL, True)
    await items.aclose()
    assert not (await house.open(token=1, profile=WIDE))[1]


async def test_whoever_leaves_while_files_are_opened_leaves_nothing_open(house, eventually):
    held, opened = threading.Event(), []

    def slow(tenant_id):
        held.wait(10)
        opened.append(os.open("/", os.O_PATH))
        return Workspace(tenant_id, opened[-1], 1000)

    house.workspaces.open = slow
    opening = asyncio.create_task(house.open())
    await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    held.set()

    def closed():
        return opened and not os.path.exists(f"/proc/self/fd/{opened[0]}")

    await eventually(closed)


async def test_a_weaker_box_than_asked_for_is_refused(house):
    asked = Profile(Isolation.GVISOR)
    for call in (house.open(profile=asked), house.exec(profile=asked)):
        error = await refusal(call)
        assert (error.reason, error.metadata) == (Reason.POLICY_DENIED, {"isolation": "namespace"})
    assert house.backend.boxes == []


async def test_executions_of_a_tenant_are_bounded(house):
    house = House(tenant_executions_max=2)
    begun = [await under_way(house) for _ in range(2)]
    error = await refusal(house.exec())
    assert (error.reason, error.metadata) == (Reason.QUOTA_EXCEEDED, {"quota": "executions"})
    assert error.retry_after_s
    assert (await house.exec(tenant="ten_b")).outcome == Outcome.EXITED
    await begun.pop().aclose()
    assert (await house.exec()).outcome == Outcome.EXITED
    await begun.pop().aclose()
    await house.sessions.close()


@pytest.mark.parametrize(("bounds", "tenant"), [({"boxes_max": 2}, "ten_b"), ({"tenant_boxes_max": 2}, "ten_a")])
async def test_boxes_are_bounded_and_the_one_idle_longest_gives_way(bounds, tenant):
    house = House(**bounds)
    await house.open(session="ses_1")
    house.clock.time += 1
    await house.open(session="ses_2")
    error = await refusal(house.open(session="ses_3", tenant=tenant))
    assert error.reason == Reason.QUEUE_FULL
    assert error.retry_after_s
    house.clock.time += 5
    assert not (await house.open(session="ses_3", tenant=tenant))[1]
    assert [box.lost.is_set() for box in house.backend.boxes] == [True, False, False]
    await house.sessions.close()


async def test_a_box_in_which_nothing_has_run_for_long_is_ended(eventually):
    house = House(idle_s=0.02)
    house.sessions.start()
    busy = await under_way(house, session="ses_busy")
    await house.open(session="ses_idle")
    house.clock.time += 1
    await eventually(lambda: house.backend.boxes[1].lost.is_set())
    await eventually(lambda: house.sessions.count == 1)
    assert not house.backend.boxes[0].lost.is_set()
    await busy.aclose()
    await house.sessions.close()


async def test_who_has_too_many_files_is_stopped_and_executes_nothing_until_some_are_gone(house, monkeypatch):
    monkeypatch.setattr(running, "LOOK_S", 0.01)
    house.workspaces.problem = "The files take up too much."
    items = await under_way(house)
    end = await anext(items)
    assert (end.outcome, end.message) == (Outcome.DISK, "The files take up too much.")
    error = await refusal(house.exec())
    assert (error.reason, error.metadata) == (Reason.QUOTA_EXCEEDED, {"quota": "files"})
    house.workspaces.problem = ""
    assert (await house.exec()).outcome == Outcome.EXITED


async def test_files_without_a_name_that_are_held_open_count_with_the_others(house, monkeypatch):
    monkeypatch.setattr(running, "LOOK_S", 0.01)
    house.backend.held = house.workspaces.held_max + 1
    items = await under_way(house)
    end = await anext(items)
    assert (end.outcome, end.message) == (Outcome.DISK, "Too much is held.")
    house.backend.held = 0
    assert (await house.exec()).outcome == Outcome.EXITED


async def test_an_execution_that_ends_with_too_many_files_is_told_so(house):
    house.workspaces.problem = "The files take up too much."
    end = await house.exec(SLOW)
    assert (end.outcome, end.message) == (Outcome.DISK, "The files take up too much.")


async def test_files_of_a_quick_execution_are_counted_behind_its_answer(house, monkeypatch, eventually):
    monkeypatch.setattr("retinue_sandbox.quota.LOOK_S", 0.01)
    house.workspaces.problem = "The files take up too much."
    assert (await house.exec(DONE)).outcome == Outcome.EXITED
    await eventually(lambda: house.sessions._quota._over == {"ten_a"})
    assert (await refusal(house.exec())).reason == Reason.QUOTA_EXCEEDED
