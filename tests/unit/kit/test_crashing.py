"""Crash points: nothing where they are off; counted, and taken once, where they are on."""

import signal
import subprocess
import sys
from enum import StrEnum

import pytest
from retinue_kit import crashing

PROGRAM = """
import sys
from enum import StrEnum
from retinue_kit import crashing

class Point(StrEnum):
    BEFORE = "test.before"
    AFTER = "test.after"

crashing.switch_on()
crashing.reach(Point.BEFORE)
crashing.reach(None)
crashing.reach(Point.AFTER)
print("lived")
"""


class Point(StrEnum):
    BEFORE = "test.before"


def start(folder):
    environ = {"RETINUE_CRASH_DIR": str(folder)} if folder else {}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environ, stdout=subprocess.PIPE, text=True)


def run(folder):
    process = start(folder)
    told, _ = process.communicate(timeout=60)
    return process, told


def arm(folder, point, action):
    (folder / "armed").mkdir(exist_ok=True)
    (folder / "armed" / point).write_text(action)


def test_switched_off_nothing_happens_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    crashing.switch_on({})
    crashing.reach(Point.BEFORE)
    assert list(tmp_path.iterdir()) == []


def test_switched_on_each_point_reached_is_counted(tmp_path):
    process, told = run(tmp_path)
    assert (process.returncode, told) == (0, "lived\n")
    assert (tmp_path / "hits" / str(process.pid)).read_text() == "test.before\ntest.after\n"


def test_an_armed_point_kills_the_first_that_reaches_it_and_no_other(tmp_path):
    arm(tmp_path, "test.before", "kill")
    process, told = run(tmp_path)
    assert (process.returncode, told) == (-signal.SIGKILL, "")
    assert (tmp_path / "hits" / str(process.pid)).read_text() == "test.before\n"
    assert (tmp_path / "fired" / f"test.before.{process.pid}").read_text() == "kill"
    assert run(tmp_path)[0].returncode == 0


async def test_an_armed_point_can_stop_a_process_that_goes_on_when_it_is_woken(tmp_path, eventually):
    arm(tmp_path, "test.before", "stop")
    process = start(tmp_path)
    await eventually(lambda: (tmp_path / "fired" / f"test.before.{process.pid}").exists())
    await eventually(lambda: stopped(process.pid))
    process.send_signal(signal.SIGCONT)
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "lived\n")


def stopped(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("folder", ["new", "new/below"])
def test_the_folder_is_made_where_it_is_missing(tmp_path, folder):
    assert run(tmp_path / folder)[0].returncode == 0
    assert {path.name for path in (tmp_path / folder).iterdir()} == {"hits", "armed", "fired"}
