"""The courier: what is due is sent, and what came of it recorded, whatever dies and whoever else sends."""

import asyncio
from collections import Counter

from posting import TENANT
from receiving import Receiver


async def wait_s(post):
    """Seconds until the delivery is due again."""
    row = await post.core.admin.fetchval(
        "select extract(epoch from due_time - clock_timestamp()) from router.deliveries where state = 'pending'"
    )
    return float(row)


async def test_the_end_of_a_run_arrives_signed_and_as_documented(post, receiver):
    _, secret = await post.make(receiver.url("/a/b?x=%20y"))
    held = await post.happen()
    await post.round()
    (got,) = receiver.received
    body = got.verified(secret)
    event = body["data"]
    assert body["type"] == event["type"] == "run.succeeded"
    assert body["timestamp"] == event["time"]
    assert (event["contact"], event["run_id"], event["session_id"]) == ("anna", held["run_id"], held["session_id"])
    assert event["cursor"] == f"{held['token']}-9"
    assert event["data"]["usage"]["model"] == "small"
    assert got.headers["content-type"] == "application/json; charset=utf-8"
    row = await post.row()
    assert (row["delivery_id"], row["state"], row["attempt"], row["last_result"]) == (
        got.id,
        "delivered",
        1,
        "HTTP 200",
    )


async def test_one_that_failed_is_sent_again_as_it_was(post, receiver):
    _, secret = await post.make(receiver.url())
    receiver.answers = [receiver.answer(500), receiver.answer(204)]
    await post.happen()
    await post.round()
    assert (await post.row())["last_result"] == "HTTP 500"
    assert 3 < await wait_s(post) <= 5
    assert await post.round() == 0, "not before its time"
    await post.hasten()
    await post.round()
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    second.verified(secret)
    row = await post.row()
    assert (row["state"], row["attempt"]) == ("delivered", 2)


async def test_the_last_attempt_ends_it_and_it_may_be_sent_once_more(post, receiver):
    webhook, _ = await post.make(receiver.url())
    receiver.answers = [receiver.answer(503)]
    await post.happen()
    await post.core.admin.execute("update router.deliveries set attempt = 9")
    await post.round()
    row = await post.row()
    assert (row["state"], row["attempt"], row["last_result"]) == ("dead", 10, "HTTP 503")
    await post.webhooks.retry(TENANT, webhook, row["delivery_id"])
    await post.hasten()
    await post.round()
    assert (await post.row())["state"] == "dead"
    receiver.answers = []
    await post.webhooks.retry(TENANT, webhook, row["delivery_id"])
    await post.round()
    assert (await post.row())["state"] == "delivered"


async def test_a_receiver_may_ask_to_be_left_alone(post, receiver):
    receiver.answers = [receiver.answer(429, retry_after="120")]
    await post.make(receiver.url())
    await post.happen()
    await post.round()
    assert 100 < await wait_s(post) <= 120
    receiver.answers = []
    await post.happen("boris")
    assert await post.round() == 0, "neither for what happened meanwhile"
    await post.hasten()
    await post.round()
    await post.round()
    assert {row["state"] for row in await post.rows()} == {"delivered"}


async def test_gone_is_gone_until_it_is_switched_on_again(post, receiver):
    webhook, _ = await post.make(receiver.url())
    receiver.answers = [receiver.answer(410)]
    for contact in ("anna", "boris", "clara"):
        await post.happen(contact)
    await post.round()
    assert (await post.webhooks.get(TENANT, webhook))["state"] == "gone"
    await post.round()
    results = Counter((row["state"], row["last_result"]) for row in await post.rows())
    assert results == {("dead", "HTTP 410"): 1, ("dead", "the webhook is gone"): 2}
    await post.happen("dora")
    assert len(await post.rows()) == 3, "what happens meanwhile is not even written"
    receiver.answers = []
    await post.webhooks.set_state(TENANT, webhook, "active")
    await post.happen("emil")
    await post.round()
    assert len(receiver.received) == 2


async def test_what_waits_when_it_is_switched_off_is_not_sent_later(post, receiver):
    webhook, _ = await post.make(receiver.url())
    await post.happen()
    await post.webhooks.set_state(TENANT, webhook, "off")
    await post.round()
    row = await post.row()
    assert (row["state"], row["last_result"], receiver.received) == ("dead", "the webhook is off", [])


async def test_a_removed_webhook_takes_its_deliveries_along_and_strays_are_cleared_away(post, receiver):
    webhook, _ = await post.make(receiver.url())
    await post.happen()
    await post.happen("boris")
    await post.webhooks.delete(TENANT, webhook)
    assert await post.rows() == []
    await post.core.admin.execute(
        "insert into router.deliveries (tenant_id, delivery_id, webhook_id, event_type, event_time)"
        " values ('ten_a', 'dlv_late', $1, 'run.succeeded', now())",
        webhook,
    )
    await post.round()
    assert (await post.rows(), receiver.received) == ([], [])


async def test_a_courier_that_dies_after_sending_leaves_it_to_another_under_the_same_id(
    post, receiver, launch, run_dir, eventually
):
    await post.make(receiver.url())
    await post.happen()
    armed = run_dir / "crash" / "armed"
    armed.mkdir(parents=True)
    (armed / "courier.sent").write_text("kill")
    environ = {
        "RETINUE_ADDRESS": f"unix:{run_dir}/courier.sock",
        "RETINUE_POSTGRES_DSN": post.database.dsn("retinue_courier"),
        "RETINUE_SEALING_KEYS_FILE": str(post.keys),
        "RETINUE_WEBHOOK_PRIVATE_TARGETS": "true",
        "RETINUE_DELIVERY_LEASE_S": "0.5",
        "RETINUE_CRASH_DIR": str(run_dir / "crash"),
    }
    victim = launch("retinue_router.courier", **environ)
    await asyncio.to_thread(victim.wait, 30)
    assert victim.returncode == -9, victim.log()
    assert (await post.row())["state"] == "pending"
    launch("retinue_router.courier", **environ)

    async def delivered():
        return (await post.row())["state"] == "delivered"

    await eventually(delivered, 30)
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)
    assert (await post.row())["attempt"] == 2


async def test_two_couriers_send_each_delivery_once(post, receiver, eventually):
    for i in range(8):
        await post.make(receiver.url(f"/{i}"))
    for i in range(10):
        await post.happen(f"c{i}")
    async with post.courier() as one, post.courier() as two:
        loops = [asyncio.create_task(courier.work_for_ever()) for courier in (one, two)]
        await eventually(lambda: len(receiver.received) == 80, 30)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    assert set(Counter(got.id for got in receiver.received).values()) == {1}
    assert {(row["state"], row["attempt"]) for row in await post.rows()} == {("delivered", 1)}


async def test_a_dead_receiver_does_not_hold_up_the_others(post, receiver, eventually):
    receiver.answers = [receiver.hang]
    fine = Receiver()
    await fine.start()
    await post.make(receiver.url())
    for i in range(6):
        await post.happen(f"c{i}")
    await post.make(fine.url())
    await post.happen("last")
    async with post.courier(timeout_s=30) as courier:
        loop = asyncio.create_task(courier.work_for_ever())
        await eventually(lambda: fine.received, 20)
        await eventually(lambda: len(receiver.received) == 2, 20)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        receiver.release.set()
    await fine.stop()


async def test_who_was_given_up_on_cannot_record_over_his_successor(post, receiver):
    await post.make(receiver.url())
    await post.happen()
    async with post.courier(lease_s=-1.0) as slow, post.courier() as quick:
        (webhook,) = {one.webhook_id for one in await slow.outbox.look("")}
        (late,) = await slow.outbox.claim([webhook])
        (now,) = await quick.outbox.claim([webhook])
        assert (late.delivery_id, late.attempt, now.attempt) == (now.delivery_id, 1, 2)
        assert not await slow.outbox.end(late, "dead", "HTTP 500", 0.0, 0.0, gone=False)
        assert await quick.outbox.end(now, "delivered", "HTTP 200", 0.0, 0.0, gone=False)
        assert not await quick.outbox.end(now, "pending", "HTTP 500", 1.0, 0.0, gone=False)
    assert (await post.row())["last_result"] == "HTTP 200"


class BrokenSealer:
    def open(self, sealed, purpose):
        raise RuntimeError(purpose)


async def test_an_attempt_that_breaks_within_the_courier_counts_as_one(post, receiver):
    await post.make(receiver.url())
    await post.happen()
    assert await post.round(sealer=BrokenSealer()) == 1
    row = await post.row()
    assert (row["state"], row["attempt"], row["last_result"]) == ("pending", 1, "the courier met an error of its own")
    await post.core.admin.execute("update router.deliveries set attempt = 9")
    await post.hasten()
    await post.round(sealer=BrokenSealer())
    assert (await post.row())["state"] == "dead"


async def test_a_test_arrives_and_tells_of_nothing(post, receiver):
    webhook, secret = await post.make(receiver.url())
    made = await post.webhooks.test(TENANT, webhook)
    await post.round()
    body = receiver.received[0].verified(secret)
    assert (body["type"], body["data"]) == ("webhook.test", {})
    rows, more = await post.webhooks.deliveries(TENANT, webhook, "delivered", 1, "")
    assert ([row["delivery_id"] for row in rows], more) == ([made["delivery_id"]], "")


async def test_what_ended_long_ago_is_purged_and_what_waits_is_counted(post, receiver):
    await post.make(receiver.url())
    await post.happen()
    await post.happen("boris")
    async with post.courier(keep_s=-1.0) as courier:
        assert await courier.outbox.count_waiting() == 2
        assert not await courier.outbox.purge()
        await courier.look()
        await courier.drain(30)
        assert not await courier.outbox.purge()
        assert await courier.outbox.count_waiting() == 1
    assert len(await post.rows()) == 1
