"""Who owns files may make anything of them at any moment: no call leads out of a root, by either way of opening."""

import ctypes
import errno
import gc
import os
import socket
import stat
import subprocess
import sys
import time

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.files import beneath, operations, quota, removing, servicer
from retinue_sandbox.files.paths import parts_of
from retinue_sandbox.files.roots import Roots

SECRET = b"another tenant's words"
SEEN_MIN = 15
"""Times that each call must have been served, and refused, while a folder and a link change places."""

PATIENCE_S = 60.0

SWAPPER = """
import ctypes, os, sys
os.chdir(sys.argv[1])
swap = ctypes.CDLL(None).renameat2
print("begun", flush=True)
while os.getppid() == int(sys.argv[2]):
    swap(-100, b"d", -100, b"link", 2)
"""


@pytest.fixture(params=["kernel", "walk"])
def way(request, monkeypatch):
    """Both ways of opening, the kernel's and the one for where it is forbidden."""
    if request.param == "walk":
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)
    return request.param


class Tenant:
    """A tenant's root, and its calls as threads make them."""

    def __init__(self, roots, tenant_id):
        self.roots, self.tenant_id = roots, tenant_id
        self.ledger = servicer._Ledger(roots.quota, tenant_id)

    def work(self, operation, *arguments, **more):
        with self.roots.entered(self.tenant_id, "files") as root:
            return operation(root, *arguments, **more)

    def read(self, path):
        return self.work(operations.read, parts_of(path), 0, 0)[0]

    def write(self, path, data=b"mine"):
        return self.work(operations.write, parts_of(path), data, "", self.ledger, lambda: None)

    def edit(self, path):
        return self.work(operations.edit, parts_of(path), b"mine", b"mine", True, "", self.ledger, lambda: None)

    def list(self, path=""):
        parts = parts_of(path, root=True)
        found, _ = self.work(operations.list_page, parts, "", recursive=True, size=1000)
        return [info.path for info in found]

    def delete(self, path):
        return self.work(removing.delete, parts_of(path), True, self.ledger, lambda: None)

    def calls(self):
        return (self.read, self.write, self.edit, self.list, self.delete)


@pytest.fixture
def roots(run_dir):
    kept = Roots(run_dir / "workspaces", lambda tenant_id: os.geteuid())
    yield kept
    kept.close()


@pytest.fixture
def mine(roots):
    return Tenant(roots, "ten_a")


@pytest.fixture
def theirs(roots, run_dir):
    """Another tenant's folder with a file in it; nothing of it may change."""
    Tenant(roots, "ten_b").write("secret", SECRET)
    folder = run_dir / "workspaces/ten_b/files"
    yield folder
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("secret", SECRET)]


@pytest.fixture
def disk(mine, run_dir):
    """My folder, as a box sees it."""
    mine.write("kept")
    return run_dir / "workspaces/ten_a/files"


def refused(call, *arguments):
    with pytest.raises(RetinueError) as raised:
        call(*arguments)
    return raised.value.reason


def test_no_cross_tenant_no_path_leads_to_another_tenants_files(way, mine, theirs, disk):
    tricks = ["../../ten_b/files/secret", "../ten_b/files/secret", "/ten_b/files/secret", str(theirs / "secret")]
    tricks += ["kept/../../../ten_b/files/secret", "..", ".", "a/../..", "\0", "kept\0/../x", "//", "./../x"]
    for call in mine.calls():
        for path in tricks:
            assert refused(call, path) is Reason.FIELD_INVALID, path
    for path in ("..%2f..%2ften_b", "..\\..\\ten_b", "%2e%2e", "~/x", "$HOME", "ten_b", "\u2025", "\uff0e\uff0e"):
        assert refused(mine.read, path) is Reason.FILE_NOT_FOUND, path
    for target in (
        "../../ten_b/files",
        str(theirs),
        "/",
        "../../../../../../../..",
        "/proc/self/root",
        "/proc/self/cwd",
    ):
        (disk / "out").symlink_to(target)
        inner = "out/secret" if "ten_b" in target else f"out{theirs}/secret"
        for path in ("out", inner):
            for call in (mine.read, mine.write, mine.edit, mine.list):
                assert refused(call, path) is Reason.FIELD_INVALID, (call, path)
        assert refused(mine.delete, inner) is Reason.FIELD_INVALID
        assert "out" in mine.list()
        assert mine.delete("out") == 1  # the link, and nothing that it led to
    os.symlink(theirs / "secret", disk / "file")
    (disk / "chain").symlink_to("file")
    for path in ("file", "chain"):
        for call in (mine.read, mine.write, mine.edit, mine.list):
            assert refused(call, path) is Reason.FIELD_INVALID
    assert mine.list() == ["chain", "file", "kept"]


def test_no_cross_tenant_no_id_of_a_tenant_is_a_path(roots, theirs):
    for tenant_id in (
        "",
        ".",
        "..",
        "../ten_b",
        "ten_a/../ten_b",
        "ten_b/files",
        "/",
        "ten_b\0",
        "ten b",
        "é",
        "a" * 65,
    ):
        assert refused(Tenant(roots, tenant_id).read, "secret") is Reason.FIELD_INVALID
        assert refused(roots.open, tenant_id) is Reason.FIELD_INVALID


def test_no_cross_tenant_a_link_in_the_place_of_a_tenants_folder_is_not_followed(roots, theirs, run_dir):
    (run_dir / "workspaces/ten_c").symlink_to("ten_b")
    (run_dir / "workspaces/ten_d").mkdir(mode=0o700)
    (run_dir / "workspaces/ten_d/files").symlink_to(theirs)
    for tenant_id in ("ten_c", "ten_d"):
        assert refused(Tenant(roots, tenant_id).read, "secret") is Reason.DEPENDENCY_UNAVAILABLE
        assert refused(roots.open, tenant_id) is Reason.DEPENDENCY_UNAVAILABLE


def test_what_is_no_file_is_neither_waited_for_nor_written(way, mine, disk):
    os.mkfifo(disk / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    with listening:
        listening.bind(str(disk / "sock"))
        (disk / "folder").mkdir()
        names = ["pipe", "sock", "folder"]
        if os.geteuid() == 0:
            os.mknod(disk / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            names.append("null")
        for name in names:
            for call in (mine.read, mine.write, mine.edit):
                assert refused(call, name) is Reason.FIELD_INVALID, name
            if name != "folder":
                assert refused(mine.write, f"{name}/x/y") is Reason.FIELD_INVALID
        for name in names:
            assert mine.delete(name) >= 1
    assert mine.list() == ["kept"]


def test_links_in_a_folder_that_is_removed_keep_what_they_lead_to(way, mine, theirs, disk):
    (disk / "d/e").mkdir(parents=True)
    (disk / "d/e/out").symlink_to(theirs)
    os.link(disk / "kept", disk / "d/e/again")
    (disk / "d/e").chmod(0)
    assert mine.delete("d") == 4
    assert mine.list() == ["kept"]
    assert mine.read("kept") == b"mine"


def test_bounded_a_tree_of_any_depth_is_told_of_as_too_deep_and_removed(mine, disk):
    deep = os.open(disk, beneath.FOLDER)
    for _ in range(300):
        os.mkdir("d" * 100, dir_fd=deep)
        inner = os.open("d" * 100, beneath.FOLDER, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    gc.collect()  # what other tests have left open and is closed by chance is not counted
    before = len(os.listdir("/proc/self/fd"))
    with beneath.closing(os.open(disk, beneath.FOLDER)) as folder:
        assert quota.count(folder).too_deep
    assert len(mine.list()) == 65
    assert mine.delete("d" * 100) == 300
    assert mine.list() == ["kept"]
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_folder_that_is_filled_while_it_is_removed_is_left_and_said_to_be(mine, disk, monkeypatch):
    mine.write("d/a")
    emptied = removing._Remover.empty

    def meanwhile(remover, top):
        emptied(remover, top)
        (disk / "d/b").touch()

    monkeypatch.setattr(removing._Remover, "empty", meanwhile)
    assert refused(mine.delete, "d") is Reason.FILE_CHANGED
    assert mine.list() == ["d", "d/b", "kept"]


def test_both_ways_refuse_what_they_are_not_meant_to_open(disk):
    (disk / "link").symlink_to("kept")
    with beneath.closing(os.open(disk, beneath.FOLDER)) as folder:
        for opening in (beneath.by_kernel, beneath.by_walk):
            for path in (b"..", b"../x", b"a/../..", b"link", b"link/x"):
                with pytest.raises(OSError, match=r"\[Errno") as raised:
                    opening(folder, path, beneath.READ)
                assert raised.value.errno in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR, errno.ENOENT)
            with beneath.closing(opening(folder, b"kept", beneath.READ)) as file:
                assert os.read(file, 10) == b"mine"


@pytest.fixture
def swapped(disk, theirs):
    """A folder `d` and a link to another tenant's folder change places as fast as a process can."""
    (disk / "d").mkdir()
    (disk / "link").symlink_to(theirs)
    argv = [sys.executable, "-I", "-S", "-c", SWAPPER, disk, str(os.getpid())]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    yield disk
    process.kill()
    process.wait()
    process.stdout.close()


def tried(call, *arguments):
    """Make a call that may be refused, as what it finds changes; nothing else may happen to it."""
    try:
        return call(*arguments)
    except RetinueError as error:
        if error.reason not in (Reason.FIELD_INVALID, Reason.FILE_NOT_FOUND, Reason.FILE_CHANGED):
            raise
        return None


def test_no_cross_tenant_a_folder_that_turns_into_a_link_meanwhile_leaks_nothing(way, swapped, mine):
    def naive():
        try:
            return (swapped / "d/secret").read_bytes()
        except OSError:
            return b""

    end = time.monotonic() + PATIENCE_S
    while naive() != SECRET:
        assert time.monotonic() < end, "the attack does not work, and shows nothing"
    calls = [mine.read, mine.write, mine.read, mine.edit, mine.read, mine.list, mine.read, mine.delete]
    counts = {call.__name__: [0, 0] for call in calls}
    while any(min(both) < SEEN_MIN for name, both in counts.items() if name != "edit"):
        assert time.monotonic() < end, counts
        for call in calls:
            found = tried(call, "d" if call == mine.list else "d/secret")
            counts[call.__name__][found is None] += 1
            assert call != mine.read or found in (None, b"mine")
            assert call != mine.list or found in (None, [], ["d/secret"])
        assert set(mine.list()) <= {"d", "d/secret", "link", "link/secret", "kept"}
        assert mine.read("kept") == b"mine"


def test_bounded_a_kernel_that_is_never_sure_is_asked_again_and_not_for_ever(disk, monkeypatch):
    class Unsure:
        def __init__(self, answers):
            self.answers = answers

        def syscall(self, *arguments):
            self.answers -= 1
            if self.answers < 0:
                return libc.syscall(*arguments)
            ctypes.set_errno(errno.EAGAIN)
            return -1

    libc = beneath._libc
    with beneath.closing(os.open(disk, beneath.FOLDER)) as folder:
        monkeypatch.setattr(beneath, "_libc", Unsure(beneath.AGAIN_MAX - 1))
        os.close(beneath.by_kernel(folder, b"kept", beneath.READ))
        monkeypatch.setattr(beneath, "_libc", Unsure(beneath.AGAIN_MAX))
        with pytest.raises(BlockingIOError):
            beneath.by_kernel(folder, b"kept", beneath.READ)
