"""A tenant is a wall: nobody reads, infers or changes what is another's, whatever they claim to be."""

import asyncpg
import jwt
import pytest
import pytest_asyncio
from refusals import assert_refused
from whole_mesh import connect, parse_sse

NOBODYS_RUN = "run_" + "0" * 26
NOBODYS_CONTACT = "nobody"
NOBODYS_APPROVAL = "apr_" + "0" * 26

ON_RUNS = [
    ("GET", "/v1/runs/{run}"),
    ("POST", "/v1/runs/{run}:wait?timeout_s=0"),
    ("POST", "/v1/runs/{run}:cancel"),
    ("GET", "/v1/runs/{run}/events"),
]
ON_CONTACTS = [
    ("GET", "/v1/contacts/{contact}"),
    ("POST", "/v1/contacts/{contact}:reset"),
    ("GET", "/v1/contacts/{contact}/messages"),
    ("DELETE", "/v1/contacts/{contact}"),
]
SECRET = "#echo=what only the other one may read"


def tenant_of(token):
    return jwt.decode(token, options={"verify_signature": False})["tenant"]


@pytest_asyncio.fixture
async def other(client_of):
    async with client_of("other") as connected:
        yield connected


@pytest_asyncio.fixture
async def their_run(other, contact):
    """A finished run of another tenant."""
    answer = await other.post(f"/v1/contacts/{contact}/messages", json={"text": SECRET})
    run = answer.json()["run"]["run_id"]
    assert (await other.post(f"/v1/runs/{run}:wait")).json()["run"]["state"] == "succeeded"
    return run


@pytest.mark.parametrize(("method", "path"), [*ON_RUNS, *ON_CONTACTS])
async def test_no_cross_tenant_what_is_foreign_looks_like_what_is_missing(
    client, other, their_run, contact, method, path
):
    foreign = await client.request(method, path.format(run=their_run, contact=contact))
    missing = await client.request(method, path.format(run=NOBODYS_RUN, contact=NOBODYS_CONTACT))
    reason = "RUN_NOT_FOUND" if "{run}" in path else "CONTACT_NOT_FOUND"
    assert assert_refused(foreign, 404, reason) == assert_refused(missing, 404, reason)
    assert set(foreign.headers) == set(missing.headers)
    kept = (await other.get(f"/v1/contacts/{contact}/messages")).json()["messages"]
    assert [message["role"] for message in kept] == ["user", "assistant"]


async def test_no_cross_tenant_an_approval_is_seen_and_decided_by_its_own_tenant_only(
    mesh, client, other, their_run, contact
):
    approval = f"apr_{contact}"
    connection = await asyncpg.connect(mesh.dsn())
    try:
        await connection.execute(
            "insert into router.approvals (tenant_id, approval_id, log_id, run_id, contact, call_id, tool, summary,"
            " expire_time) select tenant_id, $2, log_id, run_id, contact, 'call', 'shell', 'secret', now() + '1 hour'"
            " from router.runs where run_id = $1",
            their_run,
            approval,
        )
    finally:
        await connection.close()
    listed = (await other.get("/v1/approvals", params={"state": "pending"})).json()["approvals"]
    assert approval in [one["approval_id"] for one in listed]
    assert approval not in (await client.get("/v1/approvals")).text
    decision = {"decision": "allow_once"}
    foreign = await client.post(f"/v1/approvals/{approval}:decide", json=decision)
    missing = await client.post(f"/v1/approvals/{NOBODYS_APPROVAL}:decide", json=decision)
    assert assert_refused(foreign, 404, "APPROVAL_NOT_FOUND") == assert_refused(missing, 404, "APPROVAL_NOT_FOUND")


async def test_no_cross_tenant_a_foreign_contacts_stream_is_that_of_an_own_one_not_there_yet(
    client, other, their_run, contact
):
    path = f"/v1/contacts/{contact}/events"
    async with client.stream("GET", path, params={"after": "0-0"}) as response:
        assert response.status_code == 200
        own = (await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#echo=own"})).json()["run"][
            "run_id"
        ]
        told = ""
        async for part in response.aiter_text():
            told += part
            if "event: run.succeeded" in told:
                break
    frames = parse_sse(told[: told.rindex("\n\n")])
    assert {frame["data"]["run_id"] for frame in frames} == {own}
    assert SECRET not in told


async def test_no_cross_tenant_one_name_is_two_contacts_in_two_tenants(client, other, contact):
    path = f"/v1/contacts/{contact}"
    for one, name in ((client, "Anna"), (other, "Boris")):
        answer = await one.put(path, json={"display_name": name, "profile": {"of": name}})
        assert answer.status_code == 200
        run = (await one.post(f"{path}/messages", json={"text": f"#echo=hello {name}"})).json()["run"]["run_id"]
        await one.post(f"/v1/runs/{run}:wait")
    assert (await client.delete(path)).status_code == 200
    assert (await client.get(path)).status_code == 404
    kept = (await other.get(path)).json()
    assert (kept["display_name"], kept["profile"]) == ("Boris", {"of": "Boris"})
    texts = [m["text"] for m in (await other.get(f"{path}/messages")).json()["messages"]]
    assert texts == ["#echo=hello Boris", "hello Boris"]


async def test_no_cross_tenant_lists_show_what_is_own(client, other, their_run, contact):
    await client.put(f"/v1/contacts/own-{contact}", json={})
    for path, mark in (("/v1/contacts", contact), ("/v1/runs", their_run), (f"/v1/runs?contact={contact}", their_run)):
        found, token = "", ""
        for _ in range(100):
            page = await client.get(path, params={"page_size": 200, "page_token": token} if "?" not in path else None)
            assert page.status_code == 200
            found, token = found + page.text, page.json()["next_page_token"]
            if not token:
                break
        assert f'"{mark}"' not in found
        assert f'"{mark}"' in (await other.get(path, params=None if "?" in path else {"page_size": 200})).text


async def test_no_cross_tenant_a_key_is_its_tenants_own(client, other, contact):
    runs = []
    for one in (client, other, client):
        answer = await one.post(
            f"/v1/contacts/{contact}/messages", json={"text": "#echo=x"}, headers={"idempotency-key": contact}
        )
        assert answer.status_code == 200
        runs.append((answer.json()["run"]["run_id"], answer.headers.get("idempotent-replay", "")))
    assert runs[0][0] != runs[1][0]
    assert [replay for _, replay in runs] == ["", "", "true"]
    assert runs[2][0] == runs[0][0]


async def test_no_cross_tenant_headers_that_claim_a_tenant_are_ignored(mesh, client, other, their_run, contact):
    theirs = tenant_of(mesh.token("other"))
    forged = {
        "x-retinue-tenant": theirs,
        "x-tenant-id": theirs,
        "X-Retinue-Principal": "root",
        "x-retinue-scope": "admin",
        "x-retinue-jti": "x",
        "x-retinue-exp": "1",
    }
    assert_refused(await client.get(f"/v1/runs/{their_run}", headers=forged), 404, "RUN_NOT_FOUND")
    answer = await client.put(f"/v1/contacts/forged-{contact}", json={}, headers=forged)
    assert answer.status_code == 200
    assert (await client.get(f"/v1/contacts/forged-{contact}")).status_code == 200
    assert (await other.get(f"/v1/contacts/forged-{contact}")).status_code == 404
    async with connect(mesh, "") as stranger:
        assert_refused(await stranger.get(f"/v1/runs/{their_run}", headers=forged), 401, "CREDENTIAL_MISSING")
    async with connect(mesh, mesh.token("other", "--scope", "billing")) as billing:
        assert_refused(await billing.get(f"/v1/runs/{their_run}", headers=forged), 403, "SCOPE_MISSING")
