"""The rules of the model endpoint for gateways: what is asked, what is passed on, whose call it is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import INVALID_SPAN
from retinue_kit.tokens import estimate
from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.domain.models import Model
from retinue_runtime_adapter.light.attempt import Attempt
from retinue_runtime_adapter.light.wire import Usage
from retinue_runtime_adapter.openclaw.proxy.asking import Asked, MalformedError
from retinue_runtime_adapter.openclaw.proxy.ledger import CALLS_MAX, CrowdedError, Ledger, Run
from retinue_runtime_adapter.openclaw.proxy.relay import DONE, Relay
from retinue_runtime_adapter.openclaw.proxy.thinking import Thinking

KEY = ("ins_a", "ten_a")


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces."""
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def thought_and_said(pieces: list[str]) -> tuple[str, str]:
    thinking = Thinking()
    found = [thinking.feed(piece) for piece in pieces]
    found.append(thinking.feed("", ending=True))
    return "".join(thought for thought, _ in found), "".join(said for _, said in found)


@pytest.mark.parametrize(
    ("text", "thought", "said"),
    [
        ("hello", "", "hello"),
        ("", "", ""),
        ("  hello ", "", "  hello "),
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\na\n</think>\n\n b <think>c</think>", "\na\n", "b <think>c</think>"),
        ("<thinking>a < b</thinking>b", "a < b", "b"),
        ("<think>never closed", "never closed", ""),
        ("<think>a</thin", "a</thin", ""),
        ("<thin", "", "<thin"),
        ("<b>bold</b> <think>x</think>", "", "<b>bold</b> <think>x</think>"),
        ("<think></think>b", "", "b"),
    ],
)
def test_leading_thoughts_are_taken_out_and_nothing_else(text: str, thought: str, said: str) -> None:
    assert thought_and_said([text]) == (thought, said)
    assert thought_and_said(list(text)) == (thought, said)


_WORDS = st.lists(st.sampled_from(["<think>", "</think>", "<thinking>", "<", "/", "think", ">", " ", "\n", "a", "é"]))


@given(words=_WORDS, places=st.lists(st.integers(0, 80)))
def test_thoughts_are_the_same_however_an_answer_is_cut(words: list[str], places: list[int]) -> None:
    text = "".join(words)
    assert thought_and_said(cut(text, places)) == thought_and_said([text])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.none() | st.text(max_size=8) | st.sampled_from([" ", "\n", "<", "<t", "<b"]),
        "refusal": st.none() | st.text(max_size=4),
        "tool_calls": st.lists(st.fixed_dictionaries({"index": st.just(0), "id": st.text(max_size=4)}), max_size=2),
        "extra": _JSON,
    },
)
_CHUNKS = st.builds(
    lambda delta, finish, extra: {"choices": [{"delta": delta, "finish_reason": finish}], "x": extra},
    _DELTAS,
    st.none() | st.just("stop"),
    _JSON,
)


def relay(*, wants_usage: bool = True) -> Relay:
    return Relay(wants_usage, _attempt(), Settings(address=""), INVALID_SPAN, [])


def _attempt() -> Attempt:
    return Attempt.__new__(Attempt)  # nothing is waited for here


@given(
    chunks=st.lists(_CHUNKS, max_size=6),
    batches=st.lists(st.integers(0, 6)),
    spaces=st.booleans(),
    ascii_only=st.booleans(),
)
def test_a_stream_without_thoughts_is_passed_on_byte_by_byte(
    chunks: list[Any], batches: list[int], spaces: bool, ascii_only: bool
) -> None:
    separators = (", ", ": ") if spaces else (",", ":")
    lines = [json.dumps(c, separators=separators, ensure_ascii=ascii_only).encode() for c in chunks]
    call = relay()
    passed = b""
    ends = sorted({min(end, len(lines)) for end in batches} | {len(lines)})
    for start, end in zip([0, *ends], ends, strict=False):
        passed += b"".join(part.data for part in call._decode(lines[start:end]))
    passed += call.rest()
    assert passed == b"".join(b"data: " + line + b"\n\n" for line in lines) + DONE


def test_what_says_nothing_yet_is_held_back_until_something_is_said() -> None:
    call = relay()
    role = b'{"choices":[{"delta":{"role":"assistant","content":""}}]}'
    word = b'{"choices":[{"delta":{"content":"a"}}]}'
    assert call._decode([role]) == []
    assert [part.data for part in call._decode([word])] == [b"data: " + role + b"\n\ndata: " + word + b"\n\n"]


def test_usage_is_passed_on_to_who_asked() -> None:
    usage = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    for wanted, told in ((True, b"data: " + usage + b"\n\n" + DONE), (False, DONE)):
        call = relay(wants_usage=wanted)
        assert call._decode([usage]) == []
        assert call.rest() == told
        assert call.usage == Usage(1, 2)


def test_thoughts_leave_no_trace_in_what_is_passed_on() -> None:
    call = relay()
    lines = [
        b'{"choices":[{"delta":{"role":"assistant","reasoning_content":"A","reasoning_details":[{"text":"A"}]}}]}',
        b'{"choices":[{"delta":{"reasoning":"B"}}]}',
        b'{"choices":[{"delta":{"content":"<think>C</th"}}]}',
        b'{"choices":[{"delta":{"content":"ink> d","reasoning":"E"}}]}',
    ]
    parts = call._decode(lines)
    assert "".join(part.thought for part in parts) == "ABCE"
    passed = b"".join(part.data for part in parts)
    assert [json.loads(line[6:])["choices"][0]["delta"] for line in passed.splitlines() if line] == [
        {"role": "assistant"},
        {},
        {},
        {"content": "d"},
    ]
    assert call.said.tokens == estimate("AB<think>C</think> dE")


def test_a_beginning_that_was_no_thought_after_all_is_passed_on_as_it_came() -> None:
    lines = [b'{"choices":[{"delta":{"content":" <thi"}}]}', b'{"choices":[{"finish_reason":"stop"}]}']
    call = relay()
    assert call._decode(lines[:1]) == []
    events = [b"data: " + line + b"\n\n" for line in lines]
    assert b"".join(part.data for part in call._decode(lines[1:])) == b"".join(events)
    call = relay()
    call._decode(lines[:1])
    assert call.rest() == events[0] + DONE


def test_thoughts_are_heard_while_it_is_open_what_the_first_words_are() -> None:
    call = relay()
    lines = [b'{"choices":[{"delta":{"content":"<"}}]}', b'{"choices":[{"delta":{"reasoning":"A","content":"b"}}]}']
    parts = call._decode(lines)
    assert "".join(part.thought for part in parts) == "A"
    assert b"".join(part.data for part in parts) == b"data: " + lines[0] + b"\n\n" + (
        b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
    )


def test_calls_of_tools_count_as_output() -> None:
    call = relay()
    function = {"name": "look", "arguments": '{"a":1}'}
    call._decode([json.dumps({"choices": [{"delta": {"tool_calls": [{"function": function}]}}]}).encode()])
    assert call.said.tokens == estimate('look{"a":1}')


def asked(value: dict[str, Any], *, options: dict[str, Any] | None = None) -> Any:
    return json.loads(Asked.read(json.dumps(value).encode(), (), options or {}).body("m"))


def test_the_run_decides_on_model_and_parameters() -> None:
    body = {"model": "x", "messages": [], "temperature": 1, "max_completion_tokens": 5, "seed": 1}
    found = asked(body, options={"temperature": 0.5, "max_tokens": 7})
    assert found == {"model": "m", "messages": [], "temperature": 0.5, "max_tokens": 7, "seed": 1}
    assert asked(body) == {"model": "m", "messages": [], "temperature": 1, "seed": 1}


@pytest.mark.parametrize("tools", [{}, {"tools": []}, {"tools": None}])
def test_without_tools_there_is_no_choice_of_one(tools: dict[str, Any]) -> None:
    assert asked({"messages": [], "tool_choice": "auto", **tools}) == {"model": "m", "messages": []}
    some = {"messages": [], "tool_choice": "auto", "tools": [{"type": "function"}], "model": "m"}
    assert asked(some) == some


@pytest.mark.parametrize(
    ("names", "shown"), [(["read"], ["read"]), ([], []), (["other"], []), (None, ["read", "exec"])]
)
def test_a_model_is_shown_the_tools_that_its_run_is_offered(names: list[str] | None, shown: list[str]) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("read", "exec")]
    body = json.dumps({"messages": [], "tools": tools, "tool_choice": "auto"}).encode()
    found = json.loads(Asked.read(body, (), {}, names).body("m"))
    assert [tool["function"]["name"] for tool in found.get("tools", [])] == shown
    assert ("tool_choice" in found) == bool(shown)


def test_tools_that_are_none_are_refused() -> None:
    for tools in (1, [1], {}):
        with pytest.raises(MalformedError):
            Asked.read(json.dumps({"messages": [], "tools": tools}).encode(), (), {}, ["read"])


def test_numbers_pass_as_they_are_written() -> None:
    body = b'{"messages":[],"seed":12345678901234567890123,"top_p":0.10,"logit_bias":{"1": 1e2}}'
    written = Asked.read(body, (), {}).body("m")
    assert b'"seed":12345678901234567890123' in written
    assert b'"top_p":0.10' in written
    assert b'{"1": 1e2}' in written


@pytest.mark.parametrize(
    ("escaped", "read"),
    [
        (r"a\ud83d", "a\ufffd"),
        (r"\ude00a", "\ufffda"),
        (r"\ud83d\ude00\ud83d", "\U0001f600\ufffd"),
        (r"\\ud83d\ud83d", "\\ud83d\ufffd"),
        (r"\n\u00e9\"\uD83D\"", '\né"\ufffd"'),
    ],
)
def test_half_a_letter_is_replaced(escaped: str, read: str) -> None:
    body = '{"messages":[{"role":"user","content":"%s"}]}' % escaped  # noqa: UP031 - braces
    assert json.loads(Asked.read(body.encode(), (), {}).body("m"))["messages"][0]["content"] == read


@pytest.mark.parametrize("body", [b"", b"1", b"{}", b'{"messages":{}}', b'{"messages":[1]}', b'{"messages":[],}'])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError):
        Asked.read(body, (), {})


def test_neighbours_of_one_role_are_joined_unless_they_are_more_than_words() -> None:
    part = {"type": "text", "text": "c"}
    call = {"role": "assistant", "content": "e", "tool_calls": []}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "user", "content": [part]},
        {"role": "assistant", "content": "d"},
        call,
        {"role": "assistant", "content": "f"},
    ]
    found = Asked.read(json.dumps({"messages": messages}).encode(), (), {}).joined()
    assert found is not None
    joined = json.loads(found.body("m"))["messages"]
    assert joined[0] == {"role": "user", "content": [{"type": "text", "text": "a\n\nb"}, part]}
    assert joined[1:] == messages[3:]
    assert found.joined() is None


def test_what_a_model_has_to_read_is_counted_in_tokens_and_without_pictures() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:" + "x" * 1000}}
    function = {"name": "look", "arguments": "{}"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "four"}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}, "odd"]},
        {"role": "tool", "content": "five5"},
    ]
    body = json.dumps({"messages": messages, "tools": []}).encode()
    assert Asked.read(body, (), {}).tokens() == estimate("four") + 2 * estimate("look") + estimate("five5") + 1
    assert Asked.read(body, [{"role": "user", "content": "我的猫"}], {}).tokens() == 3 + 1 + 2 + 2 + 1


def run(run_id: str = "run_a", trace_id: str = "", **fields: Any) -> Run:
    made = {"model": "", "parameters": {}, "on_reasoning": None, "before": ()}
    return Run(run_id=run_id, trace_id=trace_id, **{**made, **fields})


def test_a_call_finds_its_run() -> None:
    ledger = Ledger()
    one, two, three = run("1", "t1"), run("2", "t2"), run("3")
    assert ledger.find(KEY, "t1") is None
    with ledger.run(KEY, one):
        assert ledger.find(KEY, "") is ledger.find(KEY, "t9") is one
        assert ledger.find(("ins_b", "ten_a"), "t1") is ledger.find(("ins_a", "ten_b"), "t1") is None
        with ledger.run(KEY, two):
            assert [ledger.find(KEY, trace) for trace in ("t1", "t2", "t9", "")] == [one, two, None, None]
            with ledger.warm(KEY):
                assert [ledger.find(KEY, trace) for trace in ("t1", "t2", "t9", "")] == [one, two, None, None]
                with ledger.run(KEY, three):
                    assert [ledger.find(KEY, trace) for trace in ("t1", "t9")] == [one, three]
    assert ledger.find(KEY, "t1") is None
    assert not ledger.is_warming(KEY)


def test_a_cost_is_rounded_once_and_not_with_each_call() -> None:
    of = run()
    for _ in range(10):
        of.count(Usage(1, 1), Model("m", "p", "x", input_price=0.03, output_price=0.04))
    assert of.meter.cost_micros == 1
    of.count(Usage(-5, 2**40), Model("m", "p", "x"))
    assert (of.meter.input_tokens, of.meter.output_tokens) == (10, 10 + 2**31 - 1)


def test_thoughts_of_a_call_that_may_be_anothers_are_not_told() -> None:
    heard: list[str] = []
    of = run(trace_id="t1", on_reasoning=heard.append)
    of.hear("a", "t1")
    of.hear("b", "t2")
    of.hear("c", "")
    run(on_reasoning=heard.append).hear("d", "t2")
    assert heard == ["a", "d"]


async def test_calls_of_a_run_at_once_are_bounded() -> None:
    of = run()
    held = [of.attempt() for _ in range(CALLS_MAX)]
    for attempt in held:
        attempt.__enter__()
    with pytest.raises(CrowdedError), of.attempt():
        pass
    held.pop().__exit__(None, None, None)
    with of.attempt():
        assert of.meter.calls == CALLS_MAX + 1
