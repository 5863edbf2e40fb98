"""The supervisor is killed: nothing of the mesh stays behind, and the next start finishes what was begun."""

import os
import signal
from pathlib import Path

import msgspec
import pytest
from talking import assert_told_once, follow, say, shown, wait
from whole_mesh import connect

TOKENS = 30
ANSWER = " ".join(f"t{n}" for n in range(TOKENS))


def alive(pid):
    """Whether a process still does anything; one that only waits to be buried does not."""
    return parent_of(pid) is not None


def parent_of(pid):
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def below(pid):
    """Processes that a process has started, and those that they have."""
    parents = {int(folder.name): parent_of(folder.name) for folder in Path("/proc").glob("[0-9]*")}
    found = {pid}
    for _ in range(8):
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


@pytest.mark.timeout(180)
async def test_a_killed_supervisor_leaves_nothing_and_the_next_start_finishes_the_runs(own_mesh, contact, eventually):
    status = msgspec.json.decode((own_mesh.state / "status.json").read_bytes())
    pids = below(status["supervisor_pid"])
    assert pids > {process["pid"] for process in status["processes"]}
    async with connect(own_mesh, own_mesh.token()) as client:
        active = await say(client, contact, f"#tokens={TOKENS} #delay=100", "active")
        queued = [await say(client, contact, f"#tokens={TOKENS}", f"queued-{n}") for n in range(3)]

        async def begun():
            return "event: assistant.delta" in await first_lines(client, active)

        await eventually(begun)
        os.kill(status["supervisor_pid"], signal.SIGKILL)
        await eventually(lambda: not any(map(alive, pids)))

        own_mesh.up()
        for run in (active, *queued):
            ended = await wait(client, run)
            assert (ended["state"], ended["output"]["text"]) == ("succeeded", ANSWER)
        events = await follow(client, contact, 4)
        assert_told_once(events, [active, *queued])
        assert shown(events) == dict.fromkeys([active, *queued], ANSWER)
        assert [event.run_id for event in events if event.type == "run.resumed"] == [active]
        assert await say(client, contact, f"#tokens={TOKENS}", "queued-0") == queued[0]
    again = msgspec.json.decode((own_mesh.state / "status.json").read_bytes())
    pids = below(again["supervisor_pid"])
    own_mesh.down()
    assert not any(map(alive, pids))


async def first_lines(client, run):
    async with client.stream("GET", f"/v1/runs/{run}/events") as response:
        told = ""
        async for line in response.aiter_lines():
            told += line + "\n"
            if line == "event: assistant.delta":
                return told
    return told
