"""A model that fails for one tenant: it is kept away from it, others are served, and a probe ends it."""

import asyncio
import json


def listed(mesh, tenant):
    """What the command says of a tenant's breakers."""
    found = json.loads(mesh.command("status", "--load", "--json").stdout)
    assert {queue["class"] for queue in found["queues"]} == {"chat", "task"}
    return [each for each in found["breakers"] if each["tenant"] == tenant]


async def test_one_tenants_failing_model_is_kept_away_from_it_and_another_tenant_is_served(
    mesh, client_of, stream, contact, eventually
):
    tenant = "breaking"
    async with client_of(tenant) as broken:
        for number in range(2):
            path = f"/v1/contacts/{contact}-{number}/messages"
            assert (await broken.post(path, json={"text": "#status=503"})).status_code == 200
        assert (await stream(contact, "#echo=fine"))[-1]["event"] == "run.succeeded"
        opened = await eventually(lambda: asyncio.to_thread(listed, mesh, tenant), timeout_s=30)
        assert [(each["runtime"], each["state"] != "closed") for each in opened] == [("light", True)]
        assert (await stream(contact, "#echo=still"))[-1]["event"] == "run.succeeded"
        accepted = await broken.post(f"/v1/contacts/{contact}-late/messages", json={"text": "#echo=again"})
        run = accepted.json()["run"]["run_id"]
        ended = (await broken.post(f"/v1/runs/{run}:wait?timeout_s=25")).json()["run"]
        assert (ended["state"], ended["output"]["text"]) == ("succeeded", "again")

    async def closed():
        return not await asyncio.to_thread(listed, mesh, tenant)

    await eventually(closed, timeout_s=30)
