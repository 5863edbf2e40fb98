"""What is said of the mesh's load, for people and for programs."""

from datetime import UTC, datetime

import pytest
from retinue_cli.load import Load, show

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
OPEN = {
    "runtime": "light",
    "tenant_id": "ten_a",
    "tenant": "acme",
    "state": "open",
    "open_time": "2026-01-01T11:59:30Z",
    "probe_time": "2026-01-01T12:00:03.200Z",
    "open_count": 3,
}
ALL = {**OPEN, "tenant_id": None, "tenant": None, "state": "half_open"}
WAITING = {"class": "chat", "waiting": 3, "oldest_wait_s": 1.25, "later": 0}
LATER = {"class": "task", "waiting": 0, "oldest_wait_s": 0.0, "later": 7}


def test_queues_and_dead_letters_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    show(Load(queues=[WAITING, LATER], dead_letters=2, breakers=[]), NOW)
    assert capsys.readouterr().out.splitlines() == [
        "queue chat: 3 waiting, the first for 1.2 s",
        "queue task: 0 waiting, 7 for later",
        "dead letters: 2 (retinue runs dead)",
        "breakers: all closed",
    ]


def test_a_breaker_says_whose_it_is_and_when_it_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    show(Load(breakers=[ALL, OPEN], breaker_count=5), NOW)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["light", "all", "tenants", "half_open", "30", "s", "ago", "now"]
    assert lines[2] == ["light", "acme", "open", "30", "s", "ago", "in", "4", "s"]
    assert lines[3] == ["…", "and", "3", "more", "breakers"]


def test_who_could_not_be_asked_is_said_and_nothing_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    load = Load(troubles=["breakers: policy does not answer"])
    show(load, NOW)
    assert capsys.readouterr().out == "breakers: policy does not answer\n"
    assert set(load.plain().values()) == {None}
