"""Logs over the wire: listed, watched, and their cursors."""

import asyncio
import json

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.streams import Bus, Cursor, Entry, Kind, Opening, log_key
from retinue_router.domain.contacts import log_id_of
from retinue_router.domain.events import written

ANNA = log_id_of("ten_a", "anna")
KEY = log_key("ten_a", ANNA)


async def turn(router, core, text="hello"):
    """Execute a run to its end as a worker does, bus included; answers it and its entries."""
    run = await router.submit(text)
    held = await core.claim(ANNA)
    bus = Bus(router.redis)
    token, prev = held["token"], Cursor.parse(held["prev"])
    mark = Entry(Cursor(token, 0), Kind.MARK, prev, "", "", b"")
    said = written(token, held["events"])
    delta = Entry(Cursor(token, 3), Kind.TENTATIVE, None, run.run_id, "assistant.delta", b'{"session_id":"s"}')
    await bus.append(KEY, [mark, *said, delta], opening=Opening.CLAIM)
    done = written(token, (await core.finish(held, log=ANNA))["events"])
    await bus.append(KEY, done, opening=Opening.COMMITTED)
    return run, [*said, delta, *done]


async def listed(router, **fields):
    events, after = [], ""
    while True:
        page = await router.call("ListEvents", log_id=ANNA, after_cursor=after, **fields)
        events += page.events
        if not page.more:
            return events
        after = page.events[-1].cursor


async def test_listed_events_are_the_bytes_that_the_bus_carried(router, core):
    run, entries = await turn(router, core, 'häl"lo 👋\n')
    events = await listed(router)
    assert [e.json for e in events] == [e.json for e in entries if e.kind is Kind.DURABLE]
    assert [e.type for e in events] == ["user.message", "assistant.message", "run.succeeded"]
    first = json.loads(events[0].json)
    assert list(first) == ["cursor", "type", "session_id", "run_id", "time", "data"]
    assert first["data"]["text"] == 'häl"lo 👋\n'
    assert (events[0].cursor, events[0].session_id, events[0].run_id) == ("1-1", run.session_id, run.run_id)
    assert b"\n" not in events[0].json


async def test_events_are_listed_in_pages_in_order_and_by_run(router, core):
    runs = [(await turn(router, core, str(i)))[0] for i in range(4)]
    events = await listed(router, page_size=5)
    assert [e.cursor for e in events] == [f"{token}-{n}" for token in range(1, 5) for n in (1, 5, 9)]
    of_third = await listed(router, page_size=2, run_id=runs[2].run_id)
    assert [e.cursor for e in of_third] == ["3-1", "3-5", "3-9"]
    assert runs[2].after_cursor == "2-9"
    exactly = await router.call("ListEvents", log_id=ANNA, page_size=12)
    assert (len(exactly.events), exactly.more) == (12, False)


async def test_a_malformed_cursor_is_refused(router):
    for cursor in ("x", "1", "1-", "-1-1", "1-1-1", "1-99999999999999999999", "１-1"):
        with pytest.raises(RetinueError) as refused:
            await router.call("ListEvents", log_id=ANNA, after_cursor=cursor)
        assert refused.value.reason == Reason.CURSOR_INVALID
        with pytest.raises(RetinueError) as refused:
            await anext(router.watch(log_id=ANNA, after_cursor=cursor))
        assert refused.value.reason == Reason.CURSOR_INVALID


async def test_a_watched_run_is_seen_live_and_ends_with_its_last_event(router, core):
    run = await router.submit("other")
    await router.call("CancelRun", run_id=run.run_id)
    await core.claim(ANNA)
    seen = []

    async def watch():
        async for answer in router.watch(log_id=ANNA, after_cursor="0-0"):
            seen.append(answer.event)
            if answer.event.type == "run.succeeded":
                return

    watching = asyncio.create_task(watch())
    run, _ = await turn(router, core)
    await asyncio.wait_for(watching, 10)
    assert [e.type for e in seen] == [
        "run.cancelled", "user.message", "assistant.delta", "assistant.message", "run.succeeded",
    ]  # fmt: skip
    of_run = [a.event async for a in router.watch(log_id=ANNA, run_id=run.run_id, after_cursor=run.after_cursor)]
    assert of_run == seen[1:]
    after_delta = [a.event.type async for a in router.watch(log_id=ANNA, run_id=run.run_id, after_cursor="2-3")]
    assert after_delta == ["assistant.message", "run.succeeded"]


async def test_a_run_that_is_over_is_watched_to_its_end_after_the_bus_forgot_it(router, core):
    run, _ = await turn(router, core)
    await router.redis.flushall()
    seen = [a.event.type async for a in router.watch(log_id=ANNA, run_id=run.run_id, after_cursor="0-0")]
    assert seen == ["user.message", "assistant.message", "run.succeeded"]
    for after in ("1-9", ""):
        assert [a async for a in router.watch(log_id=ANNA, run_id=run.run_id, after_cursor=after)] == []


async def test_watching_begins_now_where_no_cursor_is_given(router, core, eventually):
    await turn(router, core)
    stream = router.watch(log_id=ANNA)
    first = asyncio.create_task(anext(stream))

    async def subscribed():
        return (await router.redis.pubsub_numsub(f"{KEY}:live"))[0][1]

    await eventually(subscribed)
    run, _ = await turn(router, core)
    assert (await asyncio.wait_for(first, 10)).event.run_id == run.run_id
    await stream.aclose()


async def test_a_commit_that_was_never_published_is_seen_by_the_tick(router, core):
    stream = router.watch(log_id=ANNA, after_cursor="0-0")
    first = asyncio.create_task(anext(stream))
    await router.submit()
    await core.claim(ANNA)  # and dies before it says so
    assert (await asyncio.wait_for(first, 10)).event.type == "user.message"
    await stream.aclose()


async def test_no_cross_tenant_a_run_of_another_log_or_tenant_is_not_watched(router):
    run = await router.submit()
    other = await router.submit(contact="berta")
    for tenant, log, run_id in (("ten_a", ANNA, other.run_id), ("ten_b", ANNA, run.run_id), ("ten_a", ANNA, "run_x")):
        router.tenant = tenant
        with pytest.raises(RetinueError) as refused:
            await anext(router.watch(log_id=log, run_id=run_id))
        assert refused.value.reason == Reason.RUN_NOT_FOUND


async def test_the_log_of_a_contact_is_known_before_anything_was_said(router, core):
    found = await router.call("GetLog", contact="anna")
    assert (found.log_id, found.last_cursor) == (ANNA, "0-0")
    await turn(router, core)
    assert (await router.call("GetLog", contact="anna")).last_cursor == "1-9"


async def test_cursors_of_many_tenants_are_answered_at_once(router, core):
    await turn(router, core)
    router.tenant = "ten_b"
    await router.submit()
    ask = [("ten_a", ANNA), ("ten_b", log_id_of("ten_b", "anna")), ("ten_b", ANNA)]
    answer = await router.call("ListCursors", logs=[{"tenant_id": t, "log_id": g} for t, g in ask])
    found = {(c.tenant_id, c.log_id): c.last_cursor for c in answer.cursors}
    assert found == {ask[0]: "1-9", ask[1]: "0-0"}


async def test_bounded_pages_of_large_messages_fit_a_message_and_lose_nothing(router, core):
    text = "\U00020000" * 100_000  # 400,000 bytes
    for _ in range(7):
        await router.submit(text)
        said = {"n": 5, "type": "assistant.message", "data": {"message_id": "msg_1", "text": text}}
        await core.finish(await core.claim(ANNA), log=ANNA, events=[said])
    await core.seen("update router.runs set output = $1", text)

    events, pages, after, more = [], 0, "", True
    while more:
        page = await router.call("ListEvents", log_id=ANNA, after_cursor=after)
        events, pages, after, more = [*events, *page.events], pages + 1, page.events[-1].cursor, page.more
    assert [event.type for event in events] == ["user.message", "assistant.message", "run.succeeded"] * 7
    assert len({event.cursor for event in events}) == len(events)
    assert 5 < pages < 10

    for call, field, count in (("ListMessages", "messages", 14), ("ListRuns", "runs", 7)):
        found, pages, token, more = [], 0, "", True
        while more:
            page = await router.call(call, contact="anna", page_size=200, page_token=token)
            found, pages, token = [*found, *getattr(page, field)], pages + 1, page.next_page_token
            more = bool(token)
        assert len(found) == count
        assert pages > 1
