"""How the offline model calls tools, as a client of OpenAI's sees it."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

TOOLS = [{"type": "function", "function": {"name": "read", "description": "", "parameters": {"type": "object"}}}]
TEXT = '#say=I look.\n#tool=read {"path": "#a b.txt"}\n#tool=list\n#then\n#say=Found: {results}!'


@pytest.fixture
def client(offline_model: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=offline_model.base_url, api_key="none", max_retries=0) as made:
        yield made


def test_calls_are_streamed_in_pieces_and_are_the_same_as_whole_ones(client: Any) -> None:
    asked: dict[str, Any] = {"model": "offline", "messages": [{"role": "user", "content": TEXT}], "tools": TOOLS}
    whole = client.chat.completions.create(**asked).choices[0]
    assert (whole.message.content, whole.finish_reason) == ("I look.", "tool_calls")
    calls = [(call.id, call.function.name, call.function.arguments) for call in whole.message.tool_calls]
    assert [call[1:] for call in calls] == [("read", '{"path": "#a b.txt"}'), ("list", "{}")]
    text, ids, names, arguments, pieces = "", {}, {}, {}, 0
    for chunk in client.chat.completions.create(**asked, stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        for call in delta.tool_calls or ():
            pieces += 1
            ids.setdefault(call.index, call.id)
            names.setdefault(call.index, call.function.name)
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert chunk.choices[0].finish_reason == "tool_calls"
    assert [(ids[n], names[n], arguments[n]) for n in sorted(ids)] == calls
    assert text == "I look."
    assert pieces > len(calls)


def test_results_lead_to_the_next_step_and_the_last_answer_quotes_them(client: Any) -> None:
    first = client.chat.completions.create(
        model="offline", messages=[{"role": "user", "content": TEXT}], tools=TOOLS
    ).choices[0]
    messages: list[Any] = [{"role": "user", "content": TEXT}, first.message.model_dump(exclude_none=True)]
    for n, call in enumerate(first.message.tool_calls):
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"n": n})})
    last = client.chat.completions.create(model="offline", messages=messages, tools=TOOLS).choices[0]
    assert (last.message.content, last.finish_reason) == ('Found: {"n": 0} | {"n": 1}!', "stop")


@pytest.mark.parametrize("without", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_tools_it_answers(client: Any, without: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "#tool=read {}\n#say=Well: {results}"}]
    answer = client.chat.completions.create(model="offline", messages=messages, **without).choices[0]
    assert (answer.message.content, answer.message.tool_calls) == ("Well: ", None)


def test_each_message_of_a_conversation_has_ids_of_its_own(client: Any) -> None:
    message = {"role": "user", "content": "#tool=read {}"}
    conversations = [[message], [message], [message, {"role": "assistant", "content": "x"}, message]]
    answers = [client.chat.completions.create(model="offline", messages=c, tools=TOOLS) for c in conversations]
    one, again, later = (answer.choices[0].message.tool_calls[0].id for answer in answers)
    assert one == again
    assert one != later
