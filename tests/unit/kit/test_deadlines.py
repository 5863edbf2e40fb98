"""The caller's deadline bounds what a call may take."""

import pytest
from retinue_kit import deadlines
from retinue_kit.errors import Reason, RetinueError


@pytest.fixture(autouse=True)
def no_deadline():
    yield
    deadlines.enter(None)


def test_without_a_deadline_the_default_holds():
    deadlines.enter(None)
    assert deadlines.timeout_s(5) == 5


def test_the_shorter_of_both_holds_less_a_margin():
    deadlines.enter(2)
    assert deadlines.timeout_s(1) == 1
    assert 1 < deadlines.timeout_s(5) <= 2 - deadlines.HOP_MARGIN_S


def test_each_hop_leaves_exactly_its_margin(monkeypatch):
    now = 100.0
    monkeypatch.setattr(deadlines.time, "monotonic", lambda: now)
    deadlines.enter(4.0)
    now += 0.5
    assert deadlines.timeout_s(100.0) == 3.5 - deadlines.HOP_MARGIN_S


def test_a_deadline_that_has_passed_is_refused():
    deadlines.enter(deadlines.HOP_MARGIN_S)
    with pytest.raises(RetinueError) as caught:
        deadlines.timeout_s(5)
    assert caught.value.reason is Reason.RUN_TIMEOUT
