"""A conversation is taken along and brought back, by a client and by an operator; and why a run went as it did."""

import os
from datetime import UTC, datetime, timedelta

import pytest
from refusals import assert_refused
from retinue.portability.v1 import bundle_pb2

BUNDLE = {"content-type": "application/x-retinue-bundle"}
SIZE_MAX_BYTES = 3 << 20


def parts(data):
    return {part.name: part.content for part in bundle_pb2.Bundle.FromString(data).parts}


def said(data):
    held = bundle_pb2.MessagesPart.FromString(parts(data)["messages"]).messages
    return [(message.role, message.text) for message in held]


@pytest.fixture
def bring(client):
    async def post(contact, data, headers=BUNDLE):
        return await client.post(f"/v1/contacts/{contact}/bundle", content=data, headers=headers)

    return post


@pytest.fixture
def taken(client, stream):
    async def talk_and_take(contact, *texts):
        for text in texts:
            assert (await stream(contact, text))[-1]["event"] == "run.succeeded"
        answer = await client.get(f"/v1/contacts/{contact}/bundle")
        assert answer.status_code == 200, answer.text
        return answer

    return talk_and_take


def spoken(frames):
    return next(frame["data"]["data"]["text"] for frame in frames if frame["event"] == "assistant.message")


async def test_a_conversation_that_is_taken_along_goes_on_where_it_is_brought(client, stream, taken, bring, contact):
    first = await taken(contact, "My dog is called Rex.", "#echo=noted, 狗狗 ✓")
    assert first.headers["content-type"] == "application/x-retinue-bundle"
    assert first.headers["content-disposition"] == f'attachment; filename="{contact}.bundle"'
    assert len(first.headers["x-trace-id"]) == 32
    data = first.content
    assert (await client.get(f"/v1/contacts/{contact}/bundle")).content == data  # the same context, the same bytes
    fresh = f"{contact}-b"
    made = await bring(fresh, data)
    assert made.status_code == 200, made.text
    session, losses = made.json()["session_id"], made.json()["losses"]
    assert {"settings.model", "messages.message_id"} <= {loss["field"] for loss in losses}
    assert {loss["fate"] for loss in losses} <= {"approximate", "lost"}
    assert all(loss["reason"] for loss in losses)
    assert (await bring(fresh, data, {})).json()["session_id"] == session  # however often
    frames = await stream(fresh, "#recall")
    assert spoken(frames) == "My dog is called Rex. | #echo=noted, 狗狗 ✓"
    assert frames[-1]["data"]["session_id"] == session
    listed = (await client.get(f"/v1/contacts/{fresh}/messages")).json()["messages"]
    told = said(data)
    assert len(told) == 4
    assert [(message["role"], message["text"]) for message in listed][:4] == told
    again = await bring(f"{contact}-c", (await client.get(f"/v1/contacts/{fresh}/bundle")).content)
    assert again.status_code == 200, again.text
    third = (await client.get(f"/v1/contacts/{contact}-c/bundle")).content
    assert said(third) == [*told, ("user", "#recall"), ("assistant", spoken(frames))]


async def test_after_a_new_beginning_a_contact_goes_on_with_what_it_took_along(client, stream, taken, bring, contact):
    data = (await taken(contact, "My cat is called Minka.")).content
    assert (await client.post(f"/v1/contacts/{contact}:reset")).status_code == 200
    assert spoken(await stream(contact, "#recall")) == ""
    assert (await bring(contact, data)).status_code == 200
    assert spoken(await stream(contact, "#recall")) == "My cat is called Minka."


async def test_what_is_not_whole_or_not_ours_is_refused_with_the_part(client, client_of, taken, bring, contact):
    data = (await taken(contact, "Keep this.")).content
    bundle = bundle_pb2.Bundle.FromString(data)
    for part in bundle.parts:
        if part.name == "messages":
            part.content = part.content[:-1] + bytes([part.content[-1] ^ 1])
    changed = {"messages": bundle.SerializeToString()}
    bundle = bundle_pb2.Bundle.FromString(data)
    bundle.signature = bundle.signature[:-1] + bytes([bundle.signature[-1] ^ 1])
    changed["signature"] = bundle.SerializeToString()
    fresh = f"{contact}-b"
    for part, broken in changed.items():
        body = assert_refused(await bring(fresh, broken), 400, "BUNDLE_INVALID")
        assert body["details"][0]["metadata"] == {"part": part}
        assert part in body["message"]
    for broken in (data[:-1], data[: len(data) // 2], data + b"\0", os.urandom(2 << 20), b"", b"{}"):
        assert_refused(await bring(fresh, broken), 400, "BUNDLE_INVALID")
    async with client_of("bundles-other") as other:
        foreign = await other.post(f"/v1/contacts/{contact}/bundle", content=data, headers=BUNDLE)
        assert_refused(foreign, 400, "BUNDLE_INVALID")
        assert_refused(await other.get(f"/v1/contacts/{contact}/bundle"), 404, "CONTACT_NOT_FOUND")
    assert_refused(await client.get(f"/v1/contacts/{fresh}"), 404, "CONTACT_NOT_FOUND")  # nothing was begun


async def test_bounded_what_is_no_bundle_is_refused_at_the_edge(client, client_of, bring, contact):
    assert_refused(await bring(contact, b"x" * (SIZE_MAX_BYTES + 1)), 413, "BODY_TOO_LARGE")

    async def pieces():
        for _ in range(4):
            yield b"x" * (1 << 20)

    assert_refused(await bring(contact, pieces()), 413, "BODY_TOO_LARGE")
    form = await client.post(f"/v1/contacts/{contact}/bundle", files={"file": b"x"})
    assert_refused(form, 400, "FIELD_INVALID", "content-type")
    for budget in ("-1", "1000001", "many"):
        assert (await client.get(f"/v1/contacts/{contact}/bundle?token_budget={budget}")).status_code == 400
    async with client_of("") as nobody:
        assert_refused(await nobody.get(f"/v1/contacts/{contact}/bundle"), 401, "CREDENTIAL_MISSING")


async def test_nothing_is_brought_to_a_contact_whose_run_goes_on(client, taken, bring, contact):
    data = (await taken(contact, "Before.")).content
    sent = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#first=60000"})
    run = sent.json()["run"]["run_id"]
    assert_refused(await bring(contact, data), 409, "SESSION_BUSY")
    await client.post(f"/v1/runs/{run}:cancel")
    await client.post(f"/v1/runs/{run}:wait")
    assert (await bring(contact, data)).status_code == 200


async def test_why_a_run_went_as_it_did_is_told_to_its_tenant_alone(client, client_of, stream, contact):
    run = (await stream(contact, "hello"))[-1]["data"]["run_id"]
    decision = (await client.get(f"/v1/runs/{run}/decision")).json()
    assert (decision["runtime"], decision["switches_runtime"], decision["bundle"]) == ("light", False, "")
    assert decision["rules"]
    assert all(set(rule) == {"rule", "effect", "reason"} and rule["reason"] for rule in decision["rules"])
    async with client_of("bundles-other") as other:
        assert_refused(await other.get(f"/v1/runs/{run}/decision"), 404, "RUN_NOT_FOUND")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    later = {"contact": contact, "kind": "note", "input": {"text": "x"}, "run_at": tomorrow}
    waiting = (await client.post("/v1/tasks", json=later)).json()["run"]["run_id"]
    assert_refused(await client.get(f"/v1/runs/{waiting}/decision"), 404, "DECISION_NOT_FOUND")
    await client.post(f"/v1/runs/{waiting}:cancel")


async def test_an_operator_takes_along_and_brings_back(mesh, client, taken, contact, tmp_path):
    data = (await taken(contact, "Said once.")).content
    kept = tmp_path / "kept.bundle"
    tenant = ("--tenant", "e2e")
    assert mesh.command("bundle", "export", contact, "-o", str(kept), *tenant).stdout == f"{kept}: {len(data)} bytes\n"
    assert kept.read_bytes() == data
    told = mesh.command("bundle", "import", f"{contact}-b", str(kept), *tenant).stdout
    assert f"{contact}-b goes on as ses_" in told
    assert "settings.model" in told
    listed = (await client.get(f"/v1/contacts/{contact}-b/messages")).json()["messages"]
    assert [(message["role"], message["text"]) for message in listed] == said(data)
    kept.write_bytes(data[:-1])
    refused = mesh.command("bundle", "import", f"{contact}-c", str(kept), *tenant, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("error: The bundle cannot be taken: ")
