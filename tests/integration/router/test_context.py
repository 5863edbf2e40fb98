"""Contexts of sessions: what the log holds of them, where history begins, and conversations from elsewhere."""

import json

import pytest
from retinue_kit.errors import Reason, RetinueError

DIGEST = "ab" * 32
LINES = [{"role": "user", "text": "My cat is Mochi."}, {"role": "assistant", "text": "Noted."}]


async def read(router, **fields):
    header, events = None, []
    async for part in router.stream("ReadContext", contact="anna", **fields):
        if part.HasField("header"):
            assert header is None
            header = part.header
        events += [json.loads(event.json) for event in part.events]
    return header, events


async def say(core, text, answer="yes", *, finish="succeeded", events=()):
    await core.submit(text)
    held = await core.claim()
    said = [
        *({"n": 3 + at, **event} for at, event in enumerate(events)),
        {"n": 8, "type": "assistant.message", "data": {"message_id": "msg_x", "text": answer}},
    ]
    await core.finish(held, finish, events=said)
    return held


def history(held):
    return [(line["role"], line["text"]) for line in json.loads(held["history"])][::-1]


async def test_history_begins_where_the_session_was_summed_up_with_the_summary_in_front(core):
    await say(core, "one")
    held = await say(core, "two")
    through = f"{held['token']}-8"
    compacted = {"type": "context.compacted", "data": {"summary": "Both counted.", "through": through}}
    await say(core, "three", events=[compacted])
    await core.submit("four")
    summary = ("system", "What was said before, summed up:\nBoth counted.")
    assert history(await core.claim()) == [summary, ("user", "three"), ("assistant", "yes")]


async def test_history_has_what_is_remembered_of_the_contact_and_of_the_tenant_and_of_nobody_else(core):
    for contact, text, importance in (("anna", "low", 1), ("anna", "high", 9), ("", "ours", 5), ("bob", "his", 9)):
        fact = {
            "fact_id": f"fct_{text}", "domain": "d", "kind": "note", "importance": importance, "text": text,
            "digest": text.encode().hex(), "grams": [1], "model": "m", "vector": "[1,0]",
        }  # fmt: skip
        await core.call("remember_1", contact, "", json.dumps([fact]), 100)
    await core.submit("hello")
    held = await core.claim()
    assert history(held) == [("system", "What is remembered of whom you speak with:\n- high\n- ours\n- low")]
    await core.finish(held)
    core.tenant = "ten_b"
    await core.submit("hello")
    assert history(await core.claim()) == []


async def test_bounded_what_is_remembered_takes_only_so_much_of_a_history(core):
    facts = [
        {
            "fact_id": f"fct_{n:03}", "domain": "d", "kind": "note", "importance": 5, "text": f"{n} " + "x" * 900,
            "digest": f"{n:04x}", "grams": [1], "model": "m", "vector": "[1,0]",
        }
        for n in range(50)
    ]  # fmt: skip
    await core.call("remember_1", "anna", "", json.dumps(facts), 100)
    await core.submit("hello")
    ((_, text),) = history(await core.claim())
    assert 4 < text.count("- ") < 8


async def test_a_context_is_read_in_order_up_to_a_cursor_and_without_what_was_rolled_back(core, router):
    log = (await router.call("GetLog", contact="anna")).log_id

    def called(name):
        return [
            {"n": 3, "type": "tool.started", "data": {"call_id": name, "tool": "read", "arguments": {}}},
            {"n": 4, "type": "tool.finished", "data": {"call_id": name, "ok": True, "result": "42"}},
            {"n": 5, "type": "assistant.message", "data": {"message_id": name, "text": f"answer {name}"}},
        ]

    for name, state in (("one", "succeeded"), ("two", "cancelled")):
        await router.submit(name, on_busy="enqueue")
        held = await core.claim(log)
        if state == "cancelled":
            await router.submit("three", on_busy="rollback")
        await core.finish(held, state, events=called(name), log=log)
    held = await core.claim(log)
    await core.finish(held, events=called("three"), log=log)
    _, events = await read(router)
    assert [(e["type"], e["data"].get("text") or e["data"]["call_id"]) for e in events] == [
        ("user.message", "one"), ("tool.started", "one"), ("tool.finished", "one"), ("assistant.message", "answer one"),
        ("user.message", "two"),
        ("user.message", "three"), ("tool.started", "three"), ("tool.finished", "three"),
        ("assistant.message", "answer three"),
    ]  # fmt: skip
    header, some = await read(router, through_cursor=events[3]["cursor"])
    assert (some, header.through_cursor) == (events[:4], events[3]["cursor"])
    _, others = await read(router, without_run_id=events[-1]["run_id"])
    assert others == events[:5]


async def test_a_conversation_from_elsewhere_is_the_contacts_own_from_then_on(router):
    made = await router.call(
        "ImportContext", contact="anna", digest=DIGEST, messages=LINES, summary="They met.", summary_message_count=4,
        losses=["settings.model: lost: it is another deployment's"], display_name="Anna", profile={"age": 7},
    )  # fmt: skip
    assert not made.replayed
    header, events = await read(router)
    assert (header.session_id, header.display_name, header.profile["age"]) == (made.session_id, "Anna", 7)
    assert [event["type"] for event in events] == [
        "bundle.imported", "context.compacted", "user.message", "assistant.message",
    ]  # fmt: skip
    assert header.through_cursor == events[-1]["cursor"]
    assert events[0]["data"] == {
        "bundle": DIGEST, "losses": ["settings.model: lost: it is another deployment's"], "message_count": 2,
    }  # fmt: skip
    assert events[1]["data"]["through"] == events[1]["cursor"]
    messages = (await router.call("ListMessages", contact="anna")).messages
    assert [(message.role, message.text) for message in messages] == [(line["role"], line["text"]) for line in LINES]
    again = await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES)
    assert (again.session_id, again.replayed) == (made.session_id, True)
    await router.call("ResetContact", contact="anna")
    fresh = await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES)
    assert (fresh.session_id != made.session_id, fresh.replayed) == (True, False)


async def test_a_run_after_an_import_finds_what_was_said_elsewhere(core, router):
    log = (await router.call("GetLog", contact="anna")).log_id
    await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES, summary="They met.")
    await router.submit("What is my cat called?")
    held = await core.claim(log)
    assert history(held) == [
        ("system", "What was said before, summed up:\nThey met."),
        ("user", "My cat is Mochi."),
        ("assistant", "Noted."),
    ]


async def test_an_import_waits_for_nobody_and_disturbs_no_run(core, router):
    log = (await router.call("GetLog", contact="anna")).log_id
    await router.submit("one")
    for _ in range(2):  # queued, then running
        with pytest.raises(RetinueError) as caught:
            await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES)
        assert caught.value.reason is Reason.SESSION_BUSY
        held = await core.claim(log) or held  # noqa: F821
    await core.finish(held, log=log)
    assert not (await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES)).replayed


async def test_a_profile_that_is_there_is_not_overwritten_by_an_import(router):
    await router.call("UpdateContact", contact="anna", display_name="Anna", profile={"age": 7})
    await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES, display_name="Eve")
    header, _ = await read(router)
    assert (header.display_name, header.profile["age"]) == ("Anna", 7)


async def test_watchers_see_an_import_as_it_happens(router, eventually):
    log = (await router.call("GetLog", contact="anna")).log_id
    seen = []
    watching = router.watch(log_id=log, after_cursor="0-0")
    await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES)
    async for answer in watching:
        seen.append(answer.event.type)
        if len(seen) == 3:
            break
    assert seen == ["bundle.imported", "user.message", "assistant.message"]


async def test_who_is_not_there_has_no_context(router):
    with pytest.raises(RetinueError) as caught:
        await read(router)
    assert caught.value.reason is Reason.CONTACT_NOT_FOUND
    await router.call("UpdateContact", contact="anna")
    header, events = await read(router)
    assert (header.through_cursor, events) == ("0-0", [])


async def test_no_cross_tenant_a_context_is_its_own_tenants(router):
    await router.call("ImportContext", contact="anna", digest=DIGEST, messages=LINES)
    router.tenant = "ten_b"
    await router.call("UpdateContact", contact="anna")
    assert (await read(router))[1] == []


async def test_decisions_are_listed_by_tenant_and_page_since_a_time(core, router):
    runs = []
    for tenant in ("ten_b", "ten_a"):
        core.tenant = router.tenant = tenant
        for contact in ("anna", "bob"):
            run = await router.submit(contact=contact)
            held = await core.claim(run.log_id)
            await core.finish(held, log=run.log_id)
            runs.append((tenant, run.run_id))
    await router.submit(contact="undecided")
    listed, token = [], ""
    while True:
        router.tenant = ""  # of all
        answer = await router.call("ListDecisions", since="2026-01-01T00:00:00Z", page_size=3, page_token=token)
        listed += [(one.tenant_id, one.run_id) for one in answer.decisions]
        assert all(one.decision["runtime"] == "light" for one in answer.decisions)
        token = answer.next_page_token
        if not token:
            break
    assert listed == sorted(runs)
    assert not (await router.call("ListDecisions", since="2126-01-01T00:00:00Z")).decisions
    only = await router.call("ListDecisions", since="2026-01-01T00:00:00Z", tenant_id="ten_b")
    assert {one.tenant_id for one in only.decisions} == {"ten_b"}
