"""Frames are read and errors classified; nothing that a gateway says of itself is passed on."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import Reason
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import protocol

RECORDED = sorted((Path(__file__).parents[2] / "fixtures" / "openclaw").glob("*/*.jsonl"))


def recorded(name: str) -> list[Any]:
    """Frames of a recording, of the newest version."""
    path = [path for path in RECORDED if path.stem == name][-1]
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(**fields: Any) -> protocol.Incoming:
    return protocol.decode(json.dumps({"type": "res", "id": "connect", **fields}))


def test_the_handshake_is_the_recorded_one() -> None:
    sent = next(row["frame"] for row in recorded("plain") if row["from"] == "client")
    ours = json.loads(protocol.connect("connect-1", "token", "1.0.0"))
    assert ours == sent


def test_a_hello_is_read() -> None:
    frame = next(
        row["frame"] for row in recorded("plain") if row["frame"].get("id") == "connect-1" and "ok" in row["frame"]
    )
    hello = protocol.read_hello(protocol.decode(json.dumps(frame)))
    assert hello.version.startswith("20")
    assert hello.boot_id
    assert hello.tick_interval_s == 30
    assert hello.payload_max_bytes == 25 * 1024 * 1024


def refusals() -> list[protocol.Incoming]:
    frames = [row["frame"] for row in recorded("handshakes") if row["from"] == "gateway"]
    return [protocol.decode(json.dumps(frame)) for frame in frames if frame["type"] == "res"]


def test_a_recorded_wrong_token_is_told_to_operators() -> None:
    with pytest.raises(Trouble, match="refused the token") as raised:
        protocol.read_hello(refusals()[0])
    assert raised.value.reason is Reason.RUNTIME_UNAVAILABLE


def test_a_mismatch_names_both_versions() -> None:
    fault = {"code": "INVALID_REQUEST", "details": {"code": "PROTOCOL_MISMATCH", "expectedProtocol": 5}}
    with pytest.raises(Trouble, match=r"version 5 of its protocol, and this adapter version 4"):
        protocol.read_hello(answer(ok=False, error=fault))


def test_a_recorded_mismatch_is_one() -> None:
    with pytest.raises(Trouble, match="of its protocol"):
        protocol.read_hello(refusals()[1])


def test_a_hello_of_another_version_is_refused_as_well() -> None:
    with pytest.raises(Trouble, match="version 7"):
        protocol.read_hello(answer(ok=True, payload={"type": "hello-ok", "protocol": 7}))


@pytest.mark.parametrize(("asked_ms", "wait_s"), [(500, 0.5), (0, 0.05), (10**9, 2.0), (None, 0.05)])
def test_a_gateway_that_starts_is_asked_again_after_a_bounded_pause(asked_ms: int | None, wait_s: float) -> None:
    fault = {"code": "UNAVAILABLE", "details": {"reason": "startup-sidecars"}, "retryAfterMs": asked_ms}
    with pytest.raises(protocol.Starting) as raised:
        protocol.read_hello(answer(ok=False, error=fault))
    assert raised.value.retry_after_s == wait_s


@pytest.mark.parametrize("tick_ms", [None, "30", -1, 0, 10**12, 1])
def test_a_tick_is_believed_within_bounds(tick_ms: Any) -> None:
    payload = {"protocol": 4, "policy": {"tickIntervalMs": tick_ms, "maxPayload": -3}}
    hello = protocol.read_hello(answer(ok=True, payload=payload))
    assert protocol.TICK_INTERVAL_MIN_S <= hello.tick_interval_s <= protocol.TICK_INTERVAL_MAX_S
    assert hello.payload_max_bytes == protocol.FRAME_SIZE_MAX_BYTES


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_what_makes_no_sense_is_a_value_error_and_nothing_else(data: bytes | str) -> None:
    try:
        frame = protocol.decode(data)
        protocol.head(frame.payload)
        protocol.body(frame.payload)
    except ValueError:
        pass


@pytest.mark.parametrize("cut", ["\\ud83d", "\\ude00", "a\\ud83d"])
def test_half_a_character_is_left_out(cut: str) -> None:
    written = f'{{"type":"event","event":"agent","payload":{{"text":"x{cut}"}}}}'
    kept = "xa" if cut.startswith("a") else "x"
    assert protocol.body(protocol.decode(written).payload) == {"text": kept}


def test_a_written_escape_is_no_half_character() -> None:
    text = "the escape \\ud83d in words"
    frame = protocol.decode(json.dumps({"type": "event", "payload": {"text": text}}))
    assert protocol.body(frame.payload) == {"text": text}


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("auth", "", Reason.MODEL_AUTH),
        ("auth_permanent", "", Reason.MODEL_AUTH),
        ("format", "", Reason.MODEL_REQUEST_REFUSED),
        ("rate_limit", "", Reason.MODEL_RATE_LIMITED),
        ("overloaded", "", Reason.MODEL_UNAVAILABLE),
        ("billing", "", Reason.MODEL_QUOTA),
        ("timeout", "", Reason.MODEL_TIMEOUT),
        ("context_overflow", "", Reason.MODEL_CONTEXT_OVERFLOW),
        ("incomplete_turn", "", Reason.MODEL_RESPONSE_INVALID),
        ("unclassified", "", Reason.MODEL_UNAVAILABLE),
        ("", "LLM request failed: provider rejected the request schema or tool payload.", Reason.MODEL_REQUEST_REFUSED),
        ("", "Context overflow: prompt too large for the model. Try /reset", Reason.MODEL_CONTEXT_OVERFLOW),
        ("", "p/default request failed (authentication failed, HTTP 401). Re-authenticate", Reason.MODEL_AUTH),
        ("", 'Inline API key for provider "p" is temporarily disabled after', Reason.MODEL_AUTH),
        ("", "Request timed out before a response was generated.", Reason.MODEL_TIMEOUT),
        ("", "request failed (rate limit, HTTP 429)", Reason.MODEL_RATE_LIMITED),
        ("", "insufficient credits", Reason.MODEL_QUOTA),
        ("", "roles must alternate", Reason.MODEL_ROLE_ORDER),
        ("", "something new", Reason.MODEL_UNAVAILABLE),
    ],
)
def test_a_failed_run_is_classified_and_its_words_are_kept(kind: str, text: str, reason: Reason) -> None:
    trouble = protocol.of_failure(kind, f"{text} /srv/secret host-1 sk-abcdef123456")
    assert trouble.reason is reason
    assert not any(word in str(trouble) for word in ("/srv", "host-1", "sk-", "default"))


def test_recorded_refusals_are_classified_and_their_words_are_kept() -> None:
    faults = [row["frame"]["error"] for row in recorded("bad_requests") if row["frame"].get("ok") is False]
    found = [protocol.of_refusal(protocol.Fault(fault["code"], fault["message"])) for fault in faults]
    assert [trouble.reason for trouble in found] == [
        Reason.RUNTIME_UNAVAILABLE,  # a session of another agent
        Reason.RUNTIME_UNAVAILABLE,  # an unknown agent
        Reason.INTERNAL,  # parameters without sense
        Reason.INTERNAL,  # an unknown method
        Reason.RUNTIME_UNAVAILABLE,  # an agent that is gone
        Reason.RUNTIME_UNAVAILABLE,  # a configuration that has changed meanwhile
    ]
    assert all(fault["message"] == trouble.text != str(trouble) for fault, trouble in zip(faults, found, strict=True))
