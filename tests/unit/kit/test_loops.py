"""A loop that breaks is told of and begins again; only cancelling ends it."""

import asyncio

import pytest
from prometheus_client import REGISTRY
from retinue_kit import loops


def broken(name):
    return REGISTRY.get_sample_value("retinue_loops_broken_total", {"loop": name}) or 0.0


@pytest.mark.parametrize("ends", ["breaks", "returns"])
async def test_a_loop_that_breaks_or_ends_is_counted_and_begins_again(monkeypatch, ends):
    monkeypatch.setattr(loops, "AGAIN_AFTER_S", 0)
    begun, third = [], asyncio.Event()

    async def work(word):
        begun.append(word)
        if len(begun) == 3:
            third.set()
            await asyncio.Event().wait()
        if ends == "breaks":
            raise KeyError("a bug")

    task = loops.keep(f"test-{ends}", work, "x")
    await third.wait()
    assert (begun, broken(f"test-{ends}")) == (["x"] * 3, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(begun) == 3
