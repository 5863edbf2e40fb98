"""What the service believes of a box's agent: here the agents lie, fall silent or go."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.bwrap import agent_box, framing
from retinue_sandbox.bwrap.agent_box import AgentBox
from retinue_sandbox.ports import Command, Isolation, Launched, Limits, Outcome, Piece

HELLO = framing.NUMBER.pack(framing.VERSION)
END = framing.END.pack(0, 0, 1, 1, 1)


class Liar:
    """The other end of a box."""

    def __init__(self, control: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._control = control

    async def say(self, kind: int, number: int, payload: bytes) -> None:
        await self.write(framing.HEADER.pack(kind, number, len(payload)) + payload)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._control, data)

    async def hear(self) -> tuple[int, int, bytes]:
        head = await self._read(framing.HEADER.size)
        kind, number, length = framing.HEADER.unpack(head)
        return kind, number, await self._read(length)

    async def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = await asyncio.get_running_loop().sock_recv(self._control, length - len(data))
            assert more
            data += more
        return data

    def go(self) -> None:
        self._control.close()


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[tuple[AgentBox, Liar]]:
    """A box whose first process is an idle program, and whoever answers in its place."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    launched = Launched(ours, os.pidfd_open(process.pid), process.pid, process)
    box = AgentBox(launched, Isolation.NAMESPACE)
    yield box, Liar(theirs, process)
    await box.close()
    theirs.close()
    assert process.returncode == -signal.SIGKILL


async def started(pair):
    box, liar = pair
    await liar.say(framing.HELLO, 0, HELLO)
    await box.start()
    return box, liar


async def refusal(awaitable):
    with pytest.raises(RetinueError) as caught:
        await awaitable
    assert caught.value.reason == Reason.SANDBOX_UNAVAILABLE
    return caught.value.metadata["check"]


async def to_the_end(first, items):
    await first
    async for _ in items:
        pass


def begin(box, limits=None):
    return box.run(Command(["true"]), limits or Limits())


@pytest.mark.parametrize(
    ("kind", "payload"), [(framing.HELLO, framing.NUMBER.pack(99)), (framing.STDOUT, HELLO), (framing.HELLO, b"")]
)
async def test_who_does_not_say_hello_is_no_agent(pair, kind, payload):
    box, liar = pair
    await liar.say(kind, 0, payload)
    assert await refusal(box.start()) == "agent"
    assert box.lost.is_set()


async def test_who_says_nothing_is_no_agent(pair, monkeypatch):
    monkeypatch.setattr(agent_box, "HELLO_TIMEOUT_S", 0.01)
    assert await refusal(pair[0].start()) == "agent"


async def test_what_is_told_is_told_on(pair):
    box, liar = await started(pair)
    items = begin(box)
    first = asyncio.create_task(anext(items))
    kind, number, _ = await liar.hear()
    assert kind == framing.RUN
    await liar.say(framing.STDERR, number, framing.NUMBER.pack(7) + b"text")
    await liar.say(framing.EXIT, number, framing.END.pack(framing.OUTCOMES.index("memory"), 137, 5, 6, 8))
    assert await first == Piece("stderr", b"text", 7)
    end = await anext(items)
    assert (end.outcome, end.exit_code, end.duration_ms, end.cpu_ms, end.memory_bytes) == (Outcome.MEMORY, 137, 5, 6, 8)


@pytest.mark.parametrize(
    "frames",
    [
        [(99, b"")],
        [(framing.STDOUT, b"")],
        [(framing.EXIT, b"short")],
        [(framing.EXIT, framing.END.pack(99, 0, 0, 0, 0))],
        [(framing.STDOUT, bytes(framing.CHUNK))] * (framing.WINDOW // framing.CHUNK + 2),
    ],
    ids=["kind", "empty", "short", "outcome", "beyond the window"],
)
async def test_an_agent_that_says_what_it_must_not_loses_its_box_bounded(pair, frames):
    box, liar = await started(pair)
    items = begin(box)
    first = asyncio.create_task(anext(items))
    _, number, _ = await liar.hear()
    for kind, payload in frames:
        await liar.say(kind, number, payload)
    await box.lost.wait()
    assert await refusal(to_the_end(first, items)) == "box_lost"


@pytest.mark.parametrize("sizes", [(11,), (6, 5), (1,) * 11])
async def test_bounded_an_agent_that_says_more_than_is_to_be_kept_loses_its_box(pair, sizes):
    box, liar = await started(pair)
    items = begin(box, Limits(output_bytes=10))
    first = asyncio.create_task(anext(items))
    _, number, _ = await liar.hear()
    await liar.say(framing.STDERR, number, framing.NUMBER.pack(0) + bytes(10))
    for size in sizes:
        await liar.say(framing.STDOUT, number, framing.NUMBER.pack(0) + bytes(size))
    await box.lost.wait()
    assert await refusal(to_the_end(first, items)) == "box_lost"


async def test_bounded_an_agent_that_says_a_little_now_and_then_is_not_waited_for_for_ever(pair, monkeypatch):
    monkeypatch.setattr(agent_box, "GRACE_S", 0.1)
    box, liar = await started(pair)
    items = begin(box, Limits(wall_s=0.01))
    first = asyncio.create_task(anext(items))
    _, number, _ = await liar.hear()

    async def dribble():
        while not box.lost.is_set():
            await liar.say(framing.STDOUT, number, framing.NUMBER.pack(0) + b"x")
            await asyncio.wait([asyncio.ensure_future(box.lost.wait())], timeout=0.02)

    dribbling = asyncio.create_task(dribble())
    assert await refusal(to_the_end(first, items)) == "box_lost"
    await asyncio.wait([dribbling])


async def test_a_frame_that_claims_to_be_long_is_not_waited_for(pair):
    box, liar = await started(pair)
    await liar.write(framing.HEADER.pack(framing.STDOUT, 1, 2**31))
    await box.lost.wait()


async def test_what_nobody_asked_for_is_dropped(pair):
    box, liar = await started(pair)
    await liar.say(framing.STDOUT, 5, framing.NUMBER.pack(0) + b"text")
    await liar.say(framing.EXIT, 5, END)
    items = begin(box)
    first = asyncio.create_task(anext(items))
    _, number, _ = await liar.hear()
    await liar.say(framing.EXIT, number, END)
    assert (await first).outcome == Outcome.EXITED


async def test_an_agent_that_goes_is_a_lost_box(pair):
    box, liar = await started(pair)
    first = asyncio.create_task(anext(begin(box)))
    await liar.hear()
    liar.go()
    assert await refusal(first) == "box_lost"
    assert await refusal(anext(begin(box))) == "box_lost"


async def test_an_agent_that_never_tells_the_end_loses_its_box(pair, monkeypatch):
    monkeypatch.setattr(agent_box, "GRACE_S", 0.05)
    box, _ = await started(pair)
    assert await refusal(anext(begin(box, Limits(wall_s=0.01)))) == "box_lost"
    assert box.lost.is_set()


async def test_an_agent_that_does_not_kill_what_it_should_loses_its_box(pair, monkeypatch):
    monkeypatch.setattr(agent_box, "KILL_TIMEOUT_S", 0.05)
    box, liar = await started(pair)
    items = begin(box)
    first = asyncio.create_task(anext(items))
    _, number, _ = await liar.hear()
    await liar.say(framing.STDOUT, number, framing.NUMBER.pack(0) + b"text")
    await first
    await items.aclose()
    assert (await liar.hear())[0] == framing.KILL
    assert box.lost.is_set()


async def test_credit_is_given_for_what_was_read(pair):
    box, liar = await started(pair)
    items = begin(box)
    first = asyncio.create_task(anext(items))
    _, number, _ = await liar.hear()
    piece = framing.NUMBER.pack(0) + bytes(framing.CHUNK - framing.FRAME_COST)
    for _ in range(framing.WINDOW // framing.CHUNK):
        await liar.say(framing.STDOUT, number, piece)
    await first
    await anext(items)
    kind, told, credit = await liar.hear()
    assert (kind, told, framing.NUMBER.unpack(credit)) == (framing.CREDIT, number, (framing.WINDOW // 2,))
    await liar.say(framing.EXIT, number, END)
    assert len([item async for item in items]) == framing.WINDOW // framing.CHUNK - 1
