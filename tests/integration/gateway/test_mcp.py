"""MCP at the edge, as the official client sees it over the ASGI socket; policy and sandbox are small fakes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fake_box import NO_BOX, FakeBox, FakeFiles
from fake_rules import FakeRouter, FakeRules
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from retinue_gateway.asgi import App
from retinue_gateway.credentials import Credentials
from retinue_gateway.listener import Listener
from retinue_gateway.mcp import endpoint
from retinue_gateway.mcp.boxes import Boxes, session_of
from retinue_gateway.mcp.keeping import Keeping
from retinue_kit.errors import Reason, RetinueError

URL = "http://127.0.0.1/v1/mcp"
HOSTS = "127.0.0.1,localhost:*"
NAMES = {
    *("sandbox_exec", "sandbox_python", "sandbox_read_file", "sandbox_write_file", "sandbox_edit_file"),
    *("sandbox_list", "sandbox_delete", "sandbox_stop", "memory_note", "memory_search", "schedule_task"),
}


class World:
    """The endpoint, and what it asks."""

    def __init__(self, socket: str, box: FakeBox, files: FakeFiles, rules: FakeRules, router: FakeRouter) -> None:
        self.socket = socket
        self.box = box
        self.files = files
        self.rules = rules
        self.router = router

    def http(self, tenant: str = "ten_a", principal: str = "usr_1", **headers: str) -> httpx2.AsyncClient:
        """Make a client that says what Envoy would have made of a token."""
        identity = {
            "x-retinue-tenant": tenant,
            "x-retinue-principal": principal,
            "x-retinue-scope": "chat",
            "x-retinue-jti": "jti_1",
            "x-retinue-exp": str(int(time.time() + 3600)),
        }
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=self.socket, verify=False), headers=identity | headers, timeout=20
        )

    @asynccontextmanager
    async def client(self, *, mode: Any = "auto", **who: str) -> AsyncIterator[Client]:
        """Connect as the official client does."""
        async with (
            self.http(**who) as http,
            Client(streamable_http_client(URL, http_client=http), mode=mode, cache=None) as client,
        ):
            yield client


@pytest_asyncio.fixture
async def world(serve: Any, peer: Any, run_dir: Path) -> AsyncIterator[World]:
    box, files, rules, router = FakeBox(run_dir, "ten_a", "ten_b"), FakeFiles(), FakeRules(), FakeRouter()
    clock: Any = SimpleNamespace(now=time.time)
    credentials = Credentials(peer("directory", "unix:/nowhere"), clock)
    credentials._revoked = frozenset({"jti_revoked"})
    sandbox = peer("sandbox", await serve([box.service, files.service]))
    routing = peer("router", await serve(router.services))
    boxes = Boxes(peer("policy", await serve(rules.services)), sandbox, routing)
    served = endpoint.Endpoint(boxes, Keeping(boxes, routing), credentials, HOSTS)
    listener = Listener(App({}, {}, {endpoint.PATH: served.serve}), f"{run_dir}/mcp.sock")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(served.running())
        await listener.start()
        stack.push_async_callback(listener.stop)
        yield World(f"{run_dir}/mcp.sock", box, files, rules, router)


def said(result: Any) -> str:
    return "".join(part.text for part in result.content)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_client_finds_the_tools_and_calls_them(world: World, mode: str) -> None:
    """One story for each age of the protocol: with a handshake, and without."""
    async with world.client(mode=mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == NAMES
        assert not any(tool.annotations.open_world_hint for tool in tools.values())
        assert [name for name, tool in tools.items() if tool.annotations.read_only_hint] == [
            "sandbox_read_file",
            "sandbox_list",
            "memory_search",
        ]
        arguments = {name for tool in tools.values() for name in tool.input_schema["properties"]}
        assert not arguments & {"tenant", "tenant_id", "session", "session_id", "context"}
        heard: list[tuple[float, str | None]] = []

        async def progress(count: float, total: float | None, message: str | None) -> None:
            heard.append((count, message))

        result = await client.call_tool(
            "sandbox_exec", {"command": "cat; echo no >&2; exit 3", "stdin": "hey"}, progress_callback=progress
        )
        found = result.structured_content
        assert (result.is_error, found["exit_code"], found["stdout"], found["stderr"]) == (False, 3, "hey", "no\n")
        assert heard == [(3, "hey"), (6, "no\n")]
        python = await client.call_tool("sandbox_python", {"source": "print(6 * 7)"})
        assert python.structured_content["stdout"] == "42\n"
    command = world.box.requests[0]
    assert (command.tenant_id, command.profile.min_isolation, command.profile.egress) == (
        "ten_a",
        "gvisor",
        ["a.b:443"],
    )
    assert (command.origin.tool, command.origin.principal) == ("exec", "usr_1")
    assert command.limits.output_size_bytes == 64 * 1024
    assert world.box.tenants_of_calls == ["ten_a", "ten_a"]
    asked = world.rules.asked[0]
    assert (asked.tenant_id, asked.tool, asked.scope.kind, asked.scope.runtime) == ("ten_a", "exec", "mcp", "mcp")
    assert asked.arguments["command"] == "cat; echo no >&2; exit 3"


async def test_files_are_written_read_edited_listed_and_removed(world: World) -> None:
    async with world.client() as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, said(result)
            found: dict[str, Any] = result.structured_content
            return found

        written = await call("sandbox_write_file", path="/workspace/./a.txt", content="one two")
        assert (written["path"], written["size_bytes"]) == ("a.txt", 7)
        edited = await call("sandbox_edit_file", path="a.txt", old_text="two", new_text="три", all=True)
        assert edited["replaced_count"] == 1
        read = await call("sandbox_read_file", path="a.txt", size_bytes=5)
        # The letter that the bound has cut is left for the next part.
        assert (read["content"], read["encoding"], read["read_bytes"], read["size_bytes"]) == ("one ", "utf-8", 4, 10)
        world.files.held["ten_a", "b.bin"] = b"\xff\x00"
        assert (await call("sandbox_read_file", path="b.bin"))["content"] == "/wA="
        assert [entry["path"] for entry in (await call("sandbox_list"))["files"]] == ["a.txt", "b.bin"]
        assert (await call("sandbox_delete", path="a.txt"))["removed_count"] == 1
        gone = await client.call_tool("sandbox_read_file", {"path": "a.txt"})
        assert gone.is_error
        assert "FILE_NOT_FOUND" in said(gone)
    assert [asked.tool for asked in world.rules.asked] == [
        *("write", "edit", "read", "read", "list", "delete", "read"),
    ]


async def test_policy_hears_what_the_tenant_has_allowed_for_good_and_without_that_nothing_is_allowed(
    world: World,
) -> None:
    world.router.allowances = [("exec", f"echo {n} *") for n in range(7)]
    async with world.client() as client:
        assert not (await client.call_tool("sandbox_exec", {"command": "true"})).is_error
        told = [(one.tool, one.pattern) for one in world.rules.asked[0].allowed]
        assert told == world.router.allowances
        world.router.trouble = RetinueError.unavailable("router")
        refused = await client.call_tool("sandbox_exec", {"command": "true"})
    assert "DEPENDENCY_UNAVAILABLE" in said(refused)
    assert len(world.box.requests) == len(world.rules.asked) == 1


async def test_facts_and_notes_are_remembered_by_the_router_and_found_again_once_policy_allows_it(world: World) -> None:
    async with world.client() as client:
        made = await client.call_tool("memory_note", {"title": "A  cat", "text": " Tom. "})
        assert (made.is_error, made.structured_content) == (False, {"facts": ["fct_0"]})
        facts = [{"text": "Rows.", "domain": "sport", "kind": "profile", "importance": 7}, {"text": "Sings."}]
        made = await client.call_tool("memory_note", {"facts": facts, "contact": "ada"})
        assert (made.is_error, made.structured_content) == (False, {"facts": ["fct_0", "fct_1"]})
        note, told = world.router.remembered
        assert (note.tenant_id, note.contact, [fact.text for fact in note.facts]) == ("ten_a", "", ["A cat: Tom."])
        rows = told.facts[0]
        assert (told.contact, rows.domain, rows.kind, rows.importance) == ("ada", "sport", "profile", 7)
        found = await client.call_tool("memory_search", {"query": "what?", "contact": "ada"})
        assert [fact["text"] for fact in found.structured_content["facts"]] == ["Rows.", "Sings."]
        for wrong in ({}, {"text": " "}, {"facts": [{"text": "x", "domain": "a b"}]}, {"text": "x", "contact": ".."}):
            assert (await client.call_tool("memory_note", wrong)).is_error
        world.rules.effects["memory_note"] = "deny"
        assert "POLICY_DENIED" in said(await client.call_tool("memory_note", {"text": "B"}))
        world.rules.effects.clear()
        world.router.trouble = RetinueError(Reason.QUOTA_EXCEEDED, "No more.")
        assert (await client.call_tool("memory_note", {"text": "B"})).is_error
    assert len(world.router.remembered) == 2


async def test_a_task_is_scheduled_by_the_router_for_a_contact_of_the_tenant(world: World) -> None:
    task = {"contact": "ada", "text": "Water the plants.", "cron": "0 9 * * *", "time_zone": "Europe/Paris"}
    async with world.client() as client:
        made = await client.call_tool("schedule_task", task)
        assert made.structured_content == {
            "schedule": "sch_1",
            "contact": "ada",
            "next_time": "1970-01-01T00:00+00:00",
        }
        odd = await client.call_tool("schedule_task", task | {"contact": "a b"})
        assert "FIELD_INVALID" in said(odd)
        world.rules.effects = {"schedule_task": "deny"}
        denied = await client.call_tool("schedule_task", task)
        assert "POLICY_DENIED" in said(denied)
    (asked,) = world.router.schedules
    assert (asked.tenant_id, asked.principal, asked.kind) == ("ten_a", "usr_1", "reminder")
    assert (asked.contact, asked.cron, asked.time_zone) == (task["contact"], task["cron"], task["time_zone"])
    assert dict(asked.input) == {"text": task["text"]}
    known = {name: world.rules.asked[0].arguments[name] for name in ("text", "cron", "time_zone")}
    assert known == {name: task[name] for name in known}


@pytest.mark.parametrize(
    ("effect", "told"), [("deny", "Not on Sundays."), ("ask", "needs a person's approval, and none can be given here")]
)
async def test_what_policy_does_not_allow_is_refused_and_comes_to_nothing(world: World, effect: str, told: str) -> None:
    world.rules.effects = {"exec": effect, "write": effect}
    async with world.client() as client:
        for tool, arguments in (
            ("sandbox_exec", {"command": "true"}),
            ("sandbox_write_file", {"path": "a", "content": ""}),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert told in said(result)
            assert "POLICY_DENIED" in said(result)
    assert not world.box.requests
    assert not world.files.requests


async def test_box_or_refuse_without_leave_or_without_a_box_nothing_is_executed(world: World) -> None:
    async with world.client(tenant="ten_c") as client:
        boxless = await client.call_tool("sandbox_exec", {"command": "true"})
        world.rules.trouble = RetinueError.unavailable("policy")
        unanswered = await client.call_tool("sandbox_exec", {"command": "true"})
        world.rules.trouble, world.rules.decision = None, {"runtime": "light"}
        unoffered = await client.call_tool("sandbox_exec", {"command": "true"})
    assert NO_BOX in said(boxless)
    assert "DEPENDENCY_UNAVAILABLE" in said(unanswered)
    assert "POLICY_DENIED" in said(unoffered)
    assert len(world.box.requests) == 1


async def test_no_cross_tenant_a_session_is_its_principals_whatever_a_client_says(world: World) -> None:
    """The header tells one principal's conversations apart, and reaches nobody else's."""
    whose = [("ten_a", "usr_1", ""), ("ten_a", "usr_1", "x"), ("ten_a", "usr_2", "x"), ("ten_b", "usr_1", "x")]
    for tenant, principal, given in whose:
        headers = {"mcp-session-id": given} if given else {}
        async with world.client(tenant=tenant, principal=principal, **headers) as client:
            named = {"command": "true", "tenant_id": "ten_z", "session_id": "ses_z"}
            assert not (await client.call_tool("sandbox_exec", named)).is_error
            await client.call_tool("sandbox_stop", {})
    sessions = [(request.tenant_id, request.session_id) for request in world.box.requests]
    assert sessions == [(request.tenant_id, request.session_id) for request in world.box.closed]
    assert [tenant for tenant, _ in sessions] == ["ten_a", "ten_a", "ten_a", "ten_b"]
    assert len({session for _, session in sessions}) == len(whose)


def test_names_of_sessions_cannot_be_made_to_meet() -> None:
    def caller(tenant: str, principal: str) -> Any:
        return SimpleNamespace(tenant_id=tenant, principal=principal)

    pairs = [("a\nb", "c", "d"), ("a", "b\nc", "d"), ("a", "b", "c\nd"), ("a", "b\nc\nd", "")]
    assert len({session_of(caller(tenant, principal), given) for tenant, principal, given in pairs}) == len(pairs)


INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPT = {"accept": "application/json, text/event-stream"}


@pytest.mark.parametrize(
    ("who", "status", "reason"),
    [
        ({"tenant": ""}, 401, "CREDENTIAL_MISSING"),
        ({"x-retinue-jti": "jti_revoked"}, 401, "CREDENTIAL_INVALID"),
        ({"x-retinue-exp": "1"}, 401, "CREDENTIAL_EXPIRED"),
        ({"x-retinue-scope": "other"}, 403, "SCOPE_MISSING"),
    ],
)
async def test_who_may_not_is_refused_in_the_public_apis_shape(
    world: World, who: dict[str, str], status: int, reason: str
) -> None:
    async with world.http(**who) as http:
        answer = await http.post(URL, json=INITIALIZE, headers=ACCEPT)
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (status, reason)


async def test_what_is_no_request_of_mcp_is_refused(world: World) -> None:
    async with world.http() as http:
        for method in ("GET", "DELETE", "PUT"):
            answer = await http.request(method, URL, headers=ACCEPT)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        large = await http.post(URL, content=b" " * (1024 * 1024 + 1), headers=ACCEPT)
        assert (large.status_code, large.json()["details"][0]["reason"]) == (413, "BODY_TOO_LARGE")
        foreign_host = await http.post("http://evil.example/v1/mcp", json=INITIALIZE, headers=ACCEPT)
        foreign_page = await http.post(URL, json=INITIALIZE, headers={**ACCEPT, "origin": "http://evil.example"})
        own_page = await http.post(URL, json=INITIALIZE, headers={**ACCEPT, "origin": "http://localhost:3000"})
        nonsense = await http.post(URL, content=b"{", headers={**ACCEPT, "content-type": "application/json"})
    found = [answer.status_code for answer in (foreign_host, foreign_page, own_page, nonsense)]
    assert found == [421, 403, 200, 400]


async def test_arguments_beyond_their_bounds_are_refused_by_name(world: World) -> None:
    async with world.client() as client:
        for tool, arguments, name in (
            ("sandbox_exec", {"command": ""}, "command"),
            ("sandbox_exec", {"command": "true", "timeout_s": 601}, "timeout_s"),
            ("sandbox_read_file", {"path": "a", "size_bytes": 10**7}, "size_bytes"),
            ("sandbox_write_file", {"path": "a"}, "content"),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert name in said(result)
    assert not world.rules.asked


async def test_a_command_ends_when_its_client_has_gone(world: World, eventually: Callable[..., Any]) -> None:
    async with world.client() as client:
        asking = asyncio.create_task(client.call_tool("sandbox_exec", {"command": "sleep 60"}))
        await eventually(lambda: world.box.requests)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: world.box.ended == 1)


async def test_bounded_requests_under_way_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    monkeypatch.setattr(endpoint, "CALLS_MAX", 1)
    async with world.client() as client, world.http() as http:
        asking = asyncio.create_task(client.call_tool("sandbox_exec", {"command": "sleep 60"}))
        await eventually(lambda: world.box.requests)
        answer = await http.post(URL, json=INITIALIZE, headers=ACCEPT)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: world.box.ended == 1)
        assert not (await client.call_tool("sandbox_exec", {"command": "true"})).is_error
