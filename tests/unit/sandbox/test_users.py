"""Whose processes boxes are."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.bwrap.users import Uids

BASE = 700_000


def test_no_cross_tenant_two_tenants_never_share_a_user_however_few_there_are(tmp_path: Path) -> None:
    uids = Uids(tmp_path / "notes", BASE, 8, root=True)
    given = [uids.of(f"ten_{number}") for number in range(8)]
    assert sorted(given) == list(range(BASE, BASE + 8))
    with pytest.raises(RetinueError) as refused:
        uids.of("ten_one_more")
    assert refused.value.reason == Reason.SANDBOX_UNAVAILABLE
    assert refused.value.metadata == {"check": "users"}
    assert [uids.of(f"ten_{number}") for number in range(8)] == given  # nobody lost theirs over it


def test_a_tenant_keeps_its_user_over_restarts(tmp_path: Path) -> None:
    names = [f"ten_{number}" for number in range(20)]
    first = [Uids(tmp_path, BASE, 32, root=True).of(name) for name in names]
    again = [Uids(tmp_path, BASE, 32, root=True).of(name) for name in reversed(names)]
    assert first == again[::-1]


def test_processes_that_ask_at_once_hear_the_same_and_nobody_shares(tmp_path: Path) -> None:
    names = [f"ten_{number}" for number in range(16)] * 4
    with ThreadPoolExecutor(8) as pool:
        heard = list(pool.map(lambda name: (name, Uids(tmp_path, BASE, 16, root=True).of(name)), names))
    assert len(set(heard)) == 16
    assert len({uid for _, uid in heard}) == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(BASE + number) for number in range(16)]


def test_a_draft_of_a_process_that_was_killed_gives_nobody_a_user(tmp_path: Path) -> None:
    (tmp_path / ".0123456789abcdef").write_text("ten_")
    uid = Uids(tmp_path, BASE, 1, root=True).of("ten_a")
    assert uid == BASE
    assert (tmp_path / str(BASE)).read_text() == "ten_a"


def test_who_is_not_root_runs_boxes_as_itself(tmp_path: Path) -> None:
    assert Uids(tmp_path / "notes", BASE, 8, root=False).of("ten_a") == os.geteuid()
    assert not (tmp_path / "notes").exists()


@pytest.mark.parametrize(("base", "count"), [(0, 10), (-5, 10), (700_000, 0)])
def test_root_is_never_among_them(tmp_path: Path, base: int, count: int) -> None:
    with pytest.raises(ValueError, match="never run as root"):
        Uids(tmp_path, base, count, root=True)


@pytest.mark.parametrize("tenant_id", ["", "x" * 300])
def test_what_is_no_tenant_has_no_user(tmp_path: Path, tenant_id: str) -> None:
    with pytest.raises(RetinueError) as refused:
        Uids(tmp_path, BASE, 8, root=True).of(tenant_id)
    assert refused.value.reason == Reason.FIELD_INVALID
