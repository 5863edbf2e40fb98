"""What boxes are made of: rules that no list of options may break."""

from pathlib import Path

import pytest
from retinue_sandbox.bwrap import options
from retinue_sandbox.bwrap.options import Interpreter, Parts

SYSTEM = Interpreter("/usr/bin/python3", Path("/usr/bin/python3"))
OWN = Interpreter("/opt/python/bin/python3.11", Path("/home/o/py/bin/python3.11"), Path("/home/o/py"))
TAKES_TWO = {
    "--bind", "--ro-bind", "--ro-bind-try", "--symlink", "--file", "--setenv", "--bind-fd", "--dev-bind", "--chmod",
}  # fmt: skip
TAKES_NONE = {
    "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup",
    "--disable-userns", "--as-pid-1", "--new-session", "--die-with-parent", "--clearenv",
}  # fmt: skip


def parts(**more: object) -> Parts:
    given = {"workspace_fd": 9, "info_fd": 10, "block_fd": 11, "seccomp_fds": [12, 13], "file_fds": {"/run/a.pyc": 14}}
    return Parts(**(given | more))  # type: ignore[arg-type]


def listed(root: Path, **more: object) -> list[tuple[str, ...]]:
    """The options, each with what it takes."""
    words = iter(options.options(parts(**more), {"LANG": "C.UTF-8"}, root))
    found = []
    for word in words:
        count = 0 if word in TAKES_NONE else 2 if word in TAKES_TWO else 1
        found.append((word, *(next(words) for _ in range(count))))
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with a merged /usr, and a /lib64 of its own."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "lib").symlink_to("/usr/lib")
    (tmp_path / "lib64").mkdir()
    (tmp_path / "sbin").symlink_to("../root/hidden")
    return tmp_path


def test_everything_that_can_be_separate_is(root: Path) -> None:
    words = {option for option, *_ in listed(root)}
    assert words >= TAKES_NONE
    assert not words & {"--share-net", "--dev-bind", "--cap-add", "--bind", "--overlay", "--lock-file", "--sync-fd"}
    assert ("--cap-drop", "ALL") in listed(root)


def test_nothing_is_made_or_mounted_beneath_the_workspace_and_it_is_bound_last(root: Path) -> None:
    found = listed(root, egress_path="/stage/7", python_path="/stage/1")
    assert [option for option in found if any(word.startswith("/workspace") for word in option[1:])] == [
        ("--bind-fd", "9", "/workspace"),
        ("--chdir", "/workspace"),
    ]
    after = [option for option, *_ in found[found.index(("--bind-fd", "9", "/workspace")) + 1 :]]
    assert after == ["--remount-ro", "--chdir", "--add-seccomp-fd", "--add-seccomp-fd", "--info-fd", "--block-fd"]


def test_what_can_be_written_to_beside_it_has_a_size(root: Path) -> None:
    found = listed(root)
    for at, (option, *_) in enumerate(found):
        if option == "--tmpfs":
            assert found[at - 1][0] == "--size"
    assert [path for option, *path in found if option == "--remount-ro"] == [["/dev"], ["/"]]


def test_folders_of_the_machine_are_links_into_usr_or_bound_and_other_links_are_left_out(root: Path) -> None:
    found = listed(root)
    assert ("--symlink", "usr/bin", "/bin") in found
    assert ("--symlink", "usr/lib", "/lib") in found
    assert ("--ro-bind", str(root / "lib64"), "/lib64") in found
    assert not any("/sbin" in option for option in found)


def test_a_machine_without_a_python_of_its_own_lends_the_one_that_runs_the_service(tmp_path: Path) -> None:
    found = options.interpreter(tmp_path / "usr/bin/python3")
    assert found.prefix is None or found.program.startswith("/opt/python/bin/python3")
    assert found.machine_program.exists()
    assert "/opt/python/bin" in options.environment(OWN, egress=False)["PATH"]
    assert "/opt" not in options.environment(SYSTEM, egress=False)["PATH"]
    assert ("--ro-bind", "/stage/1", "/opt/python") in listed(tmp_path, python_path="/stage/1")


def test_the_environment_is_the_box_s_own_and_tells_of_a_proxy_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RETINUE_MODEL_API_KEY", "secret")
    assert options.environment(SYSTEM, egress=False) == options.ENVIRONMENT
    assert "HTTPS_PROXY" in options.environment(SYSTEM, egress=True)


def test_modules_are_compiled_for_the_box_s_python(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("'doc'\nx = 1\n")
    (tmp_path / "two.py").write_text("y = 2\n")
    made = options.compiled(options.interpreter(), [tmp_path / "one.py", tmp_path / "two.py"])
    assert list(made) == ["one.pyc", "two.pyc"]
    assert all(data[4:16] == bytes(12) and len(data) > 16 for data in made.values())
    assert str(tmp_path).encode() not in made["one.pyc"]
