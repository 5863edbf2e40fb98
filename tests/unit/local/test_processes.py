"""How a process is asked to leave."""

import asyncio

import pytest
from retinue_local.processes import Life

STUBBORN = "trap 'n=$((n + 1)); [ $n = 2 ] && exit 7' TERM; echo ready; while :; do sleep 0.02; done"


@pytest.mark.parametrize(("hurry_s", "timeout_s", "code"), [(29.5, 30.0, 7), (0.0, 0.1, -9)])
async def test_who_has_too_little_time_is_told_again_before_it_is_killed(hurry_s, timeout_s, code):
    child = await asyncio.create_subprocess_exec(
        "bash", "-c", STUBBORN, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    await child.stdout.readline()
    life = Life("stubborn", child.pid, asyncio.ensure_future(child.wait()))
    await life.leave(15, timeout_s, hurry_s)
    assert life.code == code
