"""A server of one's own hears what happens with the agent, and can tell that it was us who said it."""

import asyncio
import json

import pytest_asyncio
from receiving import Receiver
from refusals import assert_refused
from whole_mesh import connect


@pytest_asyncio.fixture
async def receiver():
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def admin(mesh):
    """A client of a tenant of its own, whose token is an operator's."""
    async with connect(mesh, mesh.token("hooked", "--scope", "admin", "--scope", "chat")) as connected:
        yield connected


async def make(admin, url, **more):
    answer = await admin.post("/v1/webhooks", json={"url": url, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["webhook"]["webhook_id"], answer.json()["secret"]


async def say(client, contact, text="#echo=yes"):
    run = (await client.post(f"/v1/contacts/{contact}/messages", json={"text": text})).json()["run"]["run_id"]
    assert (await client.post(f"/v1/runs/{run}:wait")).json()["run"]["state"] == "succeeded"
    return run


async def test_a_receiver_hears_of_a_run_and_verifies_who_tells_it(admin, receiver, contact, eventually):
    webhook, secret = await make(admin, receiver.url(), event_types=["assistant.message", "run.succeeded"])
    run = await say(admin, contact)
    await eventually(lambda: len(receiver.received) == 2, 30)
    told = {body["type"]: body["data"] for body in (got.verified(secret) for got in receiver.received)}
    assert told["assistant.message"]["data"]["text"] == "yes"
    assert (told["run.succeeded"]["run_id"], told["run.succeeded"]["contact"]) == (run, contact)
    path = f"/v1/webhooks/{webhook}/deliveries"

    async def recorded():
        page = (await admin.get(path, params={"state": "delivered"})).json()["deliveries"]
        assert {one["delivery_id"] for one in page} == {got.id for got in receiver.received}
        return page

    page = await eventually(recorded)
    assert {(one["attempt_count"], one["last_result"], one["run_id"]) for one in page} == {(1, "HTTP 200", run)}
    again = await admin.post(f"{path}/{page[0]['delivery_id']}:retry", json={})
    assert again.json()["delivery"]["state"] == "pending"
    await eventually(lambda: len(receiver.received) == 3, 30)
    assert receiver.received[2].id == page[0]["delivery_id"]
    assert receiver.received[2].body in (receiver.received[0].body, receiver.received[1].body)
    assert (await admin.delete(f"/v1/webhooks/{webhook}")).status_code == 200
    assert_refused(await admin.get(path), 404, "WEBHOOK_NOT_FOUND")


async def test_a_webhook_is_listed_switched_and_tested(admin, receiver, eventually):
    webhook, secret = await make(admin, receiver.url())
    shown = (await admin.get(f"/v1/webhooks/{webhook}")).json()["webhook"]
    assert (shown["state"], shown["kind"], shown["url"]) == ("active", "standard", receiver.url())
    assert "secret" not in shown
    assert webhook in [one["webhook_id"] for one in (await admin.get("/v1/webhooks")).json()["webhooks"]]
    for state in ("off", "active"):
        switched = await admin.post(f"/v1/webhooks/{webhook}:set-state", json={"state": state})
        assert switched.json()["webhook"]["state"] == state
    assert (await admin.post(f"/v1/webhooks/{webhook}:test", json={})).json()["delivery"]["state"] == "pending"
    await eventually(lambda: receiver.received, 30)
    assert receiver.received[0].verified(secret)["type"] == "webhook.test"
    await admin.delete(f"/v1/webhooks/{webhook}")


async def test_one_effect_a_key_answers_the_same_webhook_with_the_same_secret(admin, receiver, contact):
    headers, body = {"idempotency-key": f"k-{contact}"}, {"url": receiver.url()}
    made = await admin.post("/v1/webhooks", json=body, headers=headers)
    again = await admin.post("/v1/webhooks", json=body, headers=headers)
    assert (again.status_code, again.json()) == (200, made.json())
    other = await admin.post("/v1/webhooks", json={**body, "event_types": ["run.failed"]}, headers=headers)
    assert_refused(other, 409, "IDEMPOTENCY_KEY_REUSED")
    await admin.delete(f"/v1/webhooks/{made.json()['webhook']['webhook_id']}")
    assert_refused(await admin.post("/v1/webhooks", json=body, headers=headers), 404, "WEBHOOK_NOT_FOUND")
    refused = await admin.post("/v1/webhooks", json=body, headers={"idempotency-key": ""})
    assert_refused(refused, 400, "FIELD_INVALID", "Idempotency-Key")


async def test_what_cannot_be_a_webhook_is_refused_by_its_field(admin):
    for body, field in (
        ({}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "https://user@example.com/"}, "url"),
        ({"url": "https://example.com/", "kind": "carrier-pigeon"}, "kind"),
        ({"url": "https://example.com/", "event_types": ["assistant.delta"]}, "event_types"),
        ({"url": "https://example.com/", "secret": "guess"}, "secret"),
    ):
        refused = await admin.post("/v1/webhooks", json=body)
        assert field in json.dumps(assert_refused(refused, 400, "FIELD_INVALID")), body


async def test_no_cross_tenant_webhooks_are_for_operators_of_their_tenant(mesh, admin, client, receiver):
    webhook, _ = await make(admin, receiver.url())
    delivery = (await admin.post(f"/v1/webhooks/{webhook}:test", json={})).json()["delivery"]["delivery_id"]
    paths = (
        ("GET", f"/v1/webhooks/{webhook}"),
        ("GET", f"/v1/webhooks/{webhook}/deliveries"),
        ("POST", f"/v1/webhooks/{webhook}:test"),
        ("POST", f"/v1/webhooks/{webhook}/deliveries/{delivery}:retry"),
        ("DELETE", f"/v1/webhooks/{webhook}"),
    )
    async with connect(mesh, mesh.token("other", "--scope", "admin")) as stranger:
        for method, path in paths:
            reason = "DELIVERY_NOT_FOUND" if path.endswith(":retry") else "WEBHOOK_NOT_FOUND"
            assert_refused(await stranger.request(method, path), 404, reason)
            assert_refused(await client.request(method, path), 403, "SCOPE_MISSING")
    await admin.delete(f"/v1/webhooks/{webhook}")


async def test_the_command_makes_a_webhook_and_tells_what_became_of_it(mesh, receiver, eventually):
    await asyncio.to_thread(mesh.token, "hooked-by-hand")

    def retinue(*words):
        return mesh.command("webhooks", *words, "--tenant", "hooked-by-hand").stdout

    made = await asyncio.to_thread(retinue, "create", receiver.url(), "--event", "run.failed")
    webhook = made.split()[1]
    facts = dict(line.split(maxsplit=1) for line in (await asyncio.to_thread(retinue, "show", webhook)).splitlines())
    assert facts.pop("made:")
    assert facts == {
        "webhook:": webhook, "kind:": "standard", "state:": "active", "url:": receiver.url(), "events:": "run.failed",
    }  # fmt: skip
    await asyncio.to_thread(retinue, "test", webhook)
    await eventually(lambda: receiver.received, 30)
    receiver.received[0].verified(made.split()[3])

    async def shown():
        assert "HTTP 200" in await asyncio.to_thread(retinue, "deliveries", webhook)
        return True

    await eventually(shown, 30)
    assert "removed" in await asyncio.to_thread(retinue, "delete", webhook)
