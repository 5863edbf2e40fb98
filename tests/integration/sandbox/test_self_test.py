"""The self-test on this machine, as root and as an ordinary user, and the backend that lives by it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.checks import LOOKS
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.ports import Command, Exit, Isolation, Limits, Outcome, Piece, Profile, Workspace

REQUIRED = ("bwrap", "box", "privileges", *LOOKS)
NOBODY = 65_534
AS_NOBODY_TIMEOUT_S = 60


@pytest_asyncio.fixture
async def backend(tmp_path: Path) -> AsyncIterator[BwrapBackend]:
    made = BwrapBackend(tmp_path, Uids(tmp_path / ".uids", 700_000, 1000))
    yield made
    await made.close()


def workspace(folder: Path, tenant_id: str) -> Workspace:
    """A tenant's files; whoever takes it closes the descriptor."""
    uid = Uids(folder / ".uids", 700_000, 1000).of(tenant_id)
    files = folder / tenant_id / "files"
    files.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() == 0:
        os.chown(files, uid, uid)
    return Workspace(tenant_id, os.open(files, os.O_PATH | os.O_DIRECTORY), uid)


async def run(backend: BwrapBackend, held: Workspace, *argv: str) -> tuple[str, Exit]:
    box = await backend.open(held, Profile())
    said, end = b"", None
    try:
        async for piece in box.run(Command(argv), Limits()):
            if isinstance(piece, Piece):
                said += piece.data
            else:
                end = piece
    finally:
        await box.close()
    assert end is not None
    return said.decode(), end


async def test_a_box_on_this_machine_holds_and_only_then_is_one_opened(backend: BwrapBackend, tmp_path: Path) -> None:
    held = workspace(tmp_path, "ten_a")
    try:
        with pytest.raises(RetinueError) as refused:
            await backend.open(held, Profile())
        assert refused.value.metadata == {"check": "self_test"}
        found = await backend.check()
        assert [check.name for check in found if check.required] == list(REQUIRED)
        assert [check for check in found if check.required and not check.ok] == []
        assert all(check.ok or check.remedy for check in found)
        assert not list(tmp_path.glob(".self-test*"))
        assert backend.isolation == Isolation.NAMESPACE
        said, end = await run(backend, held, "sh", "-c", "echo kept > kept; cat /workspace/kept")
        assert (said, end.outcome, end.exit_code) == ("kept\n", Outcome.EXITED, 0)
        said, _ = await run(backend, held, "cat", "kept")
        assert said == "kept\n"
    finally:
        os.close(held.fd)


async def test_no_cross_tenant_two_tenants_have_two_users_and_see_nothing_of_one_another(
    backend: BwrapBackend, tmp_path: Path
) -> None:
    await backend.check()
    ours, theirs = workspace(tmp_path, "ten_a"), workspace(tmp_path, "ten_b")
    try:
        if os.geteuid() == 0:
            assert ours.uid != theirs.uid
        await run(backend, theirs, "sh", "-c", "echo secret > secret; ln -s /workspace/secret link; chmod 777 . secret")
        path = tmp_path / "ten_b/files/secret"
        said, end = await run(
            backend, ours, "sh", "-c", f"ls -A; cat {path} /workspace/secret ../../ten_b/files/secret"
        )
        assert "secret\n" not in said.splitlines(keepends=True)[:1]
        assert "No such file" in said
        assert end.exit_code != 0
    finally:
        os.close(ours.fd)
        os.close(theirs.fd)


async def test_a_box_that_ends_is_forgotten_and_the_end_of_the_backend_ends_the_others(
    backend: BwrapBackend, tmp_path: Path
) -> None:
    await backend.check()
    held = workspace(tmp_path, "ten_a")
    try:
        first, second = await backend.open(held, Profile()), await backend.open(held, Profile())
        await first.close()
        await backend.close()
        async with asyncio.timeout(10):
            await second.lost.wait()
        assert first.lost.is_set()
    finally:
        os.close(held.fd)


async def test_box_or_refuse_without_bubblewrap_nothing_is_opened_and_each_failure_has_its_name(tmp_path: Path) -> None:
    uids = Uids(tmp_path / ".uids", 700_000, 1000)
    held = workspace(tmp_path, "ten_a")
    try:
        missing = BwrapBackend(tmp_path, uids, bwrap_path="/nowhere/bwrap")
        [check] = await missing.check()
        assert (check.name, check.ok, check.required) == ("bwrap", False, True)
        with pytest.raises(RetinueError) as refused:
            await missing.open(held, Profile())
        assert refused.value.reason == Reason.SANDBOX_UNAVAILABLE
        assert refused.value.metadata == {"check": "bwrap"}
        (tmp_path / "file").touch()
        closed = BwrapBackend(tmp_path / "file", uids)
        found = await closed.check()
        assert [check.name for check in found if check.required and not check.ok] == ["workspace"]
    finally:
        os.close(held.fd)


async def test_a_box_that_needs_the_network_is_refused_where_there_is_no_proxy(
    backend: BwrapBackend, tmp_path: Path
) -> None:
    await backend.check()
    held = workspace(tmp_path, "ten_a")
    try:
        with pytest.raises(RetinueError) as refused:
            await backend.open(held, Profile(egress=("example.com:443",)))
        assert refused.value.metadata == {"check": "egress"}
    finally:
        os.close(held.fd)


AS_NOBODY = """
import asyncio, concurrent.futures.thread, json, os, shutil, sys
from dataclasses import asdict
from pathlib import Path
from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids

folder, uid = Path(sys.argv[1]), int(sys.argv[2])
os.chown(folder, uid, uid)
os.chdir("/")
os.setgroups([])
os.setgid(uid)
os.setuid(uid)

async def main():
    backend = BwrapBackend(folder, Uids(folder / ".uids", 700000, 10))
    print(json.dumps([asdict(check) for check in await backend.check()]))
    await backend.close()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever is no root has been tested by the others")
async def test_a_box_of_an_ordinary_user_holds_as_well() -> None:
    # Folders of root's, as that of the tests may be, are closed to others.
    with tempfile.TemporaryDirectory(prefix="retinue-nobody-", dir="/tmp") as folder:
        command = [sys.executable, "-c", AS_NOBODY, folder, str(NOBODY)]
        ran = await asyncio.to_thread(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=AS_NOBODY_TIMEOUT_S)
        )
    assert ran.returncode == 0, ran.stderr
    found = {check["name"]: check for check in json.loads(ran.stdout.splitlines()[-1])}
    assert [name for name in found if found[name]["required"]] == list(REQUIRED)
    assert [check for check in found.values() if check["required"] and not check["ok"]] == []
    assert found["privileges"]["detail"] == f"user {NOBODY}, none"
