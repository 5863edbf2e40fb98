"""The lock of a tenant's workspace, and what is written under it."""

import asyncio
import json

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_router import workspace


async def test_a_workspace_is_held_by_one_at_a_time(tmp_path):
    inside = 0
    for tenant in ("ten_a", "ten_b"):
        async with workspace.locked(tmp_path, tenant):
            pass

    async def hold():
        nonlocal inside
        async with workspace.locked(tmp_path, "ten_a"):
            assert inside == 0
            inside += 1
            await asyncio.sleep(0)
            inside -= 1

    async with workspace.locked(tmp_path, "ten_b"):
        await asyncio.gather(*(hold() for _ in range(20)))


async def test_a_lock_that_another_keeps_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "LOCK_ATTEMPTS_MAX", 2)
    async with workspace.locked(tmp_path, "ten_a"):
        with pytest.raises(RetinueError) as refused:
            async with workspace.locked(tmp_path, "ten_a"):
                pass
    assert refused.value.reason == Reason.DEPENDENCY_UNAVAILABLE
    async with workspace.locked(tmp_path, "ten_a"):
        pass


def test_a_profile_replaces_the_former_one_and_goes_with_its_contact(tmp_path):
    for age in (1, 2):
        workspace.write_profile(tmp_path, "ten_a", "anna", {"age": age})
    folder = workspace.contact_dir(tmp_path, "ten_a", "anna")
    assert json.loads((folder / "profile.json").read_text()) == {"age": 2}
    assert (folder / "profile.json").stat().st_mode & 0o777 == 0o600
    workspace.write_profile(tmp_path, "ten_a", "berta", {})
    for _ in range(2):
        workspace.remove_contact(tmp_path, "ten_a", "anna")
    assert [f.name for f in folder.parent.iterdir()] == ["berta"]


@pytest.mark.parametrize(
    ("tenant", "contact"), [("..", "a"), ("a/b", "a"), ("", "a"), ("ten_a", ".."), ("ten_a", "a/b")]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, tenant, contact):
    with pytest.raises(ValueError, match="not a name"):
        workspace.contact_dir(tmp_path, tenant, contact)
