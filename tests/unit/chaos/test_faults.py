"""What befalls the mesh is told by the seed alone, and spares no point."""

from collections import Counter

from harness import faults
from harness.points import Folder

POINTS = [f"{service}.point_{n}" for service in ("worker", "router", "gateway") for n in range(25)]


def planned(seed):
    return [fault for lane in faults.plan(seed, POINTS) for fault in lane]


def test_a_seed_is_always_the_same():
    assert [planned(seed) for seed in range(20)] == [planned(seed) for seed in range(20)]
    assert planned(1) != planned(2)


def test_every_point_comes_up_about_as_often_as_the_others():
    dealt = Counter(fault.point for seed in range(100) for fault in planned(seed) if fault.point)
    assert set(dealt) == set(POINTS)
    assert max(dealt.values()) <= 3 * min(dealt.values())


def test_every_kind_of_fault_comes_up():
    struck = [fault.victims for seed in range(14) for fault in planned(seed) if fault.victims]
    assert {victim for victims in struck for victim in victims} == set(faults.WHOLE) - {"two"}
    assert any(len(victims) == 2 for victims in struck)
    assert {fault.action for seed in range(14) for fault in planned(seed)} == {"kill", "stop"}


def test_a_fault_counts_as_one_of_several_only_where_another_was_not_over():
    one = faults.Blow("worker", "", time=10.0, recovery_s=4.0)
    assert faults._overlap(one, faults.Blow("gateway", "", time=13.0, recovery_s=1.0))
    assert faults._overlap(faults.Blow("gateway", "", time=13.0), one)
    assert not faults._overlap(one, faults.Blow("gateway", "", time=14.5, recovery_s=1.0))


def test_a_point_is_armed_taken_back_and_its_shots_are_told_once(tmp_path):
    folder = Folder(tmp_path)
    folder.arm("a.b", "kill")
    assert (tmp_path / "armed" / "a.b").read_text() == "kill"
    assert folder.disarm("a.b")
    assert not folder.disarm("a.b")
    (tmp_path / "fired" / "a.b.77").write_text("stop")
    (tmp_path / "fired" / "a.b.c.78").write_text("kill")
    [fired] = folder.fired("a.b")
    assert (fired.point, fired.pid, fired.action) == ("a.b", 77, "stop")
    assert folder.fired("a.b") == []
    folder.arm("a.b", "kill")
    (tmp_path / "armed" / "a.b").rename(tmp_path / "fired" / "a.b.77")
    assert [fired.action for fired in folder.fired("a.b")] == ["kill"], "the same process, woken and shot again"


def test_hits_of_all_processes_are_counted(tmp_path):
    folder = Folder(tmp_path)
    (tmp_path / "hits" / "1").write_text("a.b\na.c\n")
    (tmp_path / "hits" / "2").write_text("a.b\n")
    assert folder.hits() == {"a.b": 2, "a.c": 1}
