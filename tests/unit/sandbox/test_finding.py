"""Which bubblewrap may make boxes, and what is said where none can be made."""

import os
from pathlib import Path

import pytest
from retinue_sandbox.bwrap import finding
from retinue_sandbox.bwrap.finding import OPTIONS, examine, explain, look

GOOD = f"""#!/bin/sh
case "$1" in
  --version) echo "bubblewrap 0.11.0" ;;
  --help) printf '    %s\\n' {" ".join(f"'{option} X   does it'" for option in OPTIONS)} ;;
esac
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that says of itself what bubblewrap says."""
    path = tmp_path / "bwrap"
    path.write_text(GOOD)
    path.chmod(0o755)
    return path


def test_a_program_of_ours_that_knows_all_options_is_taken(program: Path) -> None:
    found, problem = examine(program, wheel=True)
    assert problem == ""
    assert found is not None
    assert found.version == "0.11.0"


@pytest.mark.parametrize(
    ("mode", "said"), [(0o4755, "set-uid"), (0o2755, "set-uid"), (0o775, "write to it"), (0o757, "write to it")]
)
def test_a_program_that_others_could_make_into_something_else_is_refused(program: Path, mode: int, said: str) -> None:
    program.chmod(mode)
    found, problem = examine(program, wheel=True)
    assert found is None
    assert said in problem


def test_a_program_among_the_tenants_files_is_refused(program: Path, tmp_path: Path) -> None:
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(program)
    try:
        for path in (program, link):
            found, problem = examine(path, tmp_path, wheel=True)
            assert found is None
            assert "tenants' files" in problem
    finally:
        link.unlink()


def test_a_program_of_the_system_has_to_be_root_s(program: Path) -> None:
    if os.geteuid() == 0:
        os.chown(program, 12345, 12345)
    found, problem = examine(program)
    assert found is None
    assert "does not belong to root" in problem


def test_a_program_that_lacks_an_option_is_too_old(program: Path) -> None:
    program.write_text(GOOD.replace("--bind-fd X", "--bound X"))
    found, problem = examine(program, wheel=True)
    assert found is None
    assert "lacks --bind-fd" in problem


@pytest.mark.parametrize(
    ("path", "said"), [("bwrap", "absolute"), ("/nowhere/bwrap", "No such file"), ("/usr", "no file")]
)
def test_a_path_that_names_no_program_is_refused_by_name(path: str, said: str) -> None:
    found, check = look(path)
    assert found is None
    assert not check.ok
    assert check.name == "bwrap"
    assert said in check.detail
    assert "RETINUE_BWRAP_PATH" in check.remedy


def test_a_program_that_does_not_run_is_refused(program: Path) -> None:
    program.write_text("#!/bin/sh\nexit 3\n")
    found, problem = examine(program, wheel=True)
    assert found is None
    assert "does not run" in problem


def kernel(folder: Path, **settings: int) -> Path:
    for name, value in settings.items():
        path = folder / ("user" if name.startswith("max") else "kernel") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{value}\n")
    return folder


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"apparmor_restrict_unprivileged_userns": 1, "max_user_namespaces": 9}, finding.APPARMOR),
        ({"apparmor_restrict_unprivileged_userns": 0, "unprivileged_userns_clone": 0}, finding.CLONE_OFF),
        ({"max_user_namespaces": 0}, finding.NONE_LEFT),
        ({"max_user_namespaces": 9}, finding.CONTAINER),
        ({}, finding.CONTAINER),
    ],
)
def test_each_way_to_forbid_user_namespaces_has_its_own_remedy(
    tmp_path: Path, settings: dict[str, int], remedy: str
) -> None:
    check = explain("bwrap: setting up uid map: Permission denied\n", kernel(tmp_path, **settings))
    assert (check.name, check.ok, check.remedy) == ("user_namespaces", False, remedy)
    assert check.detail == "setting up uid map: Permission denied"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow it",
            "user_namespaces",
        ),
        ("bwrap: Creating new namespace failed: Operation not permitted", "user_namespaces"),
        ("bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted", "user_namespaces"),
        ("bwrap: Failed to make / slave: Permission denied", "user_namespaces"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "proc"),
        ("bwrap: prctl(PR_SET_SECCOMP): Invalid argument", "seccomp"),
        ("bwrap: Can't find source path /proc/self/fd/3: Permission denied", "paths"),
        ("setpriv: setresuid failed: Operation not permitted", "users"),
        ("bwrap: execvp /usr/bin/python3: No such file or directory", "box"),
        ("", "box"),
    ],
)
def test_what_a_box_failed_of_has_a_name_and_a_remedy(tmp_path: Path, said: str, name: str) -> None:
    check = explain(said, tmp_path)
    assert (check.name, check.ok, check.required) == (name, False, True)
    assert check.remedy
    assert check.detail
