"""What the light runtime keeps between steps, and how it reads calls out of a model's answer."""

import json
from typing import Any, cast

import pytest
from opentelemetry.trace import INVALID_SPAN
from retinue_kit.errors import Reason
from retinue_runtime_adapter.config import ProviderEntry, Settings
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light import calls, state, wire
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.endpoint import Provider
from retinue_runtime_adapter.light.state import Progress, Step
from retinue_runtime_adapter.light.words import ARGUMENTS_LENGTH_MAX, CALLS_MAX, PLACES_MAX, Asked, Wanted, Words
from retinue_runtime_adapter.tools.ledger import Entry
from tool_driver import CountingTool


def entry(call_id: str = "c", **fields: Any) -> Entry:
    return Entry(
        **{"call_id": call_id, "tool": "read", "arguments": "{}", "state": "finished", "result": "r", **fields}
    )


def progress(*steps: Step) -> Progress:
    return Progress("light", state.VERSION, list(steps), attempt=1)


def heard(*deltas: dict[str, Any]) -> Words:
    """Let a model say pieces of calls."""
    words = Words(cast("Attempt", None), Settings(address=""), INVALID_SPAN, ())
    for delta in deltas:
        line = json.dumps({"choices": [{"delta": {"tool_calls": [delta]}}]}).encode()
        words._take(line, wire.decode_chunk(line), [])
    return words


def piece(arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {"name": fields.pop("name", None), "arguments": arguments}
    return {**fields, "function": function}


def told(words: Words) -> list[tuple[str, str, str]]:
    return [(call.call_id, call.tool, call.arguments) for call in words.wanted]


def test_calls_are_put_together_from_pieces_in_any_order() -> None:
    words = heard(
        piece("", index=0, id="a", name="read"),
        piece('{"pa', index=0),
        piece('{"x":', index=1, id="b", name="list"),
        piece('th":1}', index=0),
        piece("2}", index=1),
    )
    assert told(words) == [("a", "read", '{"path":1}'), ("b", "list", '{"x":2}')]


def test_calls_without_a_place_of_their_own_are_told_apart_by_their_ids() -> None:
    same = heard(piece("{}", index=0, id="a", name="read"), piece("{}", index=0, id="b", name="list"))
    none = heard(piece("{", id="a", name="read"), piece("}"), piece({"x": 1}, id="b", name="list"))
    assert told(same) == [("a", "read", "{}"), ("b", "list", "{}")]
    assert told(none) == [("a", "read", "{}"), ("b", "list", '{"x":1}')]


def test_bounded_arguments_that_are_too_long_are_not_kept_and_refused() -> None:
    words = heard(piece('{"a":"', index=0, id="a", name="write"), piece("x" * ARGUMENTS_LENGTH_MAX, index=0))
    (wanted,) = words.wanted
    assert wanted.too_long
    assert len(wanted.arguments) < 10
    planned = calls.planned("a", wanted)
    assert (planned.arguments, "characters" in planned.refusal) == ("{}", True)


def test_bounded_calls_without_end_are_not_listened_to() -> None:
    many = heard(*(piece("{}", index=n, id=str(n), name="read") for n in range(CALLS_MAX + 5)))
    assert len(many.wanted) == CALLS_MAX
    with pytest.raises(Trouble) as broken:
        heard(*(piece("", index=n, id=str(n), name="read") for n in range(PLACES_MAX + 1)))
    assert broken.value.reason is Reason.OUTPUT_TOO_LARGE
    with pytest.raises(Trouble):
        heard(*(piece("x" * ARGUMENTS_LENGTH_MAX, index=0) for _ in range(5)))


def test_a_call_that_makes_no_sense_is_put_down_as_one_that_can_be_told_again() -> None:
    planned = calls.planned("c", Wanted(tool="rm -rf /", pieces=["{bad"]))
    assert (planned.tool, planned.arguments) == ("rm_-rf__", "{}")
    assert "not valid JSON" in planned.refusal
    assert calls.planned("c", Wanted(tool="")).tool == "unnamed"


def test_a_state_is_read_as_it_was_written() -> None:
    saved = progress(Step("hello", [{"kind": "note", "title": "", "body": {}}], [entry(), entry("d", state="planned")]))
    saved.input_tokens, saved.token = 5, 3
    found = state.read(state.write(saved), 1)
    assert found == saved
    assert found.call_ids() == {"c", "d"}
    assert not found.steps[0].over


def test_what_a_former_attempt_used_is_not_counted_twice() -> None:
    saved = progress(Step("", [], [entry()]))
    saved.input_tokens, saved.output_tokens, saved.size_bytes = 5, 6, 7
    found = state.read(state.write(saved), 2)
    assert (found.input_tokens, found.output_tokens, found.size_bytes, found.attempt) == (0, 0, 7, 2)


OLD = b'{"runtime":"light","text":"hello","cards":[],"input_tokens":1,"output_tokens":2,"model":"m"}'


@pytest.mark.parametrize("data", [b"", b"\xff{", b"{}", OLD, OLD.replace(b"light", b"openclaw")])
def test_what_is_no_state_of_ours_begins_anew(data: bytes) -> None:
    assert state.read(data, 1) == progress()


def test_a_whole_message_of_an_older_release_is_still_told_again() -> None:
    done = wire.read_checkpoint(OLD)
    assert done is not None
    assert (done.text, done.earlier, done.earlier_cards) == ("hello", [], [])
    assert wire.read_checkpoint(state.write(progress(Step("", [], [entry()])))) is None


def test_a_state_of_a_newer_release_is_refused_so_that_nothing_is_done_twice() -> None:
    saved = progress(Step("", [], [entry()]))
    saved.version += 1
    with pytest.raises(Trouble) as refused:
        state.read(state.write(saved), 1)
    assert refused.value.retryable


def test_bounded_a_state_shortens_older_results_and_then_older_arguments() -> None:
    long = "x" * 60_000
    saved = progress(*(Step("", [], [entry(str(n), result=long)]) for n in range(30)))
    data = state.write(saved)
    assert len(data) <= state.SIZE_MAX_BYTES
    assert len(saved.steps[0].calls[0].result) <= state.SHORT_LENGTH
    assert saved.steps[-1].calls[0].result == long
    written = json.dumps({"content": long})
    saved = progress(*(Step("", [], [entry(str(n), arguments=written)]) for n in range(20)))
    assert len(state.write(saved)) <= state.SIZE_MAX_BYTES
    assert json.loads(saved.steps[0].calls[0].arguments) == {"left_out": f"{len(written)} characters"}
    assert saved.steps[-1].calls[0].arguments == written


def test_bounded_a_state_that_cannot_be_shortened_ends_the_run() -> None:
    planned = entry(state="planned", arguments=json.dumps({"content": "x" * state.SIZE_MAX_BYTES}))
    with pytest.raises(Trouble) as ended:
        state.write(progress(Step("", [], [planned])))
    assert ended.value.reason is Reason.OUTPUT_TOO_LARGE


def asked(**entry_: Any) -> dict[str, Any]:
    """Write a request with one step for a provider."""
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    question = Asked(messages, {}, [Step("said", [], [entry()])], [CountingTool(parameters={"$id": "x"})])
    question.suit(Provider("p", ProviderEntry("http://127.0.0.1:1", [], **entry_)))
    joined = question.joined()
    assert joined is not None
    assert question.tokens() == len(["a", "b", "said", "{}", "r"])
    return json.loads(joined.body("m"))


def test_each_provider_is_asked_in_its_own_words() -> None:
    plain, gemini, without = asked(), asked(schema="gemini"), asked(tools=False)
    assert [message["role"] for message in plain["messages"]] == ["user", "assistant", "tool"]
    assert plain["messages"][0]["content"] == "a\n\nb"
    assert gemini["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert "tools" not in without
    assert [message["role"] for message in without["messages"]] == ["user", "assistant", "user"]
    assert without["messages"][1]["content"] == "said\n[called read with {}]"
    assert without["messages"][2]["content"] == "[read answered]\nr"


def test_tool_messages_are_never_joined() -> None:
    conversation = [*wire.of_step(Step("", [], [entry("a"), entry("b")]))]
    assert wire.joined(conversation) == conversation
