"""The bundled offline model, as a client of OpenAI's sees it."""

import socket
import subprocess
import sys
from typing import Any

import openai
import pytest

START_TIMEOUT_S = 30.0


@pytest.fixture
def client(offline_model: Any) -> Any:
    with openai.OpenAI(base_url=offline_model.base_url, api_key="none", max_retries=0) as made:
        yield made


def test_an_answer_says_what_it_comes_from_and_is_the_same_each_time(client: Any) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "hello"},
    ]
    first, again = (client.chat.completions.create(model="offline", messages=messages) for _ in range(2))
    answer = first.choices[0].message.content
    assert answer.startswith("(offline model) You said: hello\n")
    assert "bundled offline model" in answer
    assert "shown: 2." in answer
    assert again.choices[0].message.content == answer
    assert again.usage == first.usage


def test_a_streamed_answer_is_the_same_as_a_whole_one(client: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": 'Grüße, "world" \\ 😀'}]}]
    whole = client.chat.completions.create(model="offline", messages=messages)
    stream = client.chat.completions.create(
        model="offline", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_words_that_are_no_directive_are_words(client: Any) -> None:
    messages = [{"role": "user", "content": "We are #1 in C#, #winning a#hang"}]
    answer = client.chat.completions.create(model="offline", messages=messages)
    assert "We are #1 in C#, #winning a#hang" in answer.choices[0].message.content


def test_it_lists_its_model(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["offline"]


def test_a_request_that_makes_no_sense_is_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", body={"messages": "x"}, cast_to=object)


def test_a_taken_port_is_one_line_and_exit_2() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        argv = [sys.executable, "-m", "retinue_local.offline_model", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
