"""What retinue doctor makes of a self-test."""

from retinue_cli.boxes import Boxes, Look
from retinue_cli.commands.doctor import Finding, said_of

WELL = Look("bwrap", True, "bubblewrap 0.11.0", "", True)
MEMORY = Look("limit_memory", False, "best_effort", "delegate a cgroup", False)
CPU = Look("limit_cpu", False, "by time", "delegate a cgroup", False)


def test_boxes_that_hold_are_one_line() -> None:
    assert list(said_of(Boxes("bwrap", True, [WELL]))) == [Finding("ok", "boxes for tools: bwrap")]


def test_what_holds_less_is_said_once_for_each_way_to_mend_it() -> None:
    assert list(said_of(Boxes("bwrap", True, [WELL, MEMORY, CPU]))) == [
        Finding("ok", "boxes for tools: bwrap"),
        Finding("warn", "boxes for tools: limit_memory: best_effort; limit_cpu: by time", "delegate a cgroup"),
    ]


def test_box_or_refuse_without_a_box_it_is_said_that_tools_are_refused_and_how_to_mend_it() -> None:
    broken = Look("user_namespaces", False, "setting up uid map: Permission denied", "set kernel.x=1", True)
    assert list(said_of(Boxes("bwrap", False, [WELL, broken]))) == [
        Finding(
            "warn",
            "no boxes, so tools are refused: user_namespaces: setting up uid map: Permission denied",
            "set kernel.x=1",
        )
    ]
