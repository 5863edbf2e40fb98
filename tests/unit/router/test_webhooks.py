"""What becomes of a delivery after each attempt, and who gets a place."""

import json
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import RetinueError
from retinue_router.domain import webhooks
from retinue_router.domain.outbox import (
    PLACES_MAX,
    PLACES_OF_HOST_MAX,
    PLACES_OF_TENANT_MAX,
    PLACES_OF_WEBHOOK_MAX,
    Places,
    Waiting,
)
from retinue_router.domain.webhooks import Verdict

NOW = 1_700_000_000.0
DAY_S = 86_400


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.DELIVERED),
        (204, Verdict.DELIVERED),
        (301, Verdict.RETRY),
        (400, Verdict.RETRY),
        (404, Verdict.RETRY),
        (410, Verdict.GONE),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (599, Verdict.RETRY),
    ],
)
def test_a_status_decides(status, verdict):
    outcome = webhooks.judge(status, 0.0)
    assert outcome.verdict is verdict
    assert outcome.result.startswith(f"HTTP {status}")


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, {"code": 0, "msg": "success"}, Verdict.DELIVERED),
        (200, {"StatusCode": 0, "StatusMessage": "success"}, Verdict.DELIVERED),
        (200, {"code": 19021, "msg": "sign match fail"}, Verdict.DEAD),
        (200, {"code": 19024, "msg": "Key Words Not Found"}, Verdict.DEAD),
        (400, {"code": 9499, "msg": "Bad Request"}, Verdict.DEAD),
        (200, {"code": 19001, "msg": "param invalid"}, Verdict.GONE),
        (200, {"code": 11232, "msg": "frequency limited"}, Verdict.RETRY),
        (400, {"code": 11232, "msg": "frequency limited"}, Verdict.RETRY),
        (200, {"code": 77777, "msg": "new"}, Verdict.RETRY),
        (500, {"code": 0}, Verdict.RETRY),
        (200, {"msg": "no code"}, Verdict.RETRY),
        (200, "text", Verdict.RETRY),
        (410, None, Verdict.GONE),
    ],
)
def test_feishus_code_decides_before_the_status(status, body, verdict):
    assert webhooks.judge_feishu(status, json.dumps(body).encode(), 0.0).verdict is verdict


def test_a_bot_that_hears_too_much_is_left_alone_for_a_while():
    assert webhooks.judge_feishu(200, b'{"code": 11232}', 0.0).rest_s == webhooks.FEISHU_REST_S
    assert webhooks.judge_feishu(200, b'{"code": 11232}', 99.0).rest_s == 99.0


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"\xff\xfe", b"[1]", b"null", b"[" * 16384, b'{"code": %s}' % (b"9" * 4000)]
)
def test_an_answer_that_is_not_feishus_counts_for_nothing(body):
    outcome = webhooks.judge_feishu(200, body, 0.0)
    assert outcome == webhooks.Outcome(Verdict.RETRY, "HTTP 200 without Feishu's answer")


def test_attempts_are_ten_over_most_of_a_day():
    waits = [webhooks.delay_s(attempt, 0.0, 0.5) for attempt in range(1, 12)]
    assert waits[9:] == [None, None]
    assert waits[:9] == sorted(waits[:9])
    assert 0.9 * DAY_S < sum(waits[:9]) < DAY_S


@given(st.integers(1, 9), st.floats(0, 1))
def test_a_delay_is_never_far_from_its_step(attempt, chance):
    step = webhooks.DELAYS_S[attempt - 1]
    assert 0.8 * step <= webhooks.delay_s(attempt, 0.0, chance) <= 1.2 * step


def test_a_receiver_may_have_us_wait_longer_but_not_shorter():
    assert webhooks.delay_s(1, 300.0, 0.5) == 300.0
    assert webhooks.delay_s(5, 1.0, 0.5) == webhooks.DELAYS_S[4]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("999999999", webhooks.RETRY_AFTER_MAX_S),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("1.5", 0.0),
        ("9" * 400, 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert webhooks.retry_after_s(text, NOW) == seconds


def test_only_durable_events_may_be_asked_for():
    assert webhooks.check_event_types([]) == list(webhooks.DEFAULT_EVENT_TYPES)
    assert webhooks.check_event_types(["user.message", "user.message"]) == ["user.message"]
    for unknown in ("assistant.delta", "webhook.test", "", "*"):
        with pytest.raises(RetinueError, match=r"event_types: must be of run\.succeeded"):
            webhooks.check_event_types(["run.failed", unknown])


def waiting(webhook, tenant="ten_a", host="a.example", *, is_due=True):
    return Waiting(webhook, tenant, host, "active", is_due)


def test_a_webhook_has_few_places_and_one_at_a_time():
    places = Places()
    took = [places.take([waiting("w1"), waiting("w1", is_due=False)]) for _ in range(5)]
    assert [len(one) for one in took] == [1] * PLACES_OF_WEBHOOK_MAX + [0] * (5 - PLACES_OF_WEBHOOK_MAX)
    places.give_back(waiting("w1"))
    assert places.take([waiting("w1")])


def test_neither_a_tenant_nor_a_host_takes_the_places_of_all_others():
    places = Places()
    mine = [waiting(f"w{i}", host=f"{i}.example") for i in range(100)]
    assert len(places.take(mine)) == PLACES_OF_TENANT_MAX
    one_host = [waiting(f"v{i}", f"ten_{i}", "dead.example") for i in range(100)]
    assert len(places.take(one_host)) == PLACES_OF_HOST_MAX
    others = [waiting(f"u{i}", f"ten_x{i}", f"x{i}.example") for i in range(100)]
    assert len(places.take(others)) == PLACES_MAX - PLACES_OF_TENANT_MAX - PLACES_OF_HOST_MAX
    assert places.free == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 3)), max_size=300))
def test_what_is_given_back_is_free_again(asked):
    places = Places()
    taken = places.take([waiting(f"w{w}", f"t{t}", f"h{h}") for w, t, h in asked])
    for one in taken:
        places.give_back(one)
    assert places.free == PLACES_MAX
