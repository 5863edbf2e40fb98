"""What a model's refusal means, by its status and the provider's words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain import troubles


def body(message: str, code: str = "", kind: str = "") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "code": code}}).encode()


OPENAI_OVERFLOW = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (400, body(OPENAI_OVERFLOW, "context_length_exceeded"), Reason.MODEL_CONTEXT_OVERFLOW),
        (400, body("the request exceeds the available context size"), Reason.MODEL_CONTEXT_OVERFLOW),
        (400, body("prompt is too long: 210000 tokens > 200000 maximum"), Reason.MODEL_CONTEXT_OVERFLOW),
        (413, b"", Reason.MODEL_CONTEXT_OVERFLOW),
        (400, body("Conversation roles must alternate user/assistant/user/assistant/..."), Reason.MODEL_ROLE_ORDER),
        (500, body("Conversation roles must alternate user/assistant"), Reason.MODEL_ROLE_ORDER),
        (400, body("Unknown parameter"), Reason.MODEL_REQUEST_REFUSED),
        (400, b'{"error": "Invalid model"}', Reason.MODEL_REQUEST_REFUSED),
        (404, b"<html>", Reason.MODEL_REQUEST_REFUSED),
        (401, body("Incorrect API key provided: sk-12345678"), Reason.MODEL_AUTH),
        (403, b"", Reason.MODEL_AUTH),
        (402, b"", Reason.MODEL_QUOTA),
        (429, body("You exceeded your current quota", "insufficient_quota"), Reason.MODEL_QUOTA),
        (400, body("Your credit balance is too low to access the API"), Reason.MODEL_QUOTA),
        (429, body("Rate limit reached", "rate_limit_exceeded"), Reason.MODEL_RATE_LIMITED),
        (429, b"", Reason.MODEL_RATE_LIMITED),
        (408, b"", Reason.MODEL_TIMEOUT),
        (504, b"", Reason.MODEL_TIMEOUT),
        (500, b"[]", Reason.MODEL_UNAVAILABLE),
        (529, body("Overloaded"), Reason.MODEL_UNAVAILABLE),
        (302, b"", Reason.MODEL_RESPONSE_INVALID),
        (204, b"", Reason.MODEL_RESPONSE_INVALID),
    ],
)
def test_a_refusal_has_its_reason(status: int, text: bytes, expected: Reason) -> None:
    assert troubles.of_response(status, text).reason is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"error":{"message":"Rate limit","code":429}}', Reason.MODEL_RATE_LIMITED),
        (b'{"error":{"message":"gone","code":"server_error"}}', Reason.MODEL_UNAVAILABLE),
        (b'{"error":"out of memory"}', Reason.MODEL_UNAVAILABLE),
        (b'{"error":{"code":7}}', Reason.MODEL_UNAVAILABLE),
        (body(OPENAI_OVERFLOW), Reason.MODEL_CONTEXT_OVERFLOW),
    ],
)
def test_an_error_in_the_stream_has_its_reason(text: bytes, expected: Reason) -> None:
    assert troubles.of_stream(text).reason is expected


def test_who_may_try_again() -> None:
    def facts(status: int, text: bytes = b"", retry_after: str = "") -> tuple[bool, bool, bool]:
        trouble = troubles.of_response(status, text, retry_after)
        return trouble.retryable, trouble.again, trouble.of_credential

    assert facts(400) == (False, False, False)
    assert facts(401) == (False, False, True)
    assert facts(402) == (False, False, True)
    assert facts(429) == (True, True, True)
    assert facts(429, retry_after="2") == (True, True, True)
    assert facts(429, retry_after="3") == (True, False, True)
    assert facts(500) == (True, True, False)
    assert facts(504) == (True, False, False)


def test_the_providers_words_are_passed_on_in_one_short_line_without_secrets() -> None:
    said = "Bad\nrequest\x00 with hidden-key and sk-abcdef123456, Bearer xyz. " + "long " * 100
    message = troubles.of_response(400, body(said), secrets=["hidden-key"]).error.message
    assert message.startswith("The model's endpoint refused the request (400): Bad request with … and …")
    assert "hidden-key" not in message
    assert "abcdef" not in message
    assert "xyz" not in message
    assert len(message) < 260


def test_a_refused_credential_says_nothing_of_the_providers_words() -> None:
    assert "12345" not in troubles.of_response(401, body("Incorrect key: 12345")).error.message


@given(st.integers(100, 999), st.binary(max_size=200) | st.text().map(lambda text: body(text)), st.text(max_size=10))
def test_any_answer_has_a_meaning(status: int, text: bytes, retry_after: str) -> None:
    trouble = troubles.of_response(status, text, retry_after)
    trouble.error.message.encode()
    assert trouble.reason in troubles._SENTENCES
    troubles.of_stream(text)


@pytest.mark.parametrize(("header", "expected"), [("1", 1), ("0.5", 0.5), ("", None), ("-1", None), ("nan", None)])
def test_a_retry_after_is_read_in_seconds(header: str, expected: float | None) -> None:
    assert troubles.retry_after_s(header) == expected
