"""Secrets do not leave in a bundle, and what is none stays."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retinue_portability.domain.redaction import DEPTH_MAX, RULES, is_card, mark, redact, redact_value

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1c3JfYSJ9.c2lnbmF0dXJlLWJ5dGVz"
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEI\nabc=\n-----END EC PRIVATE KEY-----"

SECRETS = [
    ("private_key", f"my key:\n{PEM}\nkeep it", PEM),
    ("private_key", "cut off: -----BEGIN PRIVATE KEY-----\nMHcC", "-----BEGIN PRIVATE KEY-----\nMHcC"),
    ("json_web_token", f"token {JWT}.", JWT + "."),
    ("api_key", "use sk-proj-abcdefghijklmnopqrstuv now", "sk-proj-abcdefghijklmnopqrstuv"),
    ("api_key", "ghp_" + "a1" * 18, "ghp_" + "a1" * 18),
    ("api_key", "id AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("api_key", "xoxb-1234567890-abc", "xoxb-1234567890-abc"),
    ("bearer_token", "authorization: Bearer abcdefghijklmnop1234", "abcdefghijklmnop1234"),
    ("url_password", "postgres://ann:hunter2@db:5432/x", "hunter2"),
    ("card_number", "pay with 4111 1111 1111 1111 today", "4111 1111 1111 1111"),
    ("card_number", "pay with 5500-0000-0000-0004", "5500-0000-0000-0004"),
    ("card_number", "378282246310005", "378282246310005"),
]
HARMLESS = [
    "My locker code is 4821 and my number is +47 22 33 44 55",
    "order 4111 1111 1111 1112 has a wrong check digit",
    "1234567890123456 begins like no card",
    "a task-based, risk-free plan: see https://example.org:8080/a@b and bearer of bad news",
    "eyJ is how they begin; sk-short is none",
    "4111 1111 1111 1111 4111 1111 1111 1111 is too long for one",
    "the bearer token goes in a header",
]


@pytest.mark.parametrize(("rule", "text", "secret"), SECRETS)
def test_a_secret_is_taken_out_by_its_rule_and_counted(rule, text, secret):
    taken = Counter()
    made = redact(text, "messages", taken)
    assert secret.rstrip(".") not in made
    assert mark(rule) in made
    assert taken == {("messages", rule): 1}
    assert made == text.replace(secret.rstrip("."), mark(rule)) or rule == "private_key"


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text):
    taken = Counter()
    assert redact(text, "messages", taken) == text
    assert not taken


PIECES = st.sampled_from(
    [text for _, text, _ in SECRETS]
    + HARMLESS
    + [
        "eyJ",
        ".",
        "sk-",
        "Bearer ",
        "://",
        ":",
        "@",
        "4",
        "1111",
        " ",
        "-",
        "a" * 17,
        "\n",
        "-----END PRIVATE KEY-----",
    ]
)


@settings(max_examples=150)
@given(st.lists(PIECES, max_size=7).map("".join))
def test_redacting_twice_changes_nothing(text):
    taken, again = Counter(), Counter()
    made = redact(text, "messages", taken)
    assert redact(made, "messages", again) == made
    assert not again
    assert (made != text) == bool(taken)


def test_every_rule_has_an_example_here():
    assert {rule.name for rule in RULES} == {name for name, _, _ in SECRETS}


def test_values_are_looked_through_with_the_names_of_their_members():
    taken = Counter()
    value = {"note": ["Bearer abcdefghijklmnop1234", 7, None, True], JWT: {"n": 1.5}}
    made = redact_value(value, "profile", taken)
    assert made == {"note": [f"Bearer {mark('bearer_token')}", 7, None, True], mark("json_web_token"): {"n": 1.5}}
    assert taken == {("profile", "bearer_token"): 1, ("profile", "json_web_token"): 1}


def test_bounded_what_is_nested_too_deeply_is_left_out_and_counted():
    value = "Bearer abcdefghijklmnop1234"
    for _ in range(DEPTH_MAX + 5):
        value = [value]
    taken = Counter()
    assert "abcdefghijklmnop" not in str(redact_value(value, "profile", taken))
    assert taken == {("profile", "too_deep"): 1}


def test_cards_are_known_by_beginning_length_and_check_digit():
    assert is_card("4111111111111111")
    assert not is_card("4111111111111112")
    assert not is_card("411111111111111")
    assert not is_card("9111111111111111")


def test_bounded_a_text_made_to_be_slow_is_not():
    # Each would take minutes where a pattern begins anew at every character.
    for text in ("eyJ" * 200_000, "1 " * 300_000, "://" + "a" * 600_000, "Bearer " * 80_000):
        assert redact(text, "messages", Counter()) == text
    assert redact("sk-" * 200_000, "messages", Counter()) == mark("api_key")
