"""Folders: short enough for sockets, closed to others, and never somebody else's."""

import os
import stat

import pytest
from retinue_kit.config import SettingError
from retinue_local import paths, postgres, status
from retinue_local.status import MeshStatus, ProcessStatus


def test_sockets_live_in_the_state_folder_where_its_path_is_short(run_dir):
    folders = paths.of_state(run_dir)
    assert folders.socket("gateway") == run_dir / "run" / "gateway.sock"


@pytest.mark.parametrize("name", ["x" * 100, "with space", "per%cent", "ümlaut"])
def test_sockets_live_elsewhere_where_it_is_long_or_not_plain(run_dir, name):
    folders = paths.of_state(run_dir / name)
    longest = folders.socket("runtime-adapter")
    assert len(os.fsencode(longest)) < paths.SOCKET_PATH_MAX_BYTES
    assert longest.parent.parent == paths.Path("/tmp")
    assert folders.run == paths.of_state(run_dir / name).run
    assert folders.run != paths.of_state(run_dir / (name + "2")).run


def test_folders_are_closed_to_others(run_dir):
    folders = paths.of_state(run_dir / "state")
    paths.make(folders)
    for folder in (folders.state, folders.run, folders.logs, folders.workspaces, folders.traces):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    paths.make(folders)


def test_a_folder_that_cannot_be_used_is_told_in_one_line(run_dir):
    (run_dir / "file").write_text("")
    with pytest.raises(SettingError, match="cannot be used"):
        paths.make(paths.of_state(run_dir / "file" / "state"))


def test_what_somebody_else_put_in_the_way_is_not_used(run_dir):
    (run_dir / "target").mkdir()
    (run_dir / "link").symlink_to(run_dir / "target")
    with pytest.raises(SettingError, match="in the way"):
        paths.make_private(run_dir / "link", os.geteuid(), os.getegid())
    with pytest.raises(SettingError, match="in the way"):
        paths.make_private(run_dir / "target", os.geteuid() + 1, os.getegid())


def test_who_may_enter_a_folder_is_read_from_its_mode(run_dir):
    folder = run_dir / "folder"
    folder.mkdir()
    owner, group = folder.stat().st_uid, folder.stat().st_gid
    for mode, expected in [(0o700, (True, False, False)), (0o710, (True, True, False)), (0o011, (False, True, True))]:
        folder.chmod(mode)
        answers = (
            postgres.may_enter(folder, owner, ()),
            postgres.may_enter(folder, owner + 1, (group,)),
            postgres.may_enter(folder, owner + 1, (group + 1,)),
        )
        assert answers == expected


def test_the_state_file_is_read_back_and_a_broken_one_is_none(run_dir):
    path = run_dir / "status.json"
    assert status.read(path) is None
    told = MeshStatus(7, "http://127.0.0.1:8080", [ProcessStatus("redis", 8, "unix:/x", "serving", 0)])
    status.write(path, told)
    assert status.read(path) == told
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("{")
    assert status.read(path) is None
