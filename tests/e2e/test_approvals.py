"""A tool call waits for a person's word, which is given over REST, by the socket, or with the command."""

import asyncio
import json

import asyncpg
import pytest
import websockets


@pytest.fixture
def tenant(contact):
    """A tenant that no other test allows anything for."""
    return f"approves-{contact}"


@pytest.fixture
async def connection(mesh):
    made = await asyncpg.connect(mesh.dsn())
    yield made
    await made.close()


async def ask(connection, run, number, pattern=""):
    """Have an approval wait, with what it could allow for good; answers its id."""
    approval = f"apr_{number}_{run[4:]}"
    await connection.execute(
        "insert into router.approvals (tenant_id, approval_id, log_id, run_id, contact, call_id, tool, summary,"
        " expire_time, pattern) select tenant_id, $2, log_id, run_id, contact, 'call', 'count', 'counts',"
        " now() + '1 hour', $3 from router.runs where run_id = $1",
        run,
        approval,
        pattern,
    )
    return approval


def reason(error):
    return error["details"][0]["reason"]


async def by_socket(mesh, client, approval, decision, times):
    """Answer an approval so many times over a socket; answers what was answered."""
    headers = {"authorization": client.headers["authorization"]}
    answers = []
    async with websockets.connect(mesh.url.replace("http", "ws", 1) + "/v1/ws", additional_headers=headers) as socket:
        await socket.recv()  # hello
        for number in range(times):
            params = {"approval_id": approval, "decision": decision}
            frame = {"type": "req", "id": str(number), "method": "approvals.decide", "params": params}
            await socket.send(json.dumps(frame))
            answers.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
    return answers


async def test_an_approval_is_answered_once_over_rest_by_the_socket_or_with_the_command(
    mesh, client_of, tenant, contact, connection
):
    async with client_of(tenant) as client:
        run = (await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#echo=hi"})).json()["run"]["run_id"]
        await client.post(f"/v1/runs/{run}:wait", params={"timeout_s": 30})

        rest = await ask(connection, run, 1, "rest *")
        answer = await client.post(f"/v1/approvals/{rest}:decide", json={"decision": "allow_always"})
        assert (answer.status_code, answer.json()["approval"]["state"]) == (200, "allow_always")

        socket = await ask(connection, run, 2, "socket *")
        first, second = await by_socket(mesh, client, socket, "deny", 2)
        assert (first["ok"], second["ok"], reason(second["error"])) == (True, False, "APPROVAL_CLOSED")

        command, denied = await ask(connection, run, 3), await ask(connection, run, 4)
        waiting = mesh.command("approvals", "list", "--tenant", tenant).stdout
        assert [one in waiting for one in (rest, socket, command, denied)] == [False, False, True, True]
        told = mesh.command("approvals", "allow", command, "--always", "--tenant", tenant).stdout
        assert "this once" in told  # it would allow no more than this call
        mesh.command("approvals", "deny", denied, "--tenant", tenant)
        refused = mesh.command("approvals", "allow", denied, "--tenant", tenant, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "answered before" in refused.stderr

        states = {rest: "allow_always", socket: "deny", command: "allow_once", denied: "deny"}
        listed = (await client.get("/v1/approvals")).json()["approvals"]
        assert {one["approval_id"]: one["state"] for one in listed} == states
        assert [one["pattern"] for one in listed if one["approval_id"] == rest] == ["rest *"]
        for approval in states:
            again = await client.post(f"/v1/approvals/{approval}:decide", json={"decision": "allow_once"})
            assert (again.status_code, reason(again.json())) == (400, "APPROVAL_CLOSED")

    (kept,) = json.loads(mesh.command("approvals", "allowed", "--tenant", tenant, "--json").stdout)
    assert (kept["tool"], kept["pattern"]) == ("count", "rest *")
    mesh.command("approvals", "forget", kept["allowance_id"], "--tenant", tenant)
    left = await connection.fetchval(
        "select count(*) from router.allowances where allowance_id = $1", kept["allowance_id"]
    )
    assert left == 0
