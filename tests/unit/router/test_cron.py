"""Times that expressions of cron name, over both changes of daylight saving, and what is no expression."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from retinue_kit.errors import Reason, RetinueError
from retinue_router import cron

BERLIN = "Europe/Berlin"


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def following(expression, time_zone, start, count):
    """Say when somebody who computes each time from the last one finds the next ones, in UTC."""
    found, after = [], at(start)
    for _ in range(count):
        after = cron.next_after(expression, time_zone, after)
        found.append(f"{after:%Y-%m-%d %H:%M}")
    return found


@pytest.mark.parametrize(
    ("expression", "time_zone", "after", "expected"),
    [
        ("* * * * *", "UTC", "2026-01-01 00:00:00", "2026-01-01 00:01:00"),
        ("* * * * *", "UTC", "2026-01-01 00:00:59.999999", "2026-01-01 00:01:00"),
        ("0 12 * * *", "UTC", "2026-01-01 12:00:00", "2026-01-02 12:00:00"),
        ("0 12 * * *", "UTC", "2026-01-01 11:59:59.999999", "2026-01-01 12:00:00"),
        ("0 9 * * MON-FRI", BERLIN, "2026-01-02 09:00:00", "2026-01-05 08:00:00"),
        ("0 9 * * 1-5", "Asia/Kathmandu", "2026-01-02 09:00:00", "2026-01-05 03:15:00"),
        ("0 0 L * *", "UTC", "2028-02-01 00:00:00", "2028-02-29 00:00:00"),
        ("0 0 29 2 *", "UTC", "2026-01-01 00:00:00", "2028-02-29 00:00:00"),
        ("0 0 * 2 MON#5", "UTC", "2026-01-01 00:00:00", "2044-02-29 00:00:00"),
    ],
)
def test_the_next_time_is_the_first_one_after_the_instant(expression, time_zone, after, expected):
    assert cron.next_after(expression, time_zone, at(after)) == at(expected)


def test_a_time_of_day_that_is_skipped_comes_as_soon_as_the_clock_goes_on():
    # On 29 March 2026 clocks in Berlin go from 02:00 to 03:00, which is 01:00 UTC.
    assert following("30 2 * * *", BERLIN, "2026-03-28 00:00", 3) == [
        "2026-03-28 01:30", "2026-03-29 01:00", "2026-03-30 00:30",
    ]  # fmt: skip


def test_a_time_of_day_that_is_repeated_comes_once():
    # On 25 October 2026 clocks in Berlin go from 03:00 to 02:00, which is 01:00 UTC.
    assert following("30 2 * * *", BERLIN, "2026-10-24 00:00", 3) == [
        "2026-10-24 00:30", "2026-10-25 00:30", "2026-10-26 01:30",
    ]  # fmt: skip


def test_within_the_repeated_hour_a_time_that_was_said_before_does_not_come_again():
    assert following("0-59 2 * * *", BERLIN, "2026-10-25 01:10", 1) == ["2026-10-26 01:00"]


def test_what_comes_every_quarter_of_an_hour_follows_the_clock_as_it_runs():
    for day in ("2026-03-29", "2026-10-25"):
        found = [datetime.fromisoformat(time) for time in following("*/15 * * * *", BERLIN, f"{day} 00:00", 16)]
        assert {after - before for before, after in pairwise(found)} == {timedelta(minutes=15)}


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)), st.sampled_from(["17 2 * * *", "*/7 1-3 * * *"]))
@example(datetime(2026, 10, 25, 1, 30), "17 2 * * *")
def test_the_next_time_is_never_past(after, expression):
    after = after.replace(tzinfo=UTC)
    for time_zone in (BERLIN, "America/St_Johns", "Australia/Lord_Howe", "Antarctica/Troll"):
        found = cron.next_after(expression, time_zone, after)
        assert after < found < after + timedelta(days=2)


@pytest.mark.parametrize(
    "expression",
    [
        "", "* * * *", "* * * * * *", "0 0 0 0 0 0", "60 * * * *", "* 24 * * *", "0 0 30 2 *", "0 0 32 * *",
        "5-1 * * * *", "*/0 * * * *", "a * * * *", "1,,2 * * * *", "@daily", "0 0 * * 8", "² * * * *", "0 0 * * MON#6",
        "0 0 * 13 *", "-1 * * * *", "0 0 * * 5L/2", "0 0 L/x * *",
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(RetinueError) as refused:
        cron.next_after(expression, "UTC", at("2026-01-01"))
    assert (refused.value.reason, refused.value.metadata["field"]) == (Reason.FIELD_INVALID, "cron")


def test_an_expression_that_never_comes_has_no_next_time():
    assert cron.next_after("* * */20 * 1L", "UTC", at("2026-01-01")) is None


@pytest.mark.parametrize(
    "time_zone",
    [
        "Europe",
        "europe/berlin",
        "Mars/Base",
        "../UTC",
        "/etc/localtime",
        "localtime",
        "Factory",
        "posixrules",
        "right/Europe/Berlin",
        "Europe/Berlin\n",
        "a" * 300,
    ],
)
def test_a_name_that_is_no_time_zone_is_refused(time_zone):
    with pytest.raises(RetinueError) as refused:
        cron.next_after("* * * * *", time_zone, at("2026-01-01"))
    assert (refused.value.reason, refused.value.metadata["field"]) == (Reason.FIELD_INVALID, "time_zone")


PART = st.text("0123456789*/-,L#WMONFEB", min_size=1, max_size=8)


@settings(max_examples=300)
@given(st.lists(PART | st.just("*"), min_size=5, max_size=5) | st.text(max_size=30).map(str.split))
def test_any_text_either_names_times_or_is_refused(parts):
    with suppress(RetinueError):
        found = cron.next_after(" ".join(parts), BERLIN, at("2026-01-01"))
        assert found is None or found > at("2026-01-01")
