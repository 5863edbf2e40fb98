"""What a path may be, and where counting ends: rules, without a file."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.files import listing, paths
from retinue_sandbox.files.quota import Quota, Usage, size_for

ODD = ["/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/..", "a/./b", "a/../b", "\0", "a\0b", "a/b\0", ""]
LONG = ["a" * 256, "é" * 128, "a/" * 2048 + "a", "/".join(["a" * 200] * 21), "/".join("a" * 65), "a" * 4096]


@pytest.mark.parametrize("path", [*ODD, *LONG, ".retinue-staged-x", "a/.retinue-staged-x/b"])
def test_a_path_that_could_be_read_in_two_ways_or_is_too_long_is_refused(path):
    with pytest.raises(RetinueError) as raised:
        paths.parts_of(path)
    assert (raised.value.reason, raised.value.metadata) == (Reason.FIELD_INVALID, {"field": "path"})


@pytest.mark.parametrize(
    "path", ["a", "a/b", "é/ü", "...", ".a", "a b\n", "a\\b", "-rf", "a" * 255, "/".join("a" * 64)]
)
def test_any_other_name_is_a_name(path):
    assert b"/".join(paths.parts_of(path)).decode() == path


def test_only_a_folder_may_be_the_root():
    assert paths.parts_of("", root=True) == ()


@given(st.text())
def test_no_text_makes_a_part_that_leads_elsewhere(path):
    try:
        parts = paths.parts_of(path, root=True)
    except RetinueError:
        return
    assert not {b"", b".", b".."} & set(parts)
    assert not any(b"/" in part or b"\0" in part for part in parts)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, Reason.FILE_NOT_FOUND),
        (errno.ELOOP, Reason.FIELD_INVALID),
        (errno.EXDEV, Reason.FIELD_INVALID),
        (errno.EDQUOT, Reason.QUOTA_EXCEEDED),
        (errno.ENOSPC, Reason.DEPENDENCY_UNAVAILABLE),
    ],
)
def test_what_the_system_refuses_is_told_without_a_path_of_this_machine(number, reason):
    with pytest.raises(RetinueError) as raised, paths.told():
        raise OSError(number, "told", "/srv/state/ten_a/files/x")
    assert raised.value.reason is reason
    assert "/srv" not in raised.value.message


def test_a_page_token_that_nobody_gave_out_is_refused():
    for token in ("%", "é", "a"):
        with pytest.raises(RetinueError) as raised:
            listing.read_token(token)
        assert raised.value.metadata == {"field": "page_token"}
    assert listing.read_token("") == b""


class Disk:
    """Counts what a test says, and how often it was asked; time is the test's."""

    def __init__(self, **usage):
        self.usage = Usage(**usage)
        self.time = 0.0
        self.asked = 0
        self.took_s = 0.0
        self.quota = Quota(self.count, 10_000, 3, now=lambda: self.time)

    def count(self, tenant_id):
        self.asked += 1
        self.time += self.took_s
        return self.usage

    def refused(self, size_bytes, inode_count):
        try:
            self.quota.admit("ten_a", size_bytes, inode_count)
        except RetinueError as error:
            return error.reason is Reason.QUOTA_EXCEEDED
        return False


def test_bounded_what_is_written_is_added_until_it_is_counted_again():
    disk = Disk(size_bytes=4096, inode_count=1)
    assert not disk.refused(4096, 1)
    disk.quota.add("ten_a", 4096, 1)
    assert disk.refused(4096, 1)
    assert disk.asked == 1
    disk.time += 11  # a box has removed what was there
    assert not disk.refused(4096, 1)
    assert disk.asked == 2


def test_bounded_bytes_inodes_and_depth_are_each_too_much_by_themselves():
    assert Disk(size_bytes=10_001).quota.over("ten_a") == "The tenant's files take up more than 0 MiB."
    assert Disk(inode_count=4).quota.over("ten_a") == "The tenant has more than 3 files and folders."
    assert "64 deep" in Disk(too_deep=True).quota.over("ten_a")
    assert Disk(size_bytes=10_000, inode_count=3).quota.over("ten_a") == ""
    assert Disk(inode_count=3).refused(0, 1)
    assert Disk(size_bytes=10_000).refused(1, 0)


def test_what_takes_up_no_more_is_admitted_although_there_is_too_much():
    assert not Disk(size_bytes=99_999, inode_count=99).refused(-4096, 0)


def test_a_tenant_whose_files_take_long_to_count_is_counted_less_often():
    disk = Disk(size_bytes=1)
    disk.took_s = 0.5
    disk.quota.over("ten_a")
    disk.time += 9
    disk.quota.over("ten_a")
    assert disk.asked == 1
    disk.time += 1
    disk.quota.over("ten_a")
    assert disk.asked == 2


def test_a_files_last_piece_counts_whole():
    assert [size_for(n) for n in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
