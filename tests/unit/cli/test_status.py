"""What a state folder says of its mesh, and how it is laid out."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from retinue_cli.commands.status import KEYS, status, table
from retinue_cli.failures import CommandError
from retinue_cli.state import State
from retinue_local.status import MeshStatus, ProcessStatus, write
from rich.console import Console


def processes(*healths: str) -> list[ProcessStatus]:
    return [ProcessStatus(f"worker-{n}", 100 + n, f"unix:/run/{n}", health, n) for n, health in enumerate(healths)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A state folder whose lock is held, as a supervisor holds it."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def test_the_table_has_a_line_a_process() -> None:
    console = Console(width=100, record=True)
    with console.capture() as captured:
        console.print(table(processes("serving", "restarting")))
    lines = captured.get().splitlines()
    assert lines[0].split() == list(KEYS)
    assert lines[1].split() == ["worker-0", "100", "unix:/run/0", "serving", "0"]
    assert lines[2].split() == ["worker-1", "101", "unix:/run/1", "restarting", "1"]


@pytest.mark.parametrize(("healths", "code"), [(["serving", "serving"], 0), (["serving", "not_serving"], 1), ([], 1)])
def test_the_exit_code_says_whether_all_serve(
    healths: list[str], code: int, running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(running / "status.json", MeshStatus(os.getpid(), "http://mesh", processes(*healths)))
    assert status(as_json=True, state_dir=running) == code
    found = json.loads(capsys.readouterr().out)
    assert [set(process) for process in found] == [set(KEYS)] * len(healths)


def test_what_a_killed_supervisor_left_counts_as_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "status.json", MeshStatus(os.getpid(), "http://mesh", processes("serving")))
    (tmp_path / "lock").touch()
    assert status(as_json=True, state_dir=tmp_path) == 1
    assert json.loads(capsys.readouterr().out) == []
    with pytest.raises(CommandError, match="No mesh runs"):
        status(as_json=False, state_dir=tmp_path)


def test_the_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert state.token() == ""
    state.keep_token("first")
    state.keep_token("second")
    assert state.token() == "second"
    assert state.token_file.stat().st_mode & 0o777 == 0o600
