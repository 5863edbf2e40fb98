"""Limits of a box as a whole, on machines of every kind, as folders that look like theirs."""

import os
from pathlib import Path

import pytest
from retinue_sandbox.bwrap.cgroup import Cgroups


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "self-cgroup"
    path.write_text(text)
    return path


def version_2(tmp_path: Path, processes: str) -> Path:
    root = tmp_path / "cgroup"
    service = root / "system.slice/retinue.service"
    service.mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory pids")
    for name, text in {"procs": processes, "controllers": "cpu io memory pids", "subtree_control": ""}.items():
        (service / f"cgroup.{name}").write_text(text)
    # The kernel makes these in each folder.
    for name in ("retinue-service", "retinue-boxes"):
        (service / name).mkdir()
        for file in ("procs", "subtree_control"):
            (service / name / f"cgroup.{file}").write_text("")
    return root


def test_a_group_of_version_2_that_is_ours_alone_is_divided(tmp_path: Path) -> None:
    root = version_2(tmp_path, f"{os.getpid()}\n")
    found = Cgroups.find(root, own(tmp_path, "0::/system.slice/retinue.service\n"))
    service = root / "system.slice/retinue.service"
    assert (service / "retinue-service/cgroup.procs").read_text() == str(os.getpid())
    assert (service / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = found.make(77)
    assert group is not None
    assert [folder.parent.name for folder in group.folders] == ["retinue-boxes"]
    files = {path.name: path.read_text() for path in group.folders[0].iterdir()}
    assert files == {"memory.max": str(768 << 20), "pids.max": "77", "cpu.max": "100000 100000"}
    assert [(check.name, check.ok, check.required) for check in found.checks()] == [
        ("limit_memory", True, False),
        ("limit_pids", True, False),
        ("limit_cpu", True, False),
    ]


def test_a_group_of_version_2_that_others_are_in_too_is_left_alone(tmp_path: Path) -> None:
    root = version_2(tmp_path, f"{os.getpid()}\n1234567\n")
    found = Cgroups.find(root, own(tmp_path, "0::/system.slice/retinue.service\n"))
    assert not (root / "system.slice/retinue.service/cgroup.subtree_control").read_text()
    assert found.make(10) is None
    memory = found.checks()[0]
    assert not memory.ok
    assert memory.detail.startswith("best_effort")
    assert "Delegate" in memory.remedy


def version_1(tmp_path: Path, *controllers: str) -> Path:
    root = tmp_path / "cgroup"
    for name in controllers:
        (root / name / "mesh/retinue-boxes").mkdir(parents=True)
        (root / name / "mesh/retinue-boxes/cgroup.procs").write_text("")
    return root


def test_groups_of_version_1_are_used_where_they_can_be_written_to(tmp_path: Path) -> None:
    root = version_1(tmp_path, "memory", "pids")
    found = Cgroups.find(root, own(tmp_path, "8:pids:/mesh\n4:memory:/mesh\n1:cpu,cpuacct:/mesh\n0::/\n"), 1 << 26)
    assert [found.has(name) for name in ("memory", "pids", "cpu")] == [True, True, False]
    first, second = found.make(5), found.make(5)
    assert first is not None
    assert second is not None
    assert len(first.folders) == 2
    assert not set(first.folders) & set(second.folders)
    first.add(4321)
    assert [(folder / "cgroup.procs").read_text() for folder in first.folders] == ["4321", "4321"]
    assert (first.folders[0] / "memory.limit_in_bytes").read_text() == str(1 << 26)


def test_groups_that_a_process_which_is_gone_has_left_behind_are_removed(tmp_path: Path) -> None:
    root = version_1(tmp_path, "pids")
    boxes = root / "pids/mesh/retinue-boxes"
    gone, mine = boxes / "4194999-abc", boxes / f"{os.getpid()}-abc"
    gone.mkdir()
    mine.mkdir()
    Cgroups.find(root, own(tmp_path, "8:pids:/mesh\n"))
    assert mine.exists()
    assert not gone.exists()


def test_a_machine_without_groups_has_none(tmp_path: Path) -> None:
    found = Cgroups.find(tmp_path / "nothing", tmp_path / "nothing")
    assert found.make(10) is None
    assert not any(check.ok or check.required for check in found.checks())


def test_a_limit_that_cannot_be_set_is_no_limit_that_is_said_to_hold(tmp_path: Path) -> None:
    root = version_1(tmp_path, "pids")
    found = Cgroups.find(root, own(tmp_path, "8:pids:/mesh\n"))
    boxes = root / "pids/mesh/retinue-boxes"
    (boxes / "cgroup.procs").unlink()
    boxes.rmdir()
    with pytest.raises(FileNotFoundError):
        found.make(10)
