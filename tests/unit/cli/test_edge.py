"""The command's client of the public API, against answers made here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from retinue_cli.edge import RESUMES_MAX, Edge
from retinue_cli.failures import CommandError


def frame(cursor: str, kind: str, **data: Any) -> str:
    event = {"cursor": cursor, "type": kind, "run_id": "run_1", "data": data}
    return f"id: {cursor}\nevent: {kind}\ndata: {json.dumps(event)}\n\n"


def error(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"code": 14, "message": message, "details": []})


class Cut(httpx.SyncByteStream):
    """A stream that breaks off."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx.ReadError("connection reset")


class Server:
    """Answers requests in turn, the last answer for good; keeps what was asked, and the pauses in between."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def edge(self) -> Edge:
        return Edge("http://mesh", "token", transport=httpx.MockTransport(self), pause=self.pauses.append)


def stream(text: str, *, cut: bool = False) -> httpx.Response:
    headers = {"content-type": "text/event-stream"}
    return (
        httpx.Response(200, headers=headers, stream=Cut(text))
        if cut
        else httpx.Response(200, headers=headers, text=text)
    )


def test_a_stream_that_is_cut_is_taken_up_after_its_last_event() -> None:
    first = frame("1-1", "run.started") + frame("1-2", "assistant.delta", text="Hel")
    server = Server(
        stream(first, cut=True), stream(frame("1-3", "assistant.delta", text="lo") + frame("1-4", "run.succeeded"))
    )
    with server.edge() as edge:
        cursors = [event["cursor"] for event in edge.send("ada", "Hi")]
    assert cursors == ["1-1", "1-2", "1-3", "1-4"]
    resumed = server.requests[1]
    assert (resumed.method, resumed.url.path, resumed.headers["last-event-id"]) == (
        "GET",
        "/v1/runs/run_1/events",
        "1-2",
    )
    assert server.pauses == []


def test_comments_that_break_a_silence_are_no_events() -> None:
    server = Server(stream(frame("1", "run.started") + ": still here\n\n" + frame("2", "run.succeeded")))
    assert [event["type"] for event in server.edge().send("me", "hello")] == ["run.started", "run.succeeded"]


def test_a_message_without_an_answer_is_sent_again_with_the_same_key() -> None:
    away = httpx.ConnectError("refused")
    server = Server(away, error(503, "not now"), stream(frame("1-1", "run.succeeded")))
    with server.edge() as edge:
        assert len(list(edge.send("ada", "Hi"))) == 1
    assert [request.method for request in server.requests] == ["POST"] * 3
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_a_refusal_is_a_sentence_and_is_not_repeated() -> None:
    server = Server(error(401, "The token has expired."))
    with server.edge() as edge, pytest.raises(CommandError, match=r"The token has expired\."):
        list(edge.send("ada", "Hi"))
    assert len(server.requests) == 1


def test_a_mesh_that_stays_away_is_given_up() -> None:
    server = Server(httpx.ConnectError("refused"))
    with server.edge() as edge, pytest.raises(CommandError, match="does not answer"):
        list(edge.send("ada", "Hi"))
    assert len(server.requests) == RESUMES_MAX + 1


def test_an_error_within_a_stream_is_a_cut() -> None:
    told = 'event: error\ndata: {"code":8,"message":"too slow"}\n\n'
    server = Server(stream(frame("1-1", "run.started") + told), stream(frame("1-2", "run.succeeded")))
    with server.edge() as edge:
        assert [event["cursor"] for event in edge.send("ada", "Hi")] == ["1-1", "1-2"]


def test_the_latest_messages_are_gathered_over_pages() -> None:
    pages = [
        {"messages": [{"text": "1"}, {"text": "2"}], "next_page_token": "p2"},
        {"messages": [{"text": "3"}], "next_page_token": ""},
    ]
    server = Server(*(httpx.Response(200, json=page) for page in pages))
    with server.edge() as edge:
        assert [message["text"] for message in edge.messages("ada", 2)] == ["2", "3"]
    assert server.requests[1].url.params["page_token"] == "p2"


def test_a_contact_that_is_new_has_no_messages() -> None:
    with Server(error(404, "no such contact")).edge() as edge:
        assert edge.messages("ada", 20) == []


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"none\.pem cannot be used: No such file or directory\.$"):
        Edge("https://mesh", "token", certificate=str(tmp_path / "none.pem"))


def test_who_does_not_trust_the_certificate_is_told_how() -> None:
    with pytest.raises(CommandError, match="name the certificate to trust with --certificate"):
        Server(httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")).edge().cancel("run_1")
