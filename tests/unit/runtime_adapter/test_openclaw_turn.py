"""Frames of a run become the same events however they were cut, merged, missed or rewritten on their way."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import calls
from retinue_runtime_adapter.openclaw.follower import merge
from retinue_runtime_adapter.openclaw.ports import Frame
from retinue_runtime_adapter.openclaw.turn import RunTurn

RECORDED = sorted((Path(__file__).parents[2] / "fixtures" / "openclaw").glob("*/*.jsonl"))
SIZE_MAX_BYTES = 1024 * 1024
Json = dict[str, Any]


def frames_of(path: Path, run_id: str) -> list[Frame]:
    """A recorded run's frames, as a gateway's connection tells them."""
    frames = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        frame = row["frame"]
        payload = frame.get("payload") or {}
        if row["from"] == "client":
            continue
        if frame.get("event") == "agent" and payload["runId"] == run_id:
            frames.append(Frame("event", payload))
        elif frame["type"] == "res" and payload.get("runId") == run_id:
            if payload["status"] not in ("accepted", "in_flight"):
                frames.append(Frame("final", payload if frame["ok"] else {**payload, "error": frame["error"]}))
        elif "inFlightRun" in payload:
            frames.append(Frame("rejoined", payload["inFlightRun"]))
    return frames


def recordings(*names: str) -> list[Any]:
    """The recorded runs of these names, in every version that is supported."""
    paths = [path for path in RECORDED if path.stem in names]
    assert {path.stem for path in paths} == set(names)
    return [pytest.param(frames_of(path, f"run_{path.stem}"), id=f"{path.parent.name}-{path.stem}") for path in paths]


def event(stream: str, ts: int = 0, **data: Any) -> Frame:
    return Frame("event", {"runId": "run_1", "stream": stream, "ts": ts, "data": data})


def said(text: str, item_id: str = "one:1", **data: Any) -> Frame:
    return event("assistant", text=text, itemId=item_id, **data)


def final(*texts: str, **fields: Any) -> Frame:
    result = {"payloads": [{"text": text} for text in texts], "meta": {}}
    return Frame("final", {"runId": "run_1", "status": "ok", "result": result, **fields})


class Told:
    """What a run has told, with what each client must find true of it."""

    def __init__(
        self, frames: Sequence[Frame], *, reasoning: bool = True, size_max_bytes: int = SIZE_MAX_BYTES
    ) -> None:
        self.turn = RunTurn(reasoning=reasoning, size_max_bytes=size_max_bytes)
        self.events: list[RuntimeEvent] = []
        for frame in frames:
            self.events += self.turn.feed(frame)
        rest, self.usage, self.trouble = self.turn.end()
        self.events += rest
        self.messages: list[str] = []
        self.tools: list[tuple[str, str]] = []
        current = ""
        for one in self.events:
            kind = one.WhichOneof("event")
            if kind == "text_delta":
                current = one.text_delta.text if one.text_delta.replace else current + one.text_delta.text
            elif kind == "message_completed":
                assert one.message_completed.text == current
                self.messages.append(current)
                current = ""
            elif kind in ("tool_started", "tool_finished"):
                self.tools.append((kind, getattr(one, kind).call_id))
        self.left_over = current
        assert len(set(self.tools)) == len(self.tools)

    @property
    def kinds(self) -> list[str]:
        return [str(one.WhichOneof("event")) for one in self.events]

    @property
    def reason(self) -> Reason | None:
        return self.trouble.reason if self.trouble else None

    def of(self, kind: str) -> list[Any]:
        return [getattr(one, kind) for one in self.events if one.HasField(kind)]


WORDS = " ".join(f"w{number}" for number in range(8))
LATER = " ".join(f"v{number}" for number in range(8))
EXPECTED = {
    "plain": ["Hello you."],
    "long": [" ".join(f"w{number}" for number in range(300))],
    "think": ["It is four."],
    "final": ["It is four."],
    "card": ["Look:\n\n\nThere."],
    "directives": ["Hello.\nBye."],
    "silent": [""],
    "silently": ["Well, NO_REPLY"],
    "empty": [""],
    "blank": [""],
    "spaces": ["Hello \n you"],
    "unicode": ["na\u00efve \U0001f600 \u4f60\u597d e\u0301"],
    "broken": [WORDS],
    "replace": ["a <b>bold</b> `<think>` ```py"],
    "tool": ["Let me look 0.", "It is fine."],
    "tools": ["Let me look 0.", "Let me look 1.", "It is fine."],
    "toolfails": ["Let me look 0.", "It is fine."],
    "unknowntool": ["Let me look 0.", "It is fine."],
    "exec": ["Let me look 0.", "It is fine."],
    "already_over": ["Hello you."],
    "rejoined": [WORDS],
    "rejoined_later": ["Let me look 0.", LATER],
    "rejoined_tool": ["Let me look 0.", "It is fine."],
}
WELL = recordings(*EXPECTED)


@pytest.mark.parametrize("frames", WELL)
def test_a_recorded_run_tells_its_messages(frames: list[Frame], request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id.rpartition("-")[2]
    told = Told(frames)
    assert told.trouble is None
    assert told.turn.over
    assert told.messages == EXPECTED[name]


@pytest.mark.parametrize("frames", WELL)
def test_a_run_that_has_settled_tells_the_same_as_with_its_final_frame(frames: list[Frame]) -> None:
    without = [frame for frame in frames if frame.kind != "final"]
    assert Told(without).turn.over is not any(frame.kind == "rejoined" for frame in frames)
    assert Told(without).messages == Told(frames).messages


@pytest.mark.parametrize("frames", WELL)
@given(data=st.data())
def test_messages_are_the_same_whatever_is_merged_or_missed(frames: list[Frame], data: st.DataObject) -> None:
    whole = Told(frames)
    kept: list[Frame] = []
    for frame in frames:
        merged = merge(kept[-1], frame) if kept and data.draw(st.booleans()) else None
        if merged is not None:
            kept[-1] = merged
        else:
            kept.append(frame)
    missed = [at for at, frame in enumerate(kept) if frame.body.get("stream") in ("assistant", "usage")]
    gone = set(data.draw(st.lists(st.sampled_from(missed), unique=True))) if missed else set()
    told = Told([frame for at, frame in enumerate(kept) if at not in gone])
    assert told.messages == whole.messages
    assert told.tools == whole.tools
    assert [MessageToDict(card) for card in told.of("card")] == [MessageToDict(card) for card in whole.of("card")]


@pytest.mark.parametrize("frames", recordings("plain", "long", "broken", "replace", "card", "tools", "exec"))
@given(data=st.data())
def test_a_run_that_is_joined_at_any_point_loses_and_doubles_nothing(frames: list[Frame], data: st.DataObject) -> None:
    lost_at = data.draw(st.integers(0, len(frames) - 1))
    back_at = data.draw(st.integers(lost_at, len(frames) - 1))
    before = frames[:back_at]
    texts = {}  # by message, as a gateway keeps them
    for frame in before:
        if frame.body.get("stream") == "assistant":
            texts[frame.body["data"]["itemId"]] = frame.body["data"]["text"]
    replayed = [frame.body for frame in before if frame.body.get("stream") in ("item", "tool")]
    rejoined = Frame("rejoined", {"text": "\n\n".join(filter(None, texts.values())), "events": replayed})
    behind = [frame for frame in frames[back_at:] if frame.body.get("stream") != "tool"]
    whole = Told(frames)
    assert Told([*frames[:lost_at], rejoined, *behind]).messages == whole.messages
    assert Told([rejoined, *behind]).messages == whole.messages


@given(
    texts=st.lists(st.text(alphabet="ab<>`\n think/card", max_size=30), min_size=1, max_size=6),
    data=st.data(),
)
def test_any_text_is_told_the_same_in_any_pieces_and_rewritings(texts: list[str], data: st.DataObject) -> None:
    end = final(texts[-1])
    whole = Told([said(texts[-1]), end])
    frames = []
    for at, text in enumerate(texts):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        frames += [said(text[:cut], replace=number == 0) for number, cut in enumerate([0, *cuts, len(text)])]
        if data.draw(st.booleans()) and at < len(texts) - 1:
            frames.append(Frame("rejoined", {"text": text[: data.draw(st.integers(0, len(text)))]}))
    assert Told([*frames, end]).messages == whole.messages
    assert Told(frames).messages == Told([said(texts[-1])]).messages


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refused", Reason.MODEL_REQUEST_REFUSED),
        ("overflow", Reason.MODEL_CONTEXT_OVERFLOW),
        ("timeout", Reason.MODEL_TIMEOUT),
        ("abort_text", Reason.RUN_TERMINAL),
        ("abort_tool", Reason.RUN_TERMINAL),
    ],
)
def test_a_recorded_run_that_went_badly_says_why_with_and_without_its_final_frame(name: str, reason: Reason) -> None:
    for param in recordings(name):
        frames = param.values[0]
        for kept in (frames, [frame for frame in frames if frame.kind != "final"]):
            told = Told(kept)
            assert told.reason is reason
            assert told.messages == (["Let me look 0."] if name == "abort_tool" else [])
        assert Told([frame for frame in frames if frame.kind == "final"]).reason is not None


@pytest.mark.parametrize("frames", recordings("abort_tool"))
def test_an_aborted_run_is_over_only_when_its_tool_has_ended(frames: list[Frame]) -> None:
    turn = RunTurn(reasoning=False, size_max_bytes=SIZE_MAX_BYTES)
    was_over_at = []
    for at, frame in enumerate(frames):
        turn.feed(frame)
        if turn.over:
            was_over_at.append(at)
    tool_end = next(at for at, frame in enumerate(frames) if frame.body.get("data", {}).get("phase") == "result")
    cancelled = next(at for at, frame in enumerate(frames) if frame.body.get("data", {}).get("status") == "cancelled")
    assert cancelled < tool_end < was_over_at[0]


def test_a_settled_run_with_an_open_tool_is_not_over_until_the_tool_is_or_the_final_frame_comes() -> None:
    begin = [
        event("tool", phase="start", toolCallId="c", name="t"),
        event("lifecycle", phase="end", executionSettled=True),
    ]
    for end in (event("tool", phase="result", toolCallId="c", result={}), final("Hello.")):
        turn = RunTurn(reasoning=False, size_max_bytes=SIZE_MAX_BYTES)
        for frame in begin:
            turn.feed(frame)
        assert not turn.over
        turn.feed(end)
        assert turn.over


def test_a_tool_whose_end_was_missed_is_told_to_have_ended() -> None:
    told = Told([event("tool", phase="start", toolCallId="c", name="t"), final("Hello.")])
    assert told.tools == [("tool_started", "c"), ("tool_finished", "c")]
    assert [(one.ok, one.result) for one in told.of("tool_finished")] == [(False, calls.UNSEEN)]


@pytest.mark.parametrize("frames", recordings("exec"))
def test_a_command_is_told_with_its_arguments_output_and_end(frames: list[Frame]) -> None:
    told = Told(frames)
    started, finished = told.of("tool_started")[0], told.of("tool_finished")[0]
    assert started.tool == "exec"
    assert "printf" in started.arguments["command"]
    assert "".join(one.text for one in told.of("tool_output")) == "one\ntwo\nthree\nfour\n"
    assert (finished.ok, finished.duration_ms > 900) == (False, True)
    assert finished.result.endswith("exited with code 3)")


@pytest.mark.parametrize("frames", recordings("card"))
def test_a_card_in_the_text_is_a_card(frames: list[Frame]) -> None:
    assert [(card.kind, card.title) for card in Told(frames).of("card")] == [("note", "T")]


@pytest.mark.parametrize("frames", recordings("plain"))
def test_usage_is_that_of_the_final_frame(frames: list[Frame]) -> None:
    usage = Told(frames).usage
    assert (usage.input_tokens, usage.output_tokens, usage.model, usage.cost_micros) == (20, 3, "m", 26)


def test_text_of_an_attempt_that_was_given_up_is_taken_back() -> None:
    told = Told([said("one two", "first:1"), said("three", "second:1"), final("three")])
    assert told.messages == ["three"]


def test_text_of_another_call_of_the_same_attempt_is_another_message() -> None:
    told = Told([said("one two", "first:1"), said("three", "first:2"), final("three")])
    assert told.messages == ["one two", "three"]


def test_rewritten_text_is_told_whole_only_where_it_does_not_go_on() -> None:
    told = Told([said("one"), said("one two", replace=True), said("four", replace=True), final("four")])
    assert [(one.text, one.replace) for one in told.of("text_delta")] == [
        ("one", False),
        (" two", False),
        ("four", True),
    ]


def test_a_late_frame_that_says_less_takes_nothing_back() -> None:
    told = Told([Frame("rejoined", {"text": "one two"}), said("one"), said("one two three"), final("one two three")])
    assert [one.text for one in told.of("text_delta")] == ["one two", " three"]


def test_words_that_no_frame_told_come_from_the_end() -> None:
    assert Told([said("one"), final("one two", "three")]).messages == ["one two", "three"]
    assert Told([final("one")]).messages == ["one"]


def test_a_long_reply_of_the_last_event_is_not_taken_for_the_whole() -> None:
    text = "x" * 5000
    cut = {"disposition": "visible", "text": "x" * 4095 + "…"}
    settled = event("lifecycle", phase="end", executionSettled=True, terminalReply=cut)
    assert Told([said(text), settled]).messages == [text]


def test_a_card_that_is_told_is_not_told_again_when_the_text_is_rewritten() -> None:
    card = '```card\n{"kind":"note"}\n```\n'
    told = Told([said(f"a\n{card}b"), said(f"c\n{card}b", replace=True), final(f"c\n{card}b")])
    assert len(told.of("card")) == 1
    assert told.messages == ["c\nb"]


def test_reasoning_is_told_only_where_it_was_asked_for() -> None:
    frames = [said("<think>let me</think>four"), final("<think>let me</think>four")]
    assert [one.text for one in Told(frames).of("reasoning_delta")] == ["let me"]
    assert Told(frames, reasoning=False).of("reasoning_delta") == []
    assert Told(frames, reasoning=False).messages == ["four"]


@pytest.mark.parametrize(
    "frames",
    [
        [said("x" * 200)],
        [said("x" * 90), said("x" * 200)],
        [said("<think>" + "x" * 200)],
        [said("x" * 60, "a:1"), said("y" * 60, "a:2")],
        [event("tool", phase="start", toolCallId="c", name="t", args={"a": "x" * 200})],
        [event("tool", phase="update", toolCallId="c", partialResult={"content": [{"text": "x" * 200}]})],
        [event("tool", phase="result", toolCallId="c", result={"content": [{"text": "x" * 200}]})],
    ],
)
def test_a_run_that_tells_too_much_is_stopped(frames: list[Frame]) -> None:
    with pytest.raises(Trouble) as raised:
        Told(frames, reasoning=False, size_max_bytes=100)
    assert raised.value.reason is Reason.OUTPUT_TOO_LARGE


def test_text_that_is_rewritten_counts_once() -> None:
    frames = [said(letter * 80, replace=True) for letter in "abcdef"]
    assert Told([*frames, final("f" * 80)], size_max_bytes=100).messages == ["f" * 80]


def test_arguments_that_are_too_long_are_cut_and_numbers_stay_exact() -> None:
    told = Told(
        [event("tool", phase="start", toolCallId="c", name="t", args={"a": "x" * calls.ARGUMENTS_SIZE_MAX_BYTES})]
    )
    assert told.of("tool_started")[0].ByteSize() < calls.ARGUMENTS_SIZE_MAX_BYTES + 100
    told = Told([event("tool", phase="start", toolCallId="c", name="t", args={"a": 2**60, "b": 3})])
    assert dict(told.of("tool_started")[0].arguments) == {"a": str(2**60), "b": 3}


def test_a_result_that_is_too_long_is_cut() -> None:
    text = "x" * (calls.RESULT_SIZE_MAX_CHARS + 5)
    told = Told([event("tool", phase="result", toolCallId="c", result={"content": [{"text": text}]})])
    assert len(told.of("tool_finished")[0].result) == calls.RESULT_SIZE_MAX_CHARS


def test_an_output_of_which_only_the_end_is_kept_is_told_once() -> None:
    lines = [f"line {number} of the output\n" for number in range(50)]
    parts = ["".join(lines[max(0, count - 20) : count]) for count in (5, 15, 30, 50)]
    frames = [
        event("tool", phase="update", toolCallId="c", partialResult={"content": [{"text": part}]}) for part in parts
    ]
    assert "".join(one.text for one in Told(frames).of("tool_output")) == "".join(
        lines[:15] + lines[15:30] + lines[30:]
    )


def test_a_run_that_calls_tools_without_end_is_stopped() -> None:
    frames = [event("tool", phase="start", toolCallId=f"c{number}", name="t") for number in range(calls.CALLS_MAX + 1)]
    with pytest.raises(Trouble) as raised:
        Told(frames)
    assert raised.value.reason is Reason.OUTPUT_TOO_LARGE


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
names = st.text(max_size=5)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
fields = """text delta itemId replace phase toolCallId args result partialResult kind events progressText
    executionSettled terminalReply status stopReason payloads meta error data stream ts"""
bodies = st.dictionaries(st.sampled_from(fields.split()), values, max_size=8)
streams = st.sampled_from(["assistant", "tool", "item", "lifecycle", "usage"])


@given(st.lists(st.tuples(st.sampled_from(["event", "final", "rejoined"]), bodies, streams, bodies), max_size=6))
def test_frames_without_sense_do_no_harm(found: list[tuple[str, Json, str, Json]]) -> None:
    turn = RunTurn(reasoning=True, size_max_bytes=SIZE_MAX_BYTES)
    for kind, body, stream, data in found:
        turn.feed(Frame(kind, {**body, "stream": stream, "data": data} if kind == "event" else body))
    turn.end()
