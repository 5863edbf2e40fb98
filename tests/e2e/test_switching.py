"""Conversations change their runtime, and never within a tool call; what was said before is known on the other one.

The second runtime is the light one under another name, so that it can be taken away.
"""

import asyncio
import contextlib
import json
import random

import asyncpg
import pytest
import pytest_asyncio
from bundling import (
    all_words,
    asked_of_the_model,
    built_again,
    exported,
    facts_told,
    flipped,
    identity_of,
    parts_of,
    refused_part,
    said_in,
    spoken_in,
    tell,
)
from switch_asking import AT_ONCE, ATTEMPTS, SEED, WAIT_S, Asking, admitted, script, trouble
from talking import Heard, follow, shown, wait
from two_runtimes_mesh import WINDOW_TOKENS, two_runtimes
from whole_mesh import connect, parse_sse

TENANTS = 4
SETTINGS = ("policy.sticky_window_s=0.001", "worker.lease_s=1.5", "worker.renew_s=0.4")
"""A session changes its runtime whenever policy would rather have another; and a dead worker's run is taken up soon."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def two(model_url):
    with two_runtimes(model_url, *SETTINGS) as made:
        yield made


@pytest.fixture(scope="module")
def mesh(two):
    return two.mesh


@pytest_asyncio.fixture
async def database(mesh):
    made = await asyncpg.create_pool(mesh.dsn(), min_size=1, max_size=2)
    yield made
    await made.close()


async def test_one_runtime_a_call_of_a_thousand_switches_that_are_asked_for_while_calls_are_open_none_is_admitted(
    two, mesh, database
):
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for number in range(TENANTS):
            client = await stack.enter_async_context(connect(mesh, mesh.token(f"switching-{number}")))
            client.timeout = WAIT_S
            clients.append(client)
        asking = Asking(clients, database)
        troubling = asyncio.create_task(trouble(two, random.Random(SEED)))
        try:
            await asyncio.gather(*(asking.go_on() for _ in range(AT_ONCE)))
        finally:
            troubling.cancel()
            two.come_back()
    found, within = await admitted(database, two)
    switched = await database.fetchval("select count(*) from router.events where type = 'runtime.switched'")
    assert found == []
    assert asking.asked >= ATTEMPTS
    # The proof is one only if calls were taken up while they were open, and runtimes changed where they may.
    assert min(asking.waited, asking.refused, asking.stopped, within, switched) > 0


async def told(client, contact, text, **more):
    """Send a message; answers the frames of its whole stream."""
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": text, **more})
    assert response.status_code == 200, response.text
    frames = parse_sse(response.text)
    assert frames[-1]["event"] == "run.succeeded", frames[-1]
    return frames


def of_type(frames, kind):
    return [frame["data"]["data"] for frame in frames if frame["event"] == kind]


async def test_a_runtime_that_leaves_in_the_middle_is_followed_by_another_and_nothing_is_shown_twice(
    two, client, contact
):
    await told(client, contact, "#echo=hello", runtime="openclaw")
    words = " ".join(f"w{number}" for number in range(40))
    posted = await client.post(f"/v1/contacts/{contact}/messages", json={"text": script(["words", words, 50])})
    run = posted.json()["run"]["run_id"]

    def heard(event: Heard):
        if event.type == "assistant.delta" and event.run_id == run:
            two.leave()

    try:
        events = await follow(client, contact, 2, heard)
    finally:
        two.come_back()
    of_run = [event for event in events if event.run_id == run]
    assert of_run[-1].type == "run.succeeded"
    assert shown(of_run)[run] == words
    assert [event.data["text"] for event in of_run if event.type == "assistant.message"] == [words]
    switched = [event for event in of_run if event.type == "runtime.switched"]
    assert [(event.data["from"], event.data["to"]) for event in switched] == [("openclaw", "light")]
    assert len(switched[0].data["bundle"]) == 64
    resumed = [event for event in of_run if event.type == "run.resumed"]
    assert resumed[-1].cursor < switched[0].cursor
    decision = (await client.get(f"/v1/runs/{run}/decision")).json()
    assert (decision["runtime"], decision["switches_runtime"], decision["bundle"]) == (
        "light",
        True,
        switched[0].data["bundle"],
    )


async def test_a_runtime_that_was_asked_for_is_waited_for_and_nobody_stands_in(
    two, client, contact, database, eventually
):
    two.leave()
    try:
        body = {"text": "#echo=mine", "runtime": "openclaw"}
        run = (await client.post(f"/v1/contacts/{contact}/messages", json=body)).json()["run"]["run_id"]

        async def waits():
            return await database.fetchval("select put_back_s > 0 from router.runs where run_id = $1", run)

        await eventually(waits, WAIT_S)
    finally:
        two.come_back()
    ended = await wait(client, run)
    assert (ended["state"], ended["output"]["text"]) == ("succeeded", "mine")
    assert (await client.get(f"/v1/runs/{run}/decision")).json()["runtime"] == "openclaw"


async def test_a_conversation_over_the_models_window_is_summed_up_once_and_all_of_it_stays_in_the_log(
    client, contact, database
):
    text = "The harbour of the old town is calm. " * (WINDOW_TOKENS // 4 * 4 // 37)
    sent = []
    for number in range(5):
        sent.append(f"{number} {text}#echo=noted {number}")
        await told(client, contact, sent[-1], runtime="light")
    rows = await database.fetch(
        "select e.data, e.run_id from router.events e join router.logs l using (tenant_id, log_id)"
        " where l.contact = $1 and e.type = 'context.compacted'",
        contact,
    )
    assert len(rows) == 1
    ((summed, run),) = [(json.loads(row["data"]), row["run_id"]) for row in rows]
    assert summed["summary"]
    ended = (await client.get(f"/v1/runs/{run}")).json()["run"]
    assert (ended["state"], ended["attempt_count"]) == ("succeeded", 2)
    listed = (await client.get(f"/v1/contacts/{contact}/messages", params={"page_size": 100})).json()["messages"]
    assert [one["text"] for one in listed if one["role"] == "user"] == sent


async def test_a_conversation_goes_to_another_runtime_and_back_byte_for_byte_and_a_flipped_byte_is_refused(
    mesh, client, contact, model_url, peer
):
    portability = peer("portability", f"unix:{mesh.socket('portability')}")
    await tell(
        client, contact, ["Grüße, 你好!\n\n two  lines #echo=ok", f"see /v1/files/{contact}.txt"], runtime="light"
    )
    fact = {"text": f"{contact} likes tea", "importance": 9}
    assert (await client.post(f"/v1/contacts/{contact}/facts", json=fact)).status_code == 200
    line = f'#tool=write {{"path": "{contact}.txt", "content": "x"}}\n#then\n#say=written'
    await tell(client, contact, [line], runtime="light")
    before = await exported(client, contact)
    declared = said_in(before)
    assert [text for role, text in declared if role == "user"][-1] == line
    assert len(declared) == 6

    frames = await told(client, contact, "#echo=over there", runtime="openclaw")
    (switched,) = of_type(frames, "runtime.switched")
    assert (switched["from"], switched["to"]) == ("light", "openclaw")
    body = await asked_of_the_model(model_url, "#echo=over there")
    assert spoken_in(body) == [*declared, ("user", "#echo=over there")]
    assert fact["text"] in all_words(body)

    await told(client, contact, "#echo=back", runtime="light")
    body = await asked_of_the_model(model_url, "#echo=back")
    there = [("user", "#echo=over there"), ("assistant", "over there")]
    assert spoken_in(body) == [*declared, *there, ("user", "#echo=back")]

    assert await built_again(portability, before) == await built_again(portability, before) == before
    tenant = identity_of(before).tenant_id
    assert await refused_part(portability, tenant, before) == ""
    parts = [name for name, content in parts_of(before).items() if content]
    assert {"identity", "messages", "facts", "tool_calls", "attachments"} <= set(parts)
    for name in parts:
        assert await refused_part(portability, tenant, flipped(before, name)) == name
    answer = await client.post(
        f"/v1/contacts/{contact}/bundle",
        content=flipped(before, "messages"),
        headers={"content-type": "application/octet-stream"},
    )
    assert (answer.status_code, "messages" in answer.text) == (400, True)


@pytest.mark.parametrize("more", ["", " " + "The harbour is calm today. " * 8], ids=["as said", "summed up"])
async def test_fifty_facts_told_before_a_switch_are_known_after_it(client, contact, model_url, more):
    facts = facts_told(50)
    await tell(client, contact, [f"{fact}{more} #echo=Noted." for fact in facts], runtime="light")
    question = f"Who are my friends, {contact}? #echo=You know."
    await told(client, contact, question, runtime="openclaw")
    body = await asked_of_the_model(model_url, question)
    known = all_words(body)
    assert sum(fact.removesuffix(".") in known for fact in facts) >= 49
    assert (len(spoken_in(body)) < 2 * len(facts)) is bool(more)
