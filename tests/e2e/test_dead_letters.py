"""An operator looks at what failed through no fault of whoever asked, and has it asked anew or drops it."""

import json
import os

import pytest
from refusals import assert_refused
from talking import follow
from whole_mesh import connect

TENANT = "dead-letters"


@pytest.fixture
def key():
    """A key of the model's that no other test counts failures by."""
    return os.urandom(6).hex()


@pytest.fixture
async def operator(mesh):
    """A client whose token has the scope admin."""
    async with connect(mesh, mesh.token(TENANT, "--scope", "admin")) as connected:
        yield connected


async def say(client, contact, text):
    answer = await client.post(f"/v1/contacts/{contact}/messages", json={"text": text})
    return answer.json()["run"]["run_id"]


async def ended(client, run):
    return (await client.post(f"/v1/runs/{run}:wait")).json()["run"]


async def failed(client, contact, key):
    """Say something that the model refuses once, as if the operator's credential were wrong; answers the run."""
    run = await say(client, contact, f"#fail_times=1,status=401,key={key} #tokens=2")
    assert (await ended(client, run))["state"] == "failed"
    return run


async def test_a_failed_message_is_asked_anew_and_answered_in_the_stream_of_its_contact(operator, contact, key):
    dead = await failed(operator, contact, key)
    listed = (await operator.get("/v1/dead-letters", params={"contact": contact})).json()["dead_letters"]
    assert [(one["run"]["run_id"], one["state"], one["text"]) for one in listed] == [(dead, "open", "")]
    shown = (await operator.get(f"/v1/dead-letters/{dead}")).json()["dead_letter"]
    assert shown["text"].startswith("#fail_times=1")
    assert shown["run"]["error"]["details"][0]["reason"] == "MODEL_AUTH"

    accepted = (await operator.post(f"/v1/dead-letters/{dead}:retry", json={})).json()["run"]
    again = (await operator.post(f"/v1/dead-letters/{dead}:retry", json={})).json()["run"]
    assert again["run_id"] == accepted["run_id"] != dead
    assert (await ended(operator, accepted["run_id"]))["output"]["text"] == "t0 t1"

    events = await follow(operator, contact, 2)
    told = [(event.type, event.run_id) for event in events if event.type in ("run.failed", "run.succeeded")]
    assert told == [("run.failed", dead), ("run.succeeded", accepted["run_id"])]
    asked = [event.data for event in events if event.type == "user.message"]
    assert asked[0] == asked[1]  # a client knows it by its message_id
    messages = (await operator.get(f"/v1/contacts/{contact}/messages")).json()["messages"]
    assert [(m["role"], m["run_id"]) for m in messages] == [
        ("user", accepted["run_id"]),
        ("assistant", accepted["run_id"]),
    ]
    closed = (await operator.get(f"/v1/dead-letters/{dead}")).json()["dead_letter"]
    assert (closed["state"], closed["retry_run_id"]) == ("retried", accepted["run_id"])
    refused = assert_refused(await operator.post(f"/v1/dead-letters/{dead}:drop", json={}), 400, "DEAD_LETTER_CLOSED")
    assert refused["details"][0]["metadata"]["state"] == "retried"


async def test_a_failed_task_is_asked_anew_and_its_contact_hears_of_its_end(operator, contact, key):
    body = {"kind": "extract", "contact": contact, "input": {"text": f"#fail_times=1,status=401,key={key} #tokens=2"}}
    task = (await operator.post("/v1/tasks", json=body)).json()["run"]["run_id"]
    assert (await ended(operator, task))["state"] == "failed"
    anew = (await operator.post(f"/v1/dead-letters/{task}:retry", json={})).json()["run"]
    assert anew["kind"] == "extract"
    assert (await ended(operator, anew["run_id"]))["state"] == "succeeded"


async def test_a_dropped_one_is_off_the_list(operator, contact, key):
    dead = await failed(operator, contact, key)
    for _ in range(2):
        dropped = (await operator.post(f"/v1/dead-letters/{dead}:drop", json={})).json()["dead_letter"]
        assert dropped["state"] == "dropped"
    query = {"contact": contact}
    assert (await operator.get("/v1/dead-letters", params=query)).json()["dead_letters"] == []
    listed = (await operator.get("/v1/dead-letters", params={**query, "state": "all"})).json()["dead_letters"]
    assert [one["state"] for one in listed] == ["dropped"]
    assert_refused(await operator.post(f"/v1/dead-letters/{dead}:retry", json={}), 400, "DEAD_LETTER_CLOSED")


async def test_what_is_not_ones_own_is_not_found_and_talking_alone_does_not_suffice(
    mesh, operator, client, contact, key
):
    dead = await failed(operator, contact, key)
    assert_refused(await client.get("/v1/dead-letters"), 403, "SCOPE_MISSING")
    assert_refused(await client.post(f"/v1/dead-letters/{dead}:retry", json={}), 403, "SCOPE_MISSING")
    async with connect(mesh, mesh.token("dead-letters-other", "--scope", "admin")) as other:
        for path in (f"{dead}", "run_none"):
            assert_refused(await other.get(f"/v1/dead-letters/{path}"), 404, "DEAD_LETTER_NOT_FOUND")
            for verb in ("retry", "drop"):
                answer = await other.post(f"/v1/dead-letters/{path}:{verb}", json={})
                assert_refused(answer, 404, "DEAD_LETTER_NOT_FOUND")
        assert (await other.get("/v1/dead-letters")).json()["dead_letters"] == []
    assert_refused(await operator.get("/v1/dead-letters", params={"state": "lost"}), 400, "FIELD_INVALID", "state")


async def test_the_command_lists_shows_retries_and_drops(mesh, operator, contact, key):
    dead, other = await failed(operator, contact, key), await failed(operator, f"{contact}-2", f"{key}2")
    of_tenant = ("--tenant", TENANT)

    def told(*arguments, check=True):
        return mesh.command("runs", *arguments, check=check)

    found = {one["run"]["run_id"]: one for one in json.loads(told("dead", "--json").stdout)}
    assert {found[run]["tenant"] for run in (dead, other)} == {TENANT}
    assert found[dead]["run"]["state"] == "failed"
    shown = told("show", dead, *of_tenant).stdout
    assert f"run:         {dead}\n" in shown
    assert "asked:       #fail_times=1" in shown
    accepted = told("retry", dead, *of_tenant).stdout.split()[0]
    assert (await ended(operator, accepted))["state"] == "succeeded"
    assert told("drop", other, *of_tenant).stdout == f"{other} is off the list.\n"
    refused = told("drop", dead, *of_tenant, check=False)
    assert (refused.returncode, refused.stderr) == (1, "error: The dead letter was retried before.\n")
    listed = told("list", *of_tenant, "--contact", contact).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["run", accepted, dead]
