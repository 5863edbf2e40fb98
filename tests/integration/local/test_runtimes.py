"""What chat runs on, as whoever starts a mesh is told: asked of a runtime adapter that says what it is told to."""

from pathlib import Path

import pytest
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2_grpc import (
    RuntimeAdapterServiceServicer,
    add_RuntimeAdapterServiceServicer_to_server,
)
from retinue_cli import runtimes
from retinue_cli.state import State
from retinue_kit.server import Server, Service
from retinue_local.openclaw import Installed
from retinue_local.runtimes import Runtimes

BOTH = Runtimes("openclaw,light", Installed(Path("/o"), "1.2.3"))
STARTING = pb.Runtime(name="openclaw", version="1.2.3", detail="1 gateway starts")
READY = pb.Runtime(name="openclaw", version="1.2.3", available=True, detail="1.2.3, 1 gateway")
LIGHT = pb.Runtime(name="light", available=True, detail="a model")


class Adapter(RuntimeAdapterServiceServicer):
    """Answers one after another, and the last one for ever."""

    def __init__(self, *answers: pb.Runtime) -> None:
        self.answers = list(answers)

    async def DescribeRuntimes(self, request, context):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return pb.DescribeRuntimesResponse(runtimes=[LIGHT, answer])


@pytest.fixture
async def saying(run_dir):
    """Answer a starter of an adapter that says what it is given, in place of a mesh's own."""
    servers = []

    async def start(*answers: pb.Runtime) -> State:
        state = State(run_dir)
        state.paths.run.mkdir()
        add = add_RuntimeAdapterServiceServicer_to_server
        name = pb.DESCRIPTOR.services_by_name["RuntimeAdapterService"].full_name
        servers.append(Server(state.paths.address("runtime-adapter"), [Service(add, Adapter(*answers), name)], {}))
        await servers[-1].start()
        return state

    yield start
    for server in servers:
        await server.drain(0)


async def test_openclaw_is_waited_for_and_named_with_what_it_has(saying):
    notes = []
    state = await saying(STARTING, STARTING, READY)
    assert await runtimes.chat(state, BOTH, notes.append) == "Chat runs on openclaw 1.2.3 (1 gateway)."
    assert notes == ["Waiting for OpenClaw 1.2.3: 1 gateway starts …"]


async def test_openclaw_that_does_not_come_is_not_waited_for_any_longer(saying, monkeypatch):
    monkeypatch.setattr(runtimes, "OPENCLAW_WAIT_S", 0.0)
    state = await saying(STARTING)
    said = await runtimes.chat(state, BOTH, pytest.fail)
    assert said == "Chat runs on light: 1 gateway starts; OpenClaw takes over when it is there."
    said = await runtimes.chat(state, BOTH._replace(names="openclaw"), pytest.fail)
    assert said == "Chat waits for OpenClaw, which is not there after 0 s: 1 gateway starts."


async def test_an_adapter_that_is_away_is_told_of(run_dir, monkeypatch):
    monkeypatch.setattr(runtimes, "OPENCLAW_WAIT_S", 0.0)
    said = await runtimes.chat(State(run_dir), BOTH, pytest.fail)
    assert said.startswith("Chat runs on light: The mesh does not answer on its socket")
    assert said.endswith("; OpenClaw takes over when it is there.")


async def test_without_openclaw_nobody_is_asked(run_dir):
    state = State(run_dir)
    without = await runtimes.chat(state, Runtimes("light"), pytest.fail)
    assert without == "Chat runs on light; OpenClaw is left out."
    missing = await runtimes.chat(state, Runtimes("light", missing="there is no network."), pytest.fail)
    assert missing == "Chat runs on light: there is no network."


def test_a_runtime_is_named_without_saying_its_release_twice():
    assert runtimes.named(LIGHT) == "light (a model)"
    assert runtimes.named(READY) == "openclaw 1.2.3 (1 gateway)"
    assert runtimes.named(pb.Runtime(name="openclaw", version="1.2.3")) == "openclaw 1.2.3"
    whole = pb.Runtime(name="openclaw", version="1.2.3", detail="openclaw 1.2.3, 1 shared gateway, 0 cells")
    assert runtimes.named(whole) == "openclaw 1.2.3 (1 shared gateway, 0 cells)"
