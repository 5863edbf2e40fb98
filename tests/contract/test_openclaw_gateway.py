"""What a gateway of OpenClaw does to whoever drives it, asked of the real one and of the fake that stands in for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import openclaw_gateway as fakes
import openclaw_process as process
import pytest
import pytest_asyncio
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids
from retinue_kit.clock import SystemClock
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.ports import Frame, RunCall
from retinue_runtime_adapter.openclaw.turn import RunTurn

START_TIMEOUT_S = 330.0
RUN_TIMEOUT_S = 90.0
"""Many times what a run takes: a machine may be busy with other tests."""
SIZE_MAX_BYTES = 1024 * 1024


class Subject:
    """A gateway under test."""

    def __init__(self, address: str, release: asyncio.Event) -> None:
        self.address = address
        self.release = release

    @asynccontextmanager
    async def connect(self, token: str = process.TOKEN) -> AsyncIterator[WebSocketGateway]:
        gateway = WebSocketGateway(self.address, token, SystemClock())
        try:
            await gateway.start(START_TIMEOUT_S)
            yield gateway
        finally:
            await gateway.close()


@asynccontextmanager
async def real(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Subject]:
    async with process.running(request.getfixturevalue("openclaw_dir"), folder) as gateway:
        yield Subject(gateway.address, gateway.model.release)


@asynccontextmanager
async def fake(_request: pytest.FixtureRequest, _folder: Path) -> AsyncIterator[Subject]:
    gateway = fakes.FakeGateway()
    await gateway.start()
    try:
        yield Subject(gateway.address, gateway.release)
    finally:
        await gateway.close()


SUBJECTS = {"fake": fake, "real": real}


@pytest_asyncio.fixture(params=SUBJECTS, scope="module", loop_scope="module")
async def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    async with SUBJECTS[request.param](request, tmp_path_factory.mktemp("openclaw")) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(subject: Subject) -> AsyncIterator[WebSocketGateway]:
    async with subject.connect() as found:
        yield found


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(450)]


def call(word: str, agent: str = "a", run_id: str = "", session: str = "", **fields: Any) -> RunCall:
    run_id = run_id or ids.new_id("run").lower()
    key = f"agent:{agent}:retinue:ten_1:{session or run_id}"
    return RunCall(run_id, agent, key, f"#{word} please", "Be kind.", RUN_TIMEOUT_S, **fields)


def text_of(frame: Frame) -> str:
    return str(frame.body.get("data", {}).get("text", ""))


async def frames_until(frames: Any, check: Callable[[Frame], bool]) -> list[Frame]:
    found: list[Frame] = []
    async with asyncio.timeout(RUN_TIMEOUT_S):
        while not found or not check(found[-1]):
            found.append(await anext(frames))
    return found


async def follow(gateway: WebSocketGateway, asked: RunCall) -> list[Frame]:
    async with aclosing(gateway.run(asked)) as frames:
        return await frames_until(frames, lambda frame: frame.kind == "final")


def told(frames: list[Frame], *, to_the_final: bool = True) -> tuple[list[RuntimeEvent], Trouble | None]:
    turn = RunTurn(reasoning=True, size_max_bytes=SIZE_MAX_BYTES)
    events = []
    for frame in frames:
        if to_the_final or not turn.over:
            events += turn.feed(frame)
    assert turn.over
    rest, _, trouble = turn.end()
    return events + rest, trouble


def messages(events: list[RuntimeEvent]) -> list[str]:
    return [event.message_completed.text for event in events if event.HasField("message_completed")]


def kinds(events: list[RuntimeEvent]) -> list[str]:
    return [str(event.WhichOneof("event")) for event in events]


async def test_a_run_is_told_with_its_text_and_what_it_used(gateway: WebSocketGateway) -> None:
    asked = call("plain")
    frames = await follow(gateway, asked)
    events, trouble = told(frames)
    assert trouble is None
    assert messages(events) == ["Hello you."]
    turn = RunTurn(reasoning=False, size_max_bytes=SIZE_MAX_BYTES)
    for frame in frames:
        turn.feed(frame)
    usage = turn.end()[1]
    assert (usage.input_tokens, usage.output_tokens, usage.model, usage.cost_micros) == (20, 3, "m", 26)


async def test_the_same_key_after_the_end_is_answered_by_the_same_end(gateway: WebSocketGateway) -> None:
    asked = call("plain")
    first, again = await follow(gateway, asked), await follow(gateway, asked)
    assert [frame.kind for frame in again] == ["final"]
    assert again[-1].body["result"]["payloads"] == first[-1].body["result"]["payloads"]
    assert messages(told(again)[0]) == ["Hello you."]


async def test_a_settled_run_is_over_before_its_final_frame_and_says_the_same(gateway: WebSocketGateway) -> None:
    frames = await follow(gateway, call("tools"))
    assert messages(told(frames)[0]) == messages(told(frames, to_the_final=False)[0])


async def test_a_tool_call_is_told_between_the_text_before_and_the_text_after_it(gateway: WebSocketGateway) -> None:
    events, trouble = told(await follow(gateway, call("tool")))
    assert trouble is None
    assert messages(events) == ["Let me look 0.", "It is fine."]
    order = [kind for kind in kinds(events) if kind != "text_delta"]
    assert order == ["message_completed", "tool_started", "tool_finished", "message_completed"]


async def test_a_tool_that_fails_is_told_as_failed_and_the_run_goes_on(gateway: WebSocketGateway) -> None:
    events, trouble = told(await follow(gateway, call("toolfails")))
    assert trouble is None
    assert [event.tool_finished.ok for event in events if event.HasField("tool_finished")] == [False]
    assert messages(events)[-1] == "It is fine."


async def test_an_answer_without_a_word_is_an_empty_message(gateway: WebSocketGateway) -> None:
    events, trouble = told(await follow(gateway, call("empty")))
    assert trouble is None
    assert messages(events) == [""]


async def test_a_request_that_the_model_refuses_ends_the_run_with_its_reason(gateway: WebSocketGateway) -> None:
    events, trouble = told(await follow(gateway, call("refused")))
    assert trouble is not None
    assert trouble.reason is Reason.MODEL_REQUEST_REFUSED
    assert messages(events) == []


async def test_text_that_was_stopped_ends_as_aborted(gateway: WebSocketGateway, subject: Subject) -> None:
    subject.release.clear()
    asked = call("held")
    async with aclosing(gateway.run(asked)) as frames:
        found = await frames_until(frames, lambda frame: "w1" in text_of(frame))
        assert await gateway.abort(asked.session_key, asked.run_id)
        found += await frames_until(frames, lambda frame: frame.kind == "final")
    subject.release.set()
    events, trouble = told(found)
    assert trouble is not None
    assert (trouble.reason, messages(events)) == (Reason.RUN_TERMINAL, [])
    assert not await gateway.abort(asked.session_key, asked.run_id)


async def test_a_tool_that_was_stopped_has_ended_when_the_run_is_over(
    gateway: WebSocketGateway, subject: Subject
) -> None:
    subject.release.clear()
    asked = call("sleeps", "b")
    turn = RunTurn(reasoning=False, size_max_bytes=SIZE_MAX_BYTES)
    events: list[RuntimeEvent] = []
    async with aclosing(gateway.run(asked)) as frames:
        for frame in await frames_until(frames, lambda frame: frame.body.get("stream") == "tool"):
            events += turn.feed(frame)
        assert await gateway.abort(asked.session_key, asked.run_id)
        while not turn.over:
            events += turn.feed(await anext(frames))
    subject.release.set()
    assert [event.tool_finished.ok for event in events if event.HasField("tool_finished")] == [False]


async def test_a_run_is_joined_from_another_connection_without_losing_or_doubling_a_word(
    gateway: WebSocketGateway, subject: Subject
) -> None:
    subject.release.clear()
    asked = call("held")
    async with aclosing(gateway.run(asked)) as frames:
        first = await frames_until(frames, lambda frame: "w2" in text_of(frame))
    async with subject.connect() as other, aclosing(other.run(asked)) as frames:
        joined = [await anext(frames)]
        subject.release.set()
        joined += await frames_until(frames, lambda frame: frame.kind == "final")
    whole = " ".join(f"w{number}" for number in range(8))
    assert "rejoined" in {frame.kind for frame in joined}
    assert messages(told(joined)[0]) == [whole]
    events = told(first + joined)[0]
    assert messages(events) == [whole]
    assert "".join(event.text_delta.text for event in events) == whole


async def test_tools_of_a_joined_run_are_told_without_their_own_events(
    gateway: WebSocketGateway, subject: Subject
) -> None:
    subject.release.clear()
    asked = call("talks")
    async with aclosing(gateway.run(asked)) as frames:
        first = await frames_until(frames, lambda frame: "v1" in text_of(frame))
    async with subject.connect() as other, aclosing(other.run(asked)) as frames:
        joined = [await anext(frames)]
        subject.release.set()
        joined += await frames_until(frames, lambda frame: frame.kind == "final")
    whole = " ".join(f"v{number}" for number in range(8))
    assert messages(told(joined)[0]) == ["Let me look 0.", whole]
    assert messages(told(first + joined)[0]) == ["Let me look 0.", whole]


async def test_two_runs_at_once_see_only_their_own_frames(gateway: WebSocketGateway) -> None:
    asked = [call("slow"), call("unicode")]
    found = await asyncio.gather(*(follow(gateway, one) for one in asked))
    for one, frames in zip(asked, found, strict=True):
        assert {frame.body["runId"] for frame in frames} == {one.run_id}
    assert messages(told(found[1])[0]) == ["na\u00efve \U0001f600 \u4f60\u597d e\u0301"]


async def test_a_session_of_another_agent_is_refused(gateway: WebSocketGateway) -> None:
    asked = call("plain")
    crossed = RunCall(asked.run_id, "b", asked.session_key, asked.text, "", RUN_TIMEOUT_S)
    with pytest.raises(Trouble) as raised:
        await follow(gateway, crossed)
    assert raised.value.reason in (Reason.INTERNAL, Reason.RUNTIME_UNAVAILABLE)
    assert "agent:" not in str(raised.value)


async def test_an_unknown_request_is_refused_without_passing_on_its_words(gateway: WebSocketGateway) -> None:
    with pytest.raises(Trouble) as raised:
        await gateway.request("no.such.method", {}, timeout_s=10)
    assert raised.value.reason is Reason.INTERNAL
    assert "no.such" not in str(raised.value)


async def test_a_wrong_token_is_a_line_for_operators_and_not_tried_again(
    gateway: WebSocketGateway, subject: Subject
) -> None:
    with pytest.raises(Trouble, match="token"):
        async with subject.connect("another"):
            pass
