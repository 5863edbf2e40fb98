"""The connection to a gateway that starts late, breaks, falls silent, says nonsense, forgets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio
from openclaw_gateway import FakeGateway
from openclaw_process import TOKEN
from retinue_kit.clock import Clock, SystemClock
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import follower
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.ports import Frame, RunCall
from retinue_runtime_adapter.openclaw.turn import RunTurn

TIMEOUT_S = 20.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DEEP = '{"type":"event","event":"agent","payload":' + "[" * 100_000
HELD = " ".join(f"w{number}" for number in range(8))
Eventually = Callable[..., Awaitable[Any]]


class HastyClock:
    """A clock that is a quarter of a minute later at each look, so that patience ends soon."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 15.0
        return self._now

    def now(self) -> float:
        return self._now


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeGateway]:
    gateway = FakeGateway()
    await gateway.start()
    yield gateway
    await gateway.close()


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Callable[..., Awaitable[WebSocketGateway]]]:
    """Answer a maker of connections."""
    made: list[WebSocketGateway] = []

    async def start(address: str, clock: Clock | None = None) -> WebSocketGateway:
        made.append(WebSocketGateway(address, TOKEN, clock or SystemClock()))
        await made[-1].start(TIMEOUT_S)
        return made[-1]

    yield start
    for gateway in made:
        await gateway.close()


def call(word: str = "held", run_id: str = "run_1", **fields: Any) -> RunCall:
    made = {
        "agent_id": "a",
        "session_key": "agent:a:retinue:S1",
        "text": f"#{word} please",
        "system": "",
        "time_s": 60.0,
    }
    return RunCall(run_id=run_id, **{**made, **fields})


class Reader:
    """Reads one run in the background."""

    def __init__(self, gateway: WebSocketGateway, asked: RunCall) -> None:
        self.frames: list[Frame] = []
        self.task = asyncio.create_task(self._read(gateway, asked))

    async def _read(self, gateway: WebSocketGateway, asked: RunCall) -> None:
        async with aclosing(gateway.run(asked)) as frames:
            async for frame in frames:
                self.frames.append(frame)

    def has_read(self, text: str) -> bool:
        return any(text in str(frame.body) for frame in self.frames)

    def message(self) -> str:
        """The run's only message, of which the deltas tell each word once."""
        turn = RunTurn(reasoning=False, size_max_bytes=2**20)
        events = [event for frame in self.frames for event in turn.feed(frame)]
        assert turn.over
        events += turn.end()[0]
        (message,) = [event.message_completed.text for event in events if event.HasField("message_completed")]
        assert "".join(event.text_delta.text for event in events) == message
        return message


async def test_a_gateway_that_starts_is_waited_for(fake: FakeGateway, connect: Any) -> None:
    fake.starting_count = 2
    gateway = await connect(fake.address)
    assert gateway.version == "fake"


async def test_a_gateway_that_does_not_listen_yet_is_waited_for(connect: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    late = FakeGateway()
    starting = asyncio.create_task(connect(f"127.0.0.1:{port}"))
    await asyncio.sleep(0)
    await late.start(port)
    assert (await starting).version == "fake"
    await late.close()


async def test_a_gateway_that_never_listens_is_given_up(connect: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Trouble) as raised:
            await connect(address, HastyClock())
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_a_gateway_of_another_protocol_is_not_tried_again(fake: FakeGateway, connect: Any) -> None:
    fake.protocol = 5
    with pytest.raises(Trouble, match="version 5 of its protocol, and this adapter version 4"):
        await connect(fake.address)


async def test_a_run_is_asked_for_with_all_that_it_needs(fake: FakeGateway, connect: Any) -> None:
    reader = Reader(await connect(fake.address), call("plain", system="Be kind.", traceparent=TRACEPARENT))
    await reader.task
    (asked,) = [one for one in fake.asked if one["method"] == "agent"]
    assert asked["traceparent"] == TRACEPARENT
    assert asked["params"] == {
        "message": "#plain please",
        "agentId": "a",
        "sessionKey": "agent:a:retinue:S1",
        "idempotencyKey": "run_1",
        "deliver": False,
        "timeout": 90,
        "extraSystemPrompt": "Be kind.",
    }


@pytest.mark.parametrize("field", ["runId", "sessionKey", "agentId"])
async def test_frames_of_others_are_dropped_and_counted(
    fake: FakeGateway, connect: Any, eventually: Eventually, field: str
) -> None:
    gateway = await connect(fake.address)
    reader = Reader(gateway, call())
    await eventually(lambda: reader.has_read("w3"))
    frame = fake.event(fake.runs["run_1"], "assistant", {"text": "secret of another", "itemId": "x:1"})
    frame["payload"][field] += "x"
    await fake.say(frame)
    await fake.say({"type": "event", "event": "task", "payload": {"task": {"title": "secret of another"}}})
    await eventually(lambda: gateway.dropped["agent"] == 1 and gateway.dropped["task"] == 1)
    fake.release.set()
    await reader.task
    assert not reader.has_read("secret")
    assert reader.message() == HELD


async def test_a_run_goes_on_after_the_connection_was_lost(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    reader = Reader(await connect(fake.address), call())
    for count in (2, 3):
        await eventually(lambda: reader.has_read("w3"))
        await fake.sever()
        await eventually(lambda: fake.connection_count == count)  # noqa: B023
    fake.release.set()
    await reader.task
    assert {"rejoined", "final"} < {frame.kind for frame in reader.frames}
    assert reader.message() == HELD


async def test_what_was_said_while_the_connection_was_lost_is_told(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    fake.final_delay_count = 3
    reader = Reader(await connect(fake.address), call())
    await eventually(lambda: reader.has_read("w3"))
    fake.starting_count = 2
    await fake.sever()
    fake.release.set()
    await reader.task
    assert reader.message() == HELD
    assert fake.final_delay_count == 0


async def test_a_run_whose_acceptance_was_lost_is_asked_for_again(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    gateway = await connect(fake.address)
    fake.mute = True
    reader = Reader(gateway, call("plain"))
    await eventually(lambda: any(one["method"] == "agent" for one in fake.asked))
    fake.mute = False
    await fake.sever()
    await reader.task
    assert reader.message() == "Hello you."
    assert len(fake.runs) == 1


async def test_a_gateway_that_began_anew_ends_its_runs_once(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    reader = Reader(await connect(fake.address), call())
    await eventually(lambda: reader.has_read("w3"))
    fake.forget()
    await fake.sever()
    with pytest.raises(Trouble) as raised:
        await reader.task
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE
    assert fake.runs == {}


async def test_a_gateway_that_has_forgotten_a_run_does_not_begin_it_again(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    reader = Reader(await connect(fake.address), call())
    await eventually(lambda: reader.has_read("w3"))
    boot_id = fake.boot_id
    fake.forget()
    fake.boot_id = boot_id
    await fake.sever()
    with pytest.raises(Trouble) as raised:
        await reader.task
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE
    await eventually(lambda: fake.runs["run_1"].final is not None)
    assert fake.runs["run_1"].final["payload"]["summary"] == "aborted"


async def test_runs_and_requests_end_when_the_gateway_stays_away(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    gateway = await connect(fake.address, HastyClock())
    reader = Reader(gateway, call())
    await eventually(lambda: reader.has_read("w3"))
    await fake.close()
    with pytest.raises(Trouble) as raised:
        await reader.task
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE
    with pytest.raises(Trouble) as raised:
        await gateway.request("chat.history", {}, timeout_s=TIMEOUT_S)
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_a_silent_gateway_is_taken_for_lost(fake: FakeGateway, connect: Any, eventually: Eventually) -> None:
    fake.tick_interval_ms = 1
    reader = Reader(await connect(fake.address), call())
    await eventually(lambda: fake.connection_count >= 2)
    fake.release.set()
    await reader.task
    assert reader.message() == HELD


async def test_frames_without_sense_are_dropped_and_the_connection_stays(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    gateway = await connect(fake.address)
    reader = Reader(gateway, call())
    await eventually(lambda: reader.has_read("w3"))
    nonsense = ["", "{", "[]", "7", '{"type":7}', '{"type":"event","event":"agent","payload":[]}', DEEP]
    for text in nonsense:
        await fake.say(text)
    await fake.say(fake.event(fake.runs["run_1"], "assistant", None))  # type: ignore[arg-type]
    await fake.say(fake.event(fake.runs["run_1"], "stream of tomorrow", {"text": "?"}))
    await fake.say({"type": "res", "id": "agent-99", "ok": True, "payload": {"runId": "run_1", "status": "ok"}})
    await eventually(lambda: gateway.dropped["senseless"] == len(nonsense))
    fake.release.set()
    await reader.task
    assert reader.message() == HELD
    assert fake.connection_count == 1


async def test_text_that_waits_to_be_read_is_one_frame(fake: FakeGateway, connect: Any, eventually: Eventually) -> None:
    gateway = await connect(fake.address)
    async with aclosing(gateway.run(call("long"))) as frames:
        found = [await anext(frames)]
        await eventually(lambda: fake.runs["run_1"].final is not None)
        await gateway.request("chat.history", {"sessionKey": "s"}, timeout_s=TIMEOUT_S)  # all frames have come by then
        found += [frame async for frame in frames]
    texts = [frame for frame in found if frame.body.get("stream") == "assistant"]
    assert len(texts) < 5
    assert texts[-1].body["data"]["text"].endswith("w299")


async def test_a_run_that_is_not_read_while_it_tells_too_much_is_given_up(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    gateway = await connect(fake.address)
    async with aclosing(gateway.run(call())) as frames:
        await anext(frames)
        for number in range(follower.QUEUE_COUNT_MAX + 1):
            await fake.say(fake.event(fake.runs["run_1"], "tool", {"phase": "start", "toolCallId": f"c{number}"}))
        await gateway.request("chat.history", {"sessionKey": "s"}, timeout_s=TIMEOUT_S)
        with pytest.raises(Trouble) as raised:
            async for _ in frames:
                pass
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_leaving_a_run_does_not_stop_it(fake: FakeGateway, connect: Any, eventually: Eventually) -> None:
    gateway = await connect(fake.address)
    async with aclosing(gateway.run(call())) as frames:
        await anext(frames)
    fake.release.set()
    await eventually(lambda: fake.runs["run_1"].final is not None)
    assert fake.runs["run_1"].final["payload"]["status"] == "ok"
    reader = Reader(gateway, call())
    await reader.task
    assert reader.message() == HELD


async def test_two_readers_of_one_run_are_told_the_same(
    fake: FakeGateway, connect: Any, eventually: Eventually
) -> None:
    gateway = await connect(fake.address)
    readers = [Reader(gateway, call())]
    await eventually(lambda: readers[0].has_read("w3"))
    readers.append(Reader(gateway, call()))
    await eventually(lambda: readers[1].has_read("w3"))
    fake.release.set()
    await asyncio.gather(*(reader.task for reader in readers))
    assert [reader.message() for reader in readers] == [HELD, HELD]


async def test_a_message_that_the_gateway_would_not_read_is_not_sent(fake: FakeGateway, connect: Any) -> None:
    fake.payload_max_bytes = 1000
    gateway = await connect(fake.address)
    with pytest.raises(Trouble) as raised:
        await Reader(gateway, call("plain", system="x" * 1000)).task
    assert raised.value.reason is Reason.BODY_TOO_LARGE
    assert fake.asked == []


async def test_closing_ends_what_waits(fake: FakeGateway, connect: Any, eventually: Eventually) -> None:
    gateway = await connect(fake.address)
    reader = Reader(gateway, call())
    await eventually(lambda: reader.has_read("w3"))
    await gateway.close()
    with pytest.raises(Trouble) as raised:
        await reader.task
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE


async def test_a_request_without_an_answer_ends_with_its_time(fake: FakeGateway, connect: Any) -> None:
    gateway = await connect(fake.address)
    fake.mute = True
    with pytest.raises(Trouble) as raised:
        await gateway.request("chat.history", {"sessionKey": "s"}, timeout_s=0.05)
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE
