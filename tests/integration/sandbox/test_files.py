"""File calls over the wire: what is written is there, whole and once; what is not beneath the root is not."""

import asyncio
import hashlib
import os
import signal
import stat
import subprocess
import sys

import pytest
import pytest_asyncio
from retinue.sandbox.v1 import execution_pb2
from retinue.sandbox.v1 import file_service_pb2 as pb
from retinue.sandbox.v1 import file_service_pb2_grpc as pb_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.files import operations, quota, removing, servicer
from retinue_sandbox.files.roots import Roots

MIB = 1 << 20
WRITER = """
import os, sys
from pathlib import Path
from retinue_kit import crashing
from retinue_sandbox.files import operations, servicer
from retinue_sandbox.files.roots import Roots
crashing.switch_on()
roots = Roots(Path(sys.argv[1]), lambda tenant_id: os.geteuid())
with roots.entered("ten_a", "files", lock=True) as root:
    ledger = servicer._Ledger(roots.quota, "ten_a")
    operations.write(root, (b"a",), b"new", "", ledger, lambda: None)
"""


class Kept:
    """A file service, and a caller of it; `tokens` holds the highest fencing token of each session."""

    def __init__(self, folder, **limits):
        self.folder = folder
        self.tokens = {}
        self.records = []
        self.no_box = None
        self.roots = Roots(folder, lambda tenant_id: os.geteuid(), **limits)

    def fence(self, tenant_id, session_id, token):
        if token < self.tokens.get((tenant_id, session_id), 0):
            raise RetinueError(Reason.STALE_FENCING_TOKEN, "Overtaken.")

    async def require(self):
        if self.no_box is not None:
            raise RetinueError(Reason.SANDBOX_UNAVAILABLE, "No box holds on this machine.", check=self.no_box)

    def record(self, kind, **facts):
        self.records.append({"kind": kind, **facts})

    def call(self, name, path="", tenant="ten_a", **fields):
        request = getattr(pb, f"{name}Request")(tenant_id=tenant, path=path, **fields)
        return self.peer.call(getattr(self.stub, name), request, timeout_s=20)

    async def refused(self, name, path="", **fields):
        with pytest.raises(RetinueError) as raised:
            await self.call(name, path, **fields)
        return raised.value.reason

    async def paths(self, folder="", **fields):
        return [info.path for info in (await self.call("ListFiles", folder, **fields)).files]

    def disk(self, path, tenant="ten_a", root="files"):
        return self.folder / tenant / root / path


@pytest_asyncio.fixture
async def start(run_dir, serve, peer):
    """Answer a starter of file services."""
    started = []

    async def make(**limits):
        kept = Kept(run_dir / "workspaces", **limits)
        kept.peer = peer("sandbox", await serve([servicer.service(kept.roots, kept.fence, kept.record, kept.require)]))
        kept.stub = pb_grpc.FileServiceStub(kept.peer.channel)
        started.append(kept)
        return kept

    yield make
    for kept in started:
        kept.roots.close()


@pytest_asyncio.fixture
async def kept(start):
    return await start()


async def test_a_file_is_written_read_edited_listed_and_gone(kept):
    data = os.urandom(3 * MIB)
    made = (await kept.call("WriteFile", "a/b/c.bin", data=data)).info
    assert (made.path, made.kind, made.size_bytes) == ("a/b/c.bin", "file", len(data))
    assert made.digest == hashlib.sha256(data).hexdigest()
    assert kept.disk("a/b/c.bin").read_bytes() == data
    read = await kept.call("ReadFile", "a/b/c.bin")
    assert (read.data, read.info) == (data, made)
    part = await kept.call("ReadFile", "a/b/c.bin", offset_bytes=MIB, size_bytes=10)
    assert (part.data, part.info.size_bytes, part.info.digest) == (data[MIB : MIB + 10], len(data), "")
    assert (await kept.call("ReadFile", "a/b/c.bin", offset_bytes=len(data) + 5)).data == b""

    await kept.call("WriteFile", "a/é.txt", data="één twee".encode())
    edited = await kept.call("EditFile", "a/é.txt", old_text="één", new_text="zwei")
    assert (edited.replaced_count, kept.disk("a/é.txt").read_text()) == (1, "zwei twee")
    assert await kept.paths(recursive=True) == ["a", "a/b", "a/b/c.bin", "a/é.txt"]
    assert await kept.paths("a") == ["a/b", "a/é.txt"]

    assert (await kept.call("DeleteFile", "a/b", recursive=True)).removed_count == 2
    assert not kept.disk("a/b").exists()
    for name in ("ReadFile", "DeleteFile", "ListFiles"):
        assert await kept.refused(name, "a/b/c.bin") is Reason.FILE_NOT_FOUND
    assert await kept.refused("EditFile", "x", old_text="a", new_text="b") is Reason.FILE_NOT_FOUND


async def test_the_two_roots_are_apart_and_both_closed_to_other_users(kept):
    await kept.call("WriteFile", "a.txt", data=b"f")
    await kept.call("WriteFile", "a.txt", data=b"m", root="memory")
    assert [(await kept.call("ReadFile", "a.txt", root=root)).data for root in ("files", "memory", "")] == [
        *(b"f", b"m", b"f")
    ]
    for folder in (kept.folder, kept.folder / "ten_a", kept.disk(""), kept.disk("", root="memory")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_edits_that_do_not_match_change_nothing(kept):
    await kept.call("WriteFile", "a.txt", data=b"one two one")
    for old, count in (("three", "0"), ("one", "2")):
        with pytest.raises(RetinueError) as raised:
            await kept.call("EditFile", "a.txt", old_text=old, new_text="x")
        assert (raised.value.reason, raised.value.metadata) == (Reason.EDIT_MISMATCH, {"match_count": count})
    assert (await kept.call("EditFile", "a.txt", old_text="one", new_text="", all=True)).replaced_count == 2
    assert kept.disk("a.txt").read_bytes() == b" two "
    await kept.call("WriteFile", "a.txt", data=b"a" * MIB)
    fields = {"old_text": "a", "new_text": "b" * 10_000, "all": True}  # ten gigabytes, if it were made
    assert await kept.refused("EditFile", "a.txt", **fields) is Reason.BODY_TOO_LARGE


async def test_no_stale_write_of_many_that_expect_the_same_digest_one_writes(kept):
    first = (await kept.call("WriteFile", "a.txt", data=b"0", expected_digest="absent")).info.digest
    calls = [kept.call("WriteFile", "a.txt", data=b"%d" % n, expected_digest=first) for n in range(1, 9)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    written = [answer for answer in answers if not isinstance(answer, RetinueError)]
    assert len(written) == 1
    assert {answer.reason for answer in answers if isinstance(answer, RetinueError)} == {Reason.FILE_CHANGED}
    assert hashlib.sha256(kept.disk("a.txt").read_bytes()).hexdigest() == written[0].info.digest
    for digest in ("absent", first):
        assert await kept.refused("WriteFile", "a.txt", data=b"x", expected_digest=digest) is Reason.FILE_CHANGED
    assert await kept.refused("WriteFile", "no/b", data=b"x", expected_digest=first) is Reason.FILE_CHANGED
    assert await kept.refused("EditFile", "a.txt", old_text="1", new_text="x", expected_digest=first) in (
        Reason.FILE_CHANGED,
    )
    assert await kept.paths(recursive=True) == ["a.txt"]


async def test_box_or_refuse_without_a_box_no_tool_changes_a_file_and_people_still_do(kept):
    await kept.call("WriteFile", "a.txt", data=b"kept")
    kept.no_box = "namespaces"
    tools = {"origin": execution_pb2.Origin(tool="write", call_id="c1")}
    with pytest.raises(RetinueError) as refused:
        await kept.call("WriteFile", "a.txt", data=b"made", **tools)
    assert (refused.value.reason, refused.value.metadata) == (Reason.SANDBOX_UNAVAILABLE, {"check": "namespaces"})
    assert await kept.refused("EditFile", "a.txt", old_text="kept", new_text="made", **tools) == refused.value.reason
    assert await kept.refused("DeleteFile", "a.txt", **tools) == refused.value.reason
    assert (kept.disk("a.txt").read_bytes(), len(kept.records)) == (b"kept", 1)
    await kept.call("WriteFile", "a.txt", data=b"by hand", origin=execution_pb2.Origin(tool="upload"))
    kept.no_box = None
    await kept.call("WriteFile", "a.txt", data=b"made", **tools)
    assert kept.disk("a.txt").read_bytes() == b"made"


async def test_no_stale_write_an_overtaken_attempt_changes_nothing(kept):
    await kept.call("WriteFile", "a.txt", data=b"kept", session_id="ses_1", fencing_token=5)
    kept.tokens["ten_a", "ses_1"] = 6
    mine = {"session_id": "ses_1", "fencing_token": 5}
    stale = Reason.STALE_FENCING_TOKEN
    assert await kept.refused("WriteFile", "a.txt", data=b"late", **mine) is stale
    assert await kept.refused("EditFile", "a.txt", old_text="kept", new_text="late", **mine) is stale
    assert await kept.refused("DeleteFile", "a.txt", **mine) is stale
    assert kept.disk("a.txt").read_bytes() == b"kept"
    await kept.call("WriteFile", "a.txt", data=b"new", session_id="ses_1", fencing_token=6)
    await kept.call("WriteFile", "a.txt", data=b"person")


def test_no_stale_write_an_attempt_that_is_overtaken_while_it_writes_leaves_the_former_file(run_dir):
    roots = Roots(run_dir, lambda tenant_id: os.geteuid())

    def overtaken():
        raise RetinueError(Reason.STALE_FENCING_TOKEN, "Overtaken.")

    ledger = servicer._Ledger(roots.quota, "ten_a")
    with roots.entered("ten_a", "files", lock=True) as root:
        operations.write(root, (b"a",), b"former", "", ledger, lambda: None)
        for work in (
            lambda: operations.write(root, (b"a",), b"late", "", ledger, overtaken),
            lambda: operations.edit(root, (b"a",), b"f", b"x", False, "", ledger, overtaken),
            lambda: removing.delete(root, (b"a",), False, ledger, overtaken),
        ):
            with pytest.raises(RetinueError):
                work()
    roots.close()
    assert [(path.name, path.read_bytes()) for path in (run_dir / "ten_a/files").iterdir()] == [("a", b"former")]


async def test_each_change_is_written_down_before_it_is_told_and_what_is_refused_is_not(kept):
    origin = execution_pb2.Origin(run_id="run_1", call_id="c1", tool="write", principal="usr_1", approval_id="apr_1")
    info = (await kept.call("WriteFile", "a.txt", data=b"one", origin=origin)).info
    (record,) = kept.records
    assert record == {
        "kind": "file_write",
        "tenant_id": "ten_a",
        "session_id": "",
        "fencing_token": 0,
        "principal": "usr_1",
        "run_id": "run_1",
        "call_id": "c1",
        "tool": "write",
        "approval_id": "apr_1",
        "root": "files",
        "path": "a.txt",
        "size_bytes": 3,
        "digest_before": "",
        "digest": info.digest,
    }
    await kept.call("EditFile", "a.txt", old_text="one", new_text="two")
    await kept.call("WriteFile", "a.txt", data=b"three")
    await kept.refused("DeleteFile", "b.txt")
    await kept.call("DeleteFile", "a.txt", root="files")
    assert [record["kind"] for record in kept.records[1:]] == ["file_edit", "file_write", "file_delete"]
    assert kept.records[1]["digest_before"] == info.digest
    assert kept.records[2]["digest_before"] == kept.records[1]["digest"]
    assert kept.records[3]["removed_count"] == 1


async def test_lists_are_sorted_by_path_and_pages_join_without_a_gap_or_a_repeat(kept):
    paths = ["a", "a-b", "a/b/c", "a/b-", "ab", "b/x", "é/ü", "z"]
    for path in paths[1:]:
        await kept.call("WriteFile", path, data=b"")
    whole = ["a", "a-b", "a/b", "a/b-", "a/b/c", "ab", "b", "b/x", "z", "é", "é/ü"]
    assert whole == sorted(whole)
    assert await kept.paths(recursive=True) == whole
    for size in (1, 2, 3, 10, 11):
        found, token = [], ""
        while True:
            page = await kept.call("ListFiles", recursive=True, page_size=size, page_token=token)
            found += [info.path for info in page.files]
            token = page.next_page_token
            if not token:
                break
            assert len(page.files) == size
        assert found == whole
    assert await kept.paths("a", recursive=True) == ["a/b", "a/b-", "a/b/c"]
    assert await kept.refused("ListFiles", page_token="%") is Reason.FIELD_INVALID
    assert await kept.refused("ListFiles", "z") is Reason.FIELD_INVALID


async def test_of_what_is_no_file_only_a_name_is_told(kept):
    await kept.call("WriteFile", "a.txt", data=b"x")
    os.symlink("/etc/passwd", kept.disk("link"))
    os.mkfifo(kept.disk("pipe"))
    (kept.disk("") / os.fsdecode(b"\xff")).mkdir()
    found = (await kept.call("ListFiles", recursive=True)).files
    assert [(info.path, info.kind) for info in found] == [
        *(("a.txt", "file"), ("link", "other"), ("pipe", "other"), ("\ufffd", "other"))
    ]
    assert not any(info.size_bytes or info.HasField("modify_time") for info in found[1:])


async def test_bounded_more_than_the_quota_is_refused_and_removing_makes_room(start):
    kept = await start(size_max_bytes=MIB, inode_count_max=6)
    await kept.call("WriteFile", "a", data=b"x" * 600_000)
    assert await kept.refused("WriteFile", "b", data=b"x" * 600_000) is Reason.QUOTA_EXCEEDED
    assert await kept.refused("WriteFile", "b", data=b"x" * 600_000, root="memory") is Reason.QUOTA_EXCEEDED
    await kept.call("WriteFile", "b", data=b"x" * 600_000, tenant="ten_b")
    await kept.call("WriteFile", "a", data=b"x" * 500_000)
    assert await kept.refused("WriteFile", "c/d/e/f/g/h", data=b"") is Reason.QUOTA_EXCEEDED
    await kept.call("WriteFile", "c/d/e", data=b"", root="memory")
    assert await kept.paths(recursive=True) == ["a"]
    await kept.call("DeleteFile", "a")
    await kept.call("WriteFile", "b", data=b"x" * 600_000)
    assert await kept.roots.over_quota("ten_a") == ""


async def test_bounded_what_a_box_has_written_is_counted_whatever_it_did_to_hide_it(start, monkeypatch):
    monkeypatch.setattr(quota, "LOOK_FRESH_S", 0.0)
    monkeypatch.setattr(quota, "LOOK_COST_MAX", 0)
    kept = await start(size_max_bytes=MIB, inode_count_max=100)
    await kept.call("WriteFile", "a", data=b"x")
    for n in range(20):  # one file under many names is one file, and a hole is nothing
        os.link(kept.disk("a"), kept.disk(f"a{n}"))
    with kept.disk("sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert await kept.roots.over_quota("ten_a") == ""
    kept.disk("shut").mkdir()
    kept.disk("shut/big").write_bytes(b"x" * 2 * MIB)
    kept.disk("shut").chmod(0)
    assert await kept.roots.over_quota("ten_a") == "The tenant's files take up more than 1 MiB."
    await kept.call("DeleteFile", "shut", recursive=True)
    assert await kept.roots.over_quota("ten_a") == ""
    for n in range(200):
        kept.disk(f"b{n}").touch()
    assert await kept.roots.over_quota("ten_a") == "The tenant has more than 100 files and folders."


async def test_what_a_killed_process_left_half_written_is_no_file_and_goes_in_time(start, monkeypatch):
    monkeypatch.setattr(quota, "LOOK_FRESH_S", 0.0)
    monkeypatch.setattr(quota, "LOOK_COST_MAX", 0)
    kept = await start()
    await kept.call("WriteFile", "d/a", data=b"x")
    left, new = (kept.disk(f"d/.retinue-staged-{n}") for n in range(2))
    for path in (left, new):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert await kept.paths(recursive=True) == ["d", "d/a"]
    await kept.roots.over_quota("ten_a")
    assert (left.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize(("point", "left"), [("sandbox.file.staged", b"former"), ("sandbox.file.written", b"new")])
async def test_who_is_killed_while_it_writes_leaves_the_former_file_or_the_new_one_whole(kept, run_dir, point, left):
    await kept.call("WriteFile", "a", data=b"former")
    (run_dir / "armed").mkdir()
    (run_dir / "armed" / point).write_text("kill")
    environ = {**os.environ, "RETINUE_CRASH_DIR": str(run_dir)}
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", WRITER, kept.folder], env=environ)
    assert killed.returncode == -signal.SIGKILL
    assert (await kept.call("ReadFile", "a")).data == left
    assert await kept.paths() == ["a"]
    await kept.call("WriteFile", "a", data=b"later")  # the lock went with the process


async def test_a_mode_is_kept_but_for_what_would_lend_rights(kept):
    await kept.call("WriteFile", "run.sh", data=b"1")
    assert stat.S_IMODE(kept.disk("run.sh").stat().st_mode) == 0o600
    kept.disk("run.sh").chmod(0o6755)
    await kept.call("WriteFile", "run.sh", data=b"2")
    assert stat.S_IMODE(kept.disk("run.sh").stat().st_mode) == 0o755
    kept.disk("run.sh").chmod(0o4711)
    await kept.call("EditFile", "run.sh", old_text="2", new_text="3")
    assert stat.S_IMODE(kept.disk("run.sh").stat().st_mode) == 0o711


async def test_bounded_a_file_is_read_whole_up_to_4_mib_and_beyond_in_parts(kept):
    await kept.call("WriteFile", "a", data=b"")
    with kept.disk("a").open("wb") as file:
        file.truncate(10 * MIB)
    assert await kept.refused("ReadFile", "a") is Reason.BODY_TOO_LARGE
    part = await kept.call("ReadFile", "a", offset_bytes=9 * MIB)
    assert (len(part.data), part.info.size_bytes) == (MIB, 10 * MIB)
    assert await kept.refused("EditFile", "a", old_text="x", new_text="y") is Reason.BODY_TOO_LARGE


async def test_no_call_of_a_tenant_waits_behind_another_tenants(kept, eventually):
    with kept.roots.entered("ten_a", "files", lock=True):
        late = [asyncio.create_task(kept.call("WriteFile", f"{n}", data=b"x")) for n in range(20)]
        await asyncio.wait_for(kept.call("WriteFile", "b", data=b"x", tenant="ten_b"), 2)
        await asyncio.wait_for(kept.call("WriteFile", "b", data=b"x", tenant="ten_c"), 2)
        assert not any(task.done() for task in late)
    await asyncio.gather(*late)
    assert len(await kept.paths()) == 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")
def test_files_are_the_tenants_own_users_and_those_from_before_are_handed_over(run_dir):
    before = Roots(run_dir, lambda tenant_id: 0)
    with before.entered("ten_a", "files") as root:
        ledger = servicer._Ledger(before.quota, "ten_a")
        operations.write(root, (b"d", b"old"), b"x", "", ledger, lambda: None)
    (run_dir / "ten_a/files/d/old").chmod(0o4755)
    os.symlink(run_dir, run_dir / "ten_a/files/d/link")
    before.close()

    roots = Roots(run_dir, {"ten_a": 700_001, "ten_b": 700_002}.__getitem__)
    workspace = roots.open("ten_a")
    assert (workspace.uid, os.fstat(workspace.fd).st_uid) == (700_001, 700_001)
    os.close(workspace.fd)
    with roots.entered("ten_a", "files", lock=True) as root:
        ledger = servicer._Ledger(roots.quota, "ten_a")
        operations.write(root, (b"d", b"e", b"new"), b"x", "", ledger, lambda: None)
    for path in ("", "d", "d/old", "d/link", "d/e", "d/e/new"):
        assert (run_dir / "ten_a/files" / path).lstat().st_uid == 700_001, path
    for path in (run_dir, run_dir / "ten_a", run_dir / "ten_a/memory"):
        path.mkdir(exist_ok=True)
        assert path.stat().st_uid == 0, path
    assert stat.S_IMODE((run_dir / "ten_a/files/d/old").stat().st_mode) == 0o755
    roots.close()
