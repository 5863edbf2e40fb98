"""Ids sort by time and say what they are of."""

import re

from hypothesis import given
from hypothesis import strategies as st
from retinue_kit import ids


def test_an_id_is_a_prefix_and_26_characters():
    assert re.fullmatch(r"run_[0-9a-hjkmnp-tv-z]{26}", ids.new_id("run"))


def test_ids_are_different_however_fast_they_are_made():
    assert len({ids.new_id("run") for _ in range(1000)}) == 1000


def test_ids_sort_by_time(monkeypatch):
    made = []
    for milliseconds in (1, 2, 10**12, 10**12 + 1, 2 * 10**12):
        monkeypatch.setattr(ids.time, "time_ns", lambda at=milliseconds: at * 1_000_000)
        made.append(ids.new_id("run"))
    assert made == sorted(made)


@given(st.integers(0, 2**130 - 1), st.integers(0, 2**130 - 1))
def test_base_32_keeps_the_order_of_numbers(one, two):
    assert (one < two) == (ids.encode_base32(one, 26) < ids.encode_base32(two, 26))
