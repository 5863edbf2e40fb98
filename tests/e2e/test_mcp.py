"""The official MCP client, with nothing but the address and a token: its tenant's box, and nobody else's."""

from contextlib import asynccontextmanager

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

TIMEOUT_S = 60
ASK = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"accept": "application/json, text/event-stream"}


def http(token, **headers):
    """Make a client; without certificates, which would take longer to load than most tests."""
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    return httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S, verify=False, trust_env=False)


@asynccontextmanager
async def connected(mesh, tenant, **headers):
    """Connect as a tenant; yields a function that calls a tool and answers whether it failed, and what it told."""
    async with (
        http(mesh.token(tenant), **headers) as transport,
        Client(streamable_http_client(f"{mesh.url}/v1/mcp", http_client=transport), cache=None) as client,
    ):

        async def call(tool, **arguments):
            result = await client.call_tool(tool, arguments)
            told = "".join(part.text for part in result.content)
            return result.is_error, told if result.is_error else result.structured_content

        yield call


async def test_a_client_works_in_its_tenants_box_and_may_not_do_what_a_person_would_be_asked_about(mesh):
    async with connected(mesh, "mcp") as call:
        failed, written = await call("sandbox_write_file", path="src/hello.py", content="print(6 * 7)")
        assert (failed, written["size_bytes"]) == (False, 12), written
        failed, ran = await call("sandbox_exec", command="pwd; python3 src/hello.py; echo no >&2; exit 3")
        assert not failed, ran
        found = (ran["outcome"], ran["exit_code"], ran["stdout"], ran["stderr"])
        assert found == ("exited", 3, "/workspace\n42\n", "no\n")
        failed, ran = await call("sandbox_python", source="print(open('src/hello.py').read())")
        assert (failed, ran["stdout"].strip()) == (False, "print(6 * 7)"), ran
        failed, listed = await call("sandbox_list", recursive=True)
        assert "src/hello.py" in [entry["path"] for entry in listed["files"]]
        failed, told = await call("sandbox_delete", path="src/hello.py")
        assert failed
        assert "needs a person's approval" in told
        failed, read = await call("sandbox_read_file", path="/workspace/src/hello.py")
        assert (failed, read["content"]) == (False, "print(6 * 7)")
        assert (await call("sandbox_stop")) == (False, {"stopped": True})
        failed, noted = await call("memory_note", title="Cats", text="Tom.")
        assert (failed, len(noted["facts"])) == (False, 1)
        failed, found = await call("memory_search", query="cats")
        assert (failed, found["facts"][0]["text"]) == (False, "Cats: Tom.")
        failed, made = await call("schedule_task", contact="ada", text="Feed Tom.", cron="0 9 * * *")
        assert not failed, made
    async with http(mesh.token("mcp")) as client:
        kept = (await client.get(f"{mesh.url}/v1/schedules/{made['schedule']}")).json()["schedule"]
    assert (kept["contact"], kept["kind"], kept["input"]) == ("ada", "reminder", {"text": "Feed Tom."})


async def test_no_cross_tenant_what_one_tenant_writes_another_finds_by_no_path(mesh):
    """A header that names the other's conversation changes nothing."""
    async with connected(mesh, "mcp-a", **{"mcp-session-id": "same"}) as call:
        assert not (await call("sandbox_exec", command="echo secret > mine.txt; (sleep 30; echo alive) &"))[0]
    async with connected(mesh, "mcp-b", **{"mcp-session-id": "same"}) as call:
        for path in ("mine.txt", "/workspace/mine.txt", "../mine.txt", "../../mcp-a/files/mine.txt"):
            failed, told = await call("sandbox_read_file", path=path)
            assert failed, told
            assert "secret" not in told
        failed, ran = await call("sandbox_exec", command="ls -a; ps ax | grep -c '[s]leep 30'; true")
        assert not failed
        assert "mine.txt" not in ran["stdout"]
        assert "1" not in ran["stdout"].split()


async def test_what_is_refused_is_refused_as_everywhere_at_this_address(mesh):
    url = f"{mesh.url}/v1/mcp"
    async with http("") as nobody:
        answer = await nobody.post(url, json=ASK, headers=ACCEPT)
        assert (answer.status_code, answer.json()["code"]) == (401, 16)
    async with http(mesh.token("mcp")) as client:
        large = await client.post(url, content=b" " * (1024 * 1024 + 1), headers=ACCEPT)
        assert (large.status_code, large.json()["details"][0]["reason"]) == (413, "BODY_TOO_LARGE")
        assert (await client.get(url, headers=ACCEPT)).status_code == 405
        page = await client.post(url, json=ASK, headers={**ACCEPT, "origin": "http://evil.example"})
        assert page.status_code == 403
        answer = await client.post(url, json=ASK, headers=ACCEPT)
        assert answer.status_code == 200
        assert answer.headers["x-trace-id"]
