"""Contacts over the wire: profiles, conversations, and deletion that leaves nothing."""

import json

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import log_key
from retinue_router.domain.contacts import log_id_of
from retinue_router.workspace import contact_dir

ANNA = log_id_of("ten_a", "anna")


async def put(router, contact="anna", **fields):
    return (await router.call("UpdateContact", contact=contact, **fields)).contact


async def refusal(call):
    with pytest.raises(RetinueError) as refused:
        await call
    return refused.value.reason


async def test_a_profile_is_written_whole_into_database_and_workspace(router):
    written = await put(router, display_name="Anna", channel="web", profile={"likes": ["tea"], "age": 30})
    assert (await router.call("GetContact", contact="anna")).contact == written
    file = contact_dir(router.workspaces, "ten_a", "anna") / "profile.json"
    document = json.loads(file.read_text())
    assert document["profile"] == {"likes": ["tea"], "age": 30}
    assert (document["contact"], document["display_name"], document["channel"]) == ("anna", "Anna", "web")
    again = await put(router, display_name="A.")
    assert (again.channel, dict(again.profile), again.create_time) == ("", {}, written.create_time)
    assert json.loads(file.read_text())["profile"] == {}
    assert [f.name for f in file.parent.iterdir()] == ["profile.json"]


async def test_a_link_in_the_workspace_is_not_followed(router, run_dir):
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    folder = contact_dir(router.workspaces, "ten_a", "anna")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(elsewhere)
    assert await refusal(put(router)) == Reason.DEPENDENCY_UNAVAILABLE
    assert list(elsewhere.iterdir()) == []


async def test_a_contact_is_made_by_its_first_message(router):
    assert await refusal(router.call("GetContact", contact="anna")) == Reason.CONTACT_NOT_FOUND
    await router.submit()
    assert (await router.call("GetContact", contact="anna")).contact.display_name == ""


async def test_a_refused_task_or_message_of_a_contact_with_a_profile_keeps_it(router):
    await put(router, display_name="Anna")
    await router.submit()
    assert (await router.call("GetContact", contact="anna")).contact.display_name == "Anna"


async def test_contacts_are_listed_by_name_in_pages(router):
    names = ["anna", "berta", "名字" * 64, "z@example.org", "ä:b"]
    for name in reversed(names):
        await put(router, contact=name)
    found, token = [], ""
    while True:
        page = await router.call("ListContacts", page_size=2, page_token=token)
        found += [contact.contact for contact in page.contacts]
        token = page.next_page_token
        if not token:
            break
    assert found == sorted(names, key=lambda name: name.encode())
    assert await refusal(router.call("ListContacts", page_token="r.run_1")) == Reason.CURSOR_INVALID
    router.tenant = "ten_b"
    assert not (await router.call("ListContacts")).contacts


async def test_a_conversation_is_listed_oldest_first_in_pages_without_what_was_rolled_back(router, core):
    for text in ("one", "two"):
        await router.submit(text)
        await core.finish(await core.claim(ANNA), log=ANNA)
    await router.submit("three")
    held = await core.claim(ANNA)
    await router.submit("four", on_busy="rollback")
    await core.finish(held, log=ANNA)
    await core.claim(ANNA)
    found, token = [], ""
    while True:
        page = await router.call("ListMessages", contact="anna", page_size=2, page_token=token)
        found += [(m.role, m.text) for m in page.messages]
        token = page.next_page_token
        if not token:
            break
    said = [("user", "one"), ("assistant", "yes"), ("user", "two"), ("assistant", "yes")]
    assert found == [*said, ("user", "three"), ("user", "four")]
    assert page.messages[0].message_id
    assert page.messages[0].session_id == held["session_id"]
    assert await refusal(router.call("ListMessages", contact="anna", page_token="m.x")) == Reason.CURSOR_INVALID
    assert await refusal(router.call("ListMessages", contact="berta")) == Reason.CONTACT_NOT_FOUND


async def test_after_a_reset_new_runs_belong_to_a_fresh_session_and_accepted_ones_to_the_old(router, core):
    before = await router.submit("one")
    fresh = (await router.call("ResetContact", contact="anna")).session_id
    after = await router.submit("two")
    assert (after.session_id, after.log_id) == (fresh, ANNA)
    assert before.session_id != fresh
    held = await core.claim(ANNA)
    assert held["session_id"] == before.session_id
    done = await core.finish(held, log=ANNA, next=True)
    assert done["next"]["session_id"] == fresh
    assert done["next"]["runtime"] is None
    assert done["next"]["history"] == "[]"
    assert len((await router.call("ListMessages", contact="anna")).messages) == 3
    assert await refusal(router.call("ResetContact", contact="berta")) == Reason.CONTACT_NOT_FOUND


async def test_a_contact_with_a_profile_only_can_be_reset(router):
    await put(router)
    fresh = (await router.call("ResetContact", contact="anna")).session_id
    assert (await router.submit()).session_id == fresh


async def test_a_deleted_contact_leaves_nothing_in_any_store(router, core):
    name, secret = "anna-von-und-zu", "the secret text"
    log = log_id_of("ten_a", name)
    await put(router, contact=name, display_name=name, profile={"secret": secret})
    await router.submit(secret, contact=name, idempotency_key="k", metadata={"secret": secret})
    held = await core.claim(log)
    await router.submit(secret, contact=name)
    task = await router.submit(secret, contact=name, kind="extract", input={"secret": secret})
    await core.finish(await core.claim(task.log_id), log=task.log_id)
    waiting = await router.submit(secret, contact=name, kind="extract")
    await core.claim(waiting.log_id)
    keys = [log_key("ten_a", g) for g in (log, task.log_id, waiting.log_id)]
    for key in keys:
        await router.redis.xadd(key, {"e": secret}, "1-0")
    await router.submit(contact="berta")
    await router.call("DeleteContact", contact=name)

    tables = await core.seen("select table_name from information_schema.tables where table_schema = 'router'")
    for (table,) in tables:
        for row in await core.seen(f"select t::text as line from router.{table} t"):
            assert name not in row["line"]
            assert secret not in row["line"]
    assert [await router.redis.xlen(key) for key in keys] == [0, 0, 0]  # kept empty for a while: late words bounce off
    assert not contact_dir(router.workspaces, "ten_a", name).exists()
    assert len((await router.call("ListContacts")).contacts) == 1
    assert not (await core.finish(held, log=log))["ok"]  # whoever held it is fenced off
    assert await core.renew(("ten_a", log, held["token"]), ("ten_a", waiting.log_id, 1)) == []
    for call in ("DeleteContact", "GetContact", "ListMessages"):
        assert await refusal(router.call(call, contact=name)) == Reason.CONTACT_NOT_FOUND


async def test_a_contact_that_comes_back_goes_on_above_its_former_cursors(router, core):
    await router.submit()
    held = await core.claim(ANNA)
    await router.call("DeleteContact", contact="anna")
    await router.submit()
    assert (await core.claim(ANNA))["token"] > held["token"]


async def test_what_a_deletion_left_halfway_is_removed_by_the_next_one(router, core):
    await router.submit()
    await put(router)
    await core.call("delete_contact_1", "anna", ANNA)
    folder = contact_dir(router.workspaces, "ten_a", "anna")
    assert folder.exists()
    assert await refusal(router.call("DeleteContact", contact="anna")) == Reason.CONTACT_NOT_FOUND
    assert not folder.exists()


async def test_no_cross_tenant_deleting_a_foreign_contact_touches_nothing(router):
    await router.submit()
    await put(router, display_name="Anna")
    router.tenant = "ten_b"
    assert await refusal(router.call("DeleteContact", contact="anna")) == Reason.CONTACT_NOT_FOUND
    router.tenant = "ten_a"
    assert (await router.call("GetContact", contact="anna")).contact.display_name == "Anna"
    assert contact_dir(router.workspaces, "ten_a", "anna").exists()


async def test_approvals_are_listed_and_decided_once(router, core):
    await router.submit()
    held = await core.claim(ANNA)
    await core.park(held, log=ANNA)
    (asked,) = (await router.call("ListApprovals", state="pending")).approvals
    assert (asked.approval_id, asked.contact, asked.tool, asked.summary) == ("apr_1", "anna", "shell", "ls")
    decided = await router.call("DecideApproval", approval_id="apr_1", decision="allow_once", principal="me")
    assert decided.approval.state == "allow_once"
    assert not (await router.call("ListApprovals", state="pending")).approvals
    again = router.call("DecideApproval", approval_id="apr_1", decision="deny")
    assert await refusal(again) == Reason.APPROVAL_CLOSED
    assert (await core.claim(ANNA))["run_id"] == held["run_id"]
    router.tenant = "ten_b"
    assert not (await router.call("ListApprovals")).approvals
    foreign = router.call("DecideApproval", approval_id="apr_1", decision="deny")
    assert await refusal(foreign) == Reason.APPROVAL_NOT_FOUND


async def test_an_approval_whose_time_is_over_is_shown_as_expired(router, core):
    await router.submit()
    await core.park(await core.claim(ANNA), log=ANNA, expire=core.GONE)
    assert [a.state for a in (await router.call("ListApprovals")).approvals] == ["expired"]
    assert not (await router.call("ListApprovals", state="pending")).approvals
    late = router.call("DecideApproval", approval_id="apr_1", decision="allow_once")
    assert await refusal(late) == Reason.APPROVAL_CLOSED
