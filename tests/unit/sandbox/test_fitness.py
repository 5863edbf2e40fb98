"""box_or_refuse: what was not found to hold is not executed in."""

import pytest
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_sandbox.fitness import Fitness
from retinue_sandbox.ports import Check
from retinue_sandbox.refuse import RefuseBackend

HOLDS = Check("box", True, "it holds")
BROKEN = Check("network", False, "it reaches the machine", "unplug it")
SLOW_DISK = Check("limit_memory", False, "there is no cgroup", required=False)


class Backend(RefuseBackend):
    def __init__(self, *found):
        super().__init__(BROKEN)
        self.found = found

    async def check(self):
        if RuntimeError in self.found:
            raise RuntimeError("a bug")
        return list(self.found)


async def refusal(fitness):
    with pytest.raises(RetinueError) as caught:
        await fitness.require()
    assert (caught.value.reason, caught.value.code) == (Reason.SANDBOX_UNAVAILABLE, Code.FAILED_PRECONDITION)
    return caught.value.metadata["check"]


async def test_where_every_required_check_holds_things_are_executed():
    fitness = Fitness(Backend(HOLDS, SLOW_DISK), 60)
    await fitness.look()
    await fitness.require()
    assert list(await fitness.found()) == [HOLDS, SLOW_DISK]


async def test_box_or_refuse_names_the_first_required_check_that_fails():
    fitness = Fitness(Backend(HOLDS, SLOW_DISK, BROKEN, Check("kernel", False, "open")), 60)
    await fitness.look()
    assert await refusal(fitness) == "network"


@pytest.mark.parametrize("found", [[], [RuntimeError]])
async def test_box_or_refuse_holds_where_the_self_test_looks_at_nothing_or_breaks(found):
    fitness = Fitness(Backend(*found), 60)
    await fitness.look()
    assert await refusal(fitness) == "self_test"


async def test_a_box_that_holds_again_is_noticed(eventually):
    backend = Backend(BROKEN)
    fitness = Fitness(backend, 0.01)
    fitness.start()
    try:
        assert await refusal(fitness) == "network"
        backend.found = (HOLDS,)
        await eventually(lambda: fitness.failed is None)
        await fitness.require()
    finally:
        await fitness.close()
