"""What the self-test makes of what it sees."""

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.bwrap.checks import LOOKS, outside, read
from retinue_sandbox.ports import Check, Profile, Workspace
from retinue_sandbox.refuse import RefuseBackend

FACTS = {
    "Uid": "700001\t700001\t700001\t700001",
    "Groups": "65534",
    "CapPrm": "0000000000000000",
    "CapEff": "0000000000000000",
    "CapBnd": "0000000000000000",
    "CapAmb": "0000000000000000",
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "Seccomp_filters": "2",
}


def status(**facts: str) -> str:
    return "".join(f"{name}:\t{value}\n" for name, value in (FACTS | facts).items())


def test_a_process_without_any_privilege_is_well() -> None:
    assert outside(status(), 700001) == Check("privileges", True, "user 700001, none")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("Uid", "700001\t0\t700001\t700001"),
        ("Uid", "700002\t700002\t700002\t700002"),
        ("CapEff", "0000000000000400"),
        ("CapPrm", "0000000000000400"),
        ("CapBnd", "000001ffffffffff"),
        ("NoNewPrivs", "0"),
        ("Seccomp", "0"),
        ("Seccomp_filters", "1"),
    ],
)
def test_any_privilege_that_is_left_is_found(fact: str, value: str) -> None:
    found = outside(status(**{fact: value}), 700001)
    assert not found.ok
    assert found.required
    assert found.remedy


def test_a_box_of_root_is_never_well() -> None:
    assert not outside(status(Uid="0\t0\t0\t0"), 0).ok


def test_a_look_of_which_nothing_is_said_has_failed() -> None:
    lines = "\n".join(f'["{name}", true, "well"]' for name in LOOKS if name != "kernel")
    found = {check.name: check for check in read(f"{lines}\nTraceback: it broke")}
    assert list(found) == list(LOOKS)
    assert [name for name, check in found.items() if not check.ok] == ["kernel"]
    assert "it broke" in found["kernel"].detail


def test_what_is_said_that_is_no_look_counts_for_nothing() -> None:
    assert not any(check.ok for check in read('["filed", true, "well"]\n{"files": true}\n[broken\n'))


async def test_box_or_refuse_the_refusing_backend_opens_nothing_and_says_why() -> None:
    problem = Check("bwrap", False, "there is no bubblewrap on this machine", "install it")
    backend = RefuseBackend(problem)
    assert await backend.check() == [problem]
    assert backend.isolation is None
    with pytest.raises(RetinueError) as refused:
        await backend.open(Workspace("ten_a", -1, 1), Profile())
    assert refused.value.reason == Reason.SANDBOX_UNAVAILABLE
    assert refused.value.metadata == {"check": "bwrap"}
    assert "nothing is executed outside of one" in refused.value.message
    await backend.close()
