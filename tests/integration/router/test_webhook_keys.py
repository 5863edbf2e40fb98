"""A webhook that is asked for again under its key is the one that was made."""

import asyncio
from dataclasses import replace

import pytest
from posting import FakeNames, asked
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.sealing import Sealer
from retinue_router.operations.webhooks import Webhooks
from retinue_router.store.webhooks import WebhookStore

URL = "https://example.com/hear"


async def refused(call, reason):
    with pytest.raises(RetinueError) as caught:
        await call
    assert caught.value.reason is reason
    return caught.value


@pytest.mark.parametrize(("kind", "secret"), [("standard", ""), ("feishu", ""), ("feishu", "bots-own")])
async def test_one_effect_the_same_key_and_body_answer_the_same_webhook_with_the_same_secret(post, kind, secret):
    made = await post.make(URL, kind, ["run.failed", "run.succeeded"], secret, key="k")
    assert bool(made[1]) == (kind == "standard" or bool(secret))
    again = post.make(URL, kind, ["run.succeeded", "run.failed"], secret, key="k")
    assert await again == made
    assert (await post.make(URL, kind, ["run.failed", "run.succeeded"], secret, key="l"))[0] != made[0]
    assert (await post.make(URL, kind))[0] != (await post.make(URL, kind))[0]  # without a key, each is an intent
    assert len(await post.core.seen("select from router.webhooks")) == 4


async def test_one_effect_of_many_who_ask_at_once_one_makes_it(post):
    made = await asyncio.gather(*(post.make(URL, key="k") for _ in range(8)))
    assert len(set(made)) == 1
    assert len(await post.core.seen("select from router.webhooks")) == 1


async def test_a_key_is_one_body_s(post):
    webhook, _ = await post.make(URL, "feishu", secret="bots-own", key="k")
    for other in (
        asked(f"{URL}/2", "feishu", secret="bots-own", key="k"),
        asked(URL, "standard", key="k"),
        asked(URL, "feishu", ["run.failed"], "bots-own", "k"),
        asked(URL, "feishu", secret="anothers", key="k"),
        asked(URL, "feishu", key="k"),
    ):
        error = await refused(post.webhooks.create(other), Reason.IDEMPOTENCY_KEY_REUSED)
        assert error.metadata["webhook_id"] == webhook
    assert len(await post.core.seen("select from router.webhooks")) == 1


async def test_what_a_key_has_made_and_was_removed_is_not_made_again(post):
    webhook, _ = await post.make(URL, key="k")
    await post.webhooks.delete("ten_a", webhook)
    await refused(post.make(URL, key="k"), Reason.WEBHOOK_NOT_FOUND)
    await refused(post.make(f"{URL}/2", key="k"), Reason.IDEMPOTENCY_KEY_REUSED)
    # The key is kept for a month, and goes with the next one.
    await post.core.admin.execute("update router.deleted_webhooks set delete_time = now() - interval '31 days'")
    other, _ = await post.make(URL, key="l")
    await post.webhooks.delete("ten_a", other)
    assert [row["idem_key"] for row in await post.core.seen("select idem_key from router.deleted_webhooks")] == ["l"]
    assert (await post.make(URL, key="k"))[0] not in (webhook, other)


async def test_what_was_made_stays_made_whatever_has_become_of_its_name_and_of_the_quota(post):
    store = WebhookStore(post.core.pool)
    strict = Webhooks(store, post.sealer, FakeNames({"example.com": ["93.184.216.34"]}), private=False)
    made, secret = await strict.create(asked(URL, key="k"))
    for n in range(15):
        await post.make(f"{URL}/{n}")
    assert await strict.create(asked(URL, key="k")) == (made, secret)  # its name is not looked up once more
    await refused(post.make(URL, key="l"), Reason.QUOTA_EXCEEDED)


async def test_no_cross_tenant_anothers_key_is_no_key(post):
    webhook, secret = await post.make(URL, key="k")
    theirs = asked(URL, key="k")
    other, other_secret = await post.webhooks.create(replace(theirs, tenant_id="ten_b"))
    assert other["webhook_id"] != webhook
    assert other_secret != secret


async def test_a_secret_that_cannot_be_read_any_more_is_told_and_nothing_else_is_made(post):
    await post.make(URL, key="k")
    for sealer in (None, Sealer({"other": b"x" * 32})):
        other = Webhooks(WebhookStore(post.core.pool), sealer, FakeNames({}), private=True)
        error = await refused(other.create(asked(URL, key="k")), Reason.CAPABILITY_MISSING)
        assert error.metadata["capability"] == "sealing"
    assert len(await post.core.seen("select from router.webhooks")) == 1


async def test_nothing_that_is_kept_of_a_key_tells_its_secret(post):
    weak = asked(URL, "feishu", secret="1234", key="k")
    guessed = asked(URL, "feishu", secret="1235", key="k")
    assert weak.digest() == guessed.digest() != asked(URL, "feishu", key="k").digest()
