"""Who is admitted to a gateway: in turn, within bounds, and no slot is lost or doubled whatever is cancelled."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw.admission import Admission


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def entering(admission: Admission, tenant_id: str, entered: list[str]) -> "asyncio.Task[None]":
    async def enter() -> None:
        await admission.enter(tenant_id)
        entered.append(tenant_id)

    return asyncio.create_task(enter())


async def test_a_tenant_with_many_runs_does_not_hold_up_one_with_few() -> None:
    admission, entered = Admission(1, 100), []
    await admission.enter("first")
    tasks = [entering(admission, tenant_id, entered) for tenant_id in ["many"] * 4 + ["few", "other"]]
    await turns()
    for _ in tasks:
        admission.leave()
        await turns()
    assert entered == ["many", "few", "other", "many", "many", "many"]


async def test_one_that_finds_the_queue_full_is_told_when_to_come_back() -> None:
    admission = Admission(1, 2)
    await admission.enter("a")
    tasks = [entering(admission, "a", []) for _ in range(2)]
    await turns()
    with pytest.raises(Trouble) as refused:
        await admission.enter("b")
    assert refused.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert (refused.value.error.retry_after_s or 0) > 0
    for task in tasks:
        task.cancel()


async def test_those_who_wait_are_told_when_the_gateway_is_lost() -> None:
    admission = Admission(1, 2)
    await admission.enter("a")
    waiting = entering(admission, "b", [])
    await turns()
    trouble = Trouble(Reason.RUNTIME_UNAVAILABLE, "gone")
    admission.close(trouble)
    with pytest.raises(Trouble, match="gone"):
        await waiting
    with pytest.raises(Trouble, match="gone"):
        await admission.enter("c")
    admission.leave()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_fewer_slots_hold_back_newcomers_and_more_let_them_in() -> None:
    admission, entered = Admission(2, 10), []
    await admission.enter("a")
    await admission.enter("a")
    admission.resize(1)
    waiting = entering(admission, "b", entered)
    admission.leave()
    await turns()
    assert entered == []
    admission.resize(2)
    await waiting
    assert entered == ["b"]


async def test_one_that_is_admitted_and_cancelled_at_the_same_time_keeps_no_slot() -> None:
    admission = Admission(1, 10)
    await admission.enter("a")
    waiting = entering(admission, "b", [])
    await turns()
    admission.leave()
    waiting.cancel()
    await turns()
    assert admission.running == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 2)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("resize"), st.integers(1, 4)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=60,
)


@given(steps=STEPS, slots=st.integers(1, 3))
def test_no_slot_is_lost_or_doubled_whoever_is_cancelled_when(steps: list[tuple[str, int]], slots: int) -> None:
    asyncio.run(_drive(steps, slots))


async def _drive(steps: list[tuple[str, int]], slots: int) -> None:
    admission = Admission(slots, 5)
    tasks: list[asyncio.Task[Any]] = []
    inside: list[asyncio.Event] = []
    largest = slots

    async def run(tenant_id: str) -> None:
        await admission.enter(tenant_id)
        over = asyncio.Event()
        inside.append(over)
        try:
            await over.wait()
        finally:
            inside.remove(over)
            admission.leave()

    for step, number in steps:
        if step == "enter":
            tasks.append(asyncio.create_task(run(f"ten_{number}")))
        elif step == "cancel" and tasks:
            tasks[number % len(tasks)].cancel()
        elif step == "leave" and inside:
            inside[number % len(inside)].set()
        elif step == "resize":
            largest = max(largest, number)
            admission.resize(number)
        else:
            await turns(1)
        assert 0 <= admission.running <= largest
        assert 0 <= admission.waiting <= 5
    await turns()
    assert admission.running == len(inside)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.running, admission.waiting, admission.is_full) == (0, 0, False)
    await asyncio.wait_for(admission.enter("last"), 1)
