"""Tools of MCP servers, with real ones on loopback."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from mcp import MCPError
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import McpServer, Settings, read_mcp_servers
from retinue_runtime_adapter.tools.catalogue import Catalogue
from retinue_runtime_adapter.tools.mcp import AWAY_TTL_S, BODY_SIZE_MAX_BYTES, TTL_S, McpServers
from retinue_runtime_adapter.tools.ports import RESULT_LENGTH_MAX, Call, Scope

SCOPE = Scope(tenant_id="ten_a", session_id="ses_a", run_id="run_a", fencing_token=1, runtime="light")
OTHER = Scope(tenant_id="ten_b", session_id="ses_b", run_id="run_b", fencing_token=1, runtime="light")


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


def desk() -> MCPServer:
    """Make a server with a few tools."""
    server = MCPServer("desk")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return str(a + b)

    @server.tool()
    def shout(text: str) -> str:
        """Shout."""
        return text.upper() * 100_000

    @server.tool()
    def fail() -> str:
        """Fail."""
        raise ToolError("the desk is closed")

    @server.tool()
    def refuse(code: int) -> str:
        """Answer with an error of the protocol's own."""
        raise MCPError(code, "no such desk")

    @server.tool()
    async def wait() -> str:
        """Wait for ever."""
        await asyncio.Event().wait()
        return ""

    @server.tool(name="odd name/ä")
    def odd() -> str:
        """Have a name that no model may say."""
        return "odd"

    @server.tool(name="n" * 60)
    def long() -> str:
        """Have too long a name."""
        return "long"

    return server


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """Serve an application on a free port of the loopback address."""
    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="on", timeout_graceful_shutdown=1)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await server.startup(sockets=[listener])
        serving = asyncio.create_task(server.main_loop())
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
            await server.shutdown(sockets=[listener])


@pytest_asyncio.fixture
async def url() -> AsyncIterator[str]:
    async with served(desk().streamable_http_app(stateless_http=True)) as port:
        yield f"http://127.0.0.1:{port}/mcp"


def servers(url: str, clock: Clock | None = None, **fields: Any) -> McpServers:
    return McpServers({"desk": McpServer(**{"url": url, "tenants": ["ten_a"], **fields})}, clock or Clock())


async def test_a_servers_tools_are_offered_under_our_names_and_called(url: str) -> None:
    made = Catalogue((), servers(url))
    offered = {tool.name: tool for tool in await made.offered(SCOPE, ["read", "mcp__*"])}
    assert sorted(offered) == [
        "mcp__desk__" + name for name in ("add", "fail", "odd_name__", "refuse", "shout", "wait")
    ]
    add = offered["mcp__desk__add"]
    assert (add.description, add.parallel, add.idempotent) == ("Add two numbers.", True, True)
    assert not offered["mcp__desk__shout"].idempotent
    assert add.parameters["required"] == ["a", "b"]
    result = await add.call(SCOPE, Call("c", add.name, {"a": 2, "b": 3}), lambda _: None)
    assert (result.ok, result.text) == (True, "5")
    odd = await made.find(SCOPE, "mcp__desk__odd_name__")
    assert odd is not None
    assert (await odd.call(SCOPE, Call("c", odd.name, {}), lambda _: None)).text == "odd"


@pytest.mark.parametrize(
    ("names", "found"),
    [(["mcp__desk__add"], 1), (["mcp__desk__*"], 6), (["group:mcp"], 6), (["mcp__other__*"], 0), (["exec"], 0)],
)
async def test_only_what_policy_names_is_offered(url: str, names: list[str], found: int) -> None:
    assert len(await Catalogue((), servers(url)).offered(SCOPE, names)) == found


async def test_no_cross_tenant_a_server_is_there_for_its_tenants_alone(url: str) -> None:
    made = servers(url)
    assert await made.of("ten_b") == []
    assert await made.find("ten_b", "mcp__desk__add") is None
    add = await made.find("ten_a", "mcp__desk__add")
    assert add is not None
    assert not (await add.call(OTHER, Call("c", add.name, {"a": 1, "b": 1}), lambda _: None)).ok
    assert len(await servers(url, tenants="*").of("ten_b")) == 6


async def test_results_are_bounded_and_failures_told_as_such(url: str) -> None:
    made = servers(url)
    for name, arguments, ok, said in (("shout", {"text": "a"}, True, "AAA"), ("fail", {}, False, "desk is closed")):
        tool = await made.find("ten_a", f"mcp__desk__{name}")
        assert tool is not None
        result = await tool.call(SCOPE, Call("c", tool.name, arguments), lambda _: None)
        assert result.ok is ok
        assert said in result.text
        assert len(result.text) <= RESULT_LENGTH_MAX


async def test_an_error_that_a_server_answers_with_is_told_to_the_model(url: str) -> None:
    tool = await servers(url).find("ten_a", "mcp__desk__refuse")
    assert tool is not None
    for code in (-32602, -32603, 7):
        result = await tool.call(SCOPE, Call("c", tool.name, {"code": code}), lambda _: None)
        assert (result.ok, result.text) == (False, f"The server desk refused the call: no such desk (code {code}).")


ERROR = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"not so"}}'


async def test_only_what_a_server_has_said_itself_is_its_word() -> None:
    inner = desk().streamable_http_app(stateless_http=True, json_response=True)
    answer = (0, b"", b"")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        first = [await receive()] if scope["type"] == "http" else []
        if first and b"tools/call" in first[0].get("body", b""):
            status, kind, body = answer
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
            await send({"type": "http.response.body", "body": body})
            return

        async def again() -> Any:
            return first.pop() if first else await receive()

        await inner(scope, again, send)

    async with served(app) as port:
        tool = await servers(f"http://127.0.0.1:{port}/mcp").find("ten_a", "mcp__desk__add")
        assert tool is not None
        call = Call("c", tool.name, {"a": 1, "b": 1})
        answer = (400, b"application/json", ERROR)
        result = await tool.call(SCOPE, call, lambda _: None)
        assert (result.ok, "not so" in result.text) == (False, True)
        for status, kind, body in (
            (403, b"application/json", ERROR),
            (503, b"application/json", ERROR),
            (404, b"text/plain", b"gone"),
            (200, b"text/html", b"<p>Sign in</p>"),
            (200, b"application/json", b"{"),
        ):
            answer = (status, kind, body)
            with pytest.raises(RetinueError) as away:
                await tool.call(SCOPE, call, lambda _: None)
            assert away.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_call_ends_with_its_servers_time_or_when_it_is_cancelled(url: str) -> None:
    tool = await servers(url).find("ten_a", "mcp__desk__wait")
    assert tool is not None
    with pytest.raises(RetinueError) as late:
        await servers(url, timeout_s=0.5).call(SCOPE, tool, Call("c", tool.name, {}))
    assert late.value.reason is Reason.RUN_TIMEOUT
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await tool.call(SCOPE, Call("c", tool.name, {}), lambda _: None)


async def test_a_server_that_is_away_leaves_its_tools_out_until_it_is_back(url: str) -> None:
    clock = Clock()
    made = servers("http://127.0.0.1:9/mcp", clock)
    assert await made.of("ten_a") == []
    made._servers = servers(url)._servers
    assert await made.of("ten_a") == []
    clock.time += AWAY_TTL_S
    found = await made.of("ten_a")
    assert len(found) == 6
    made._servers = servers("http://127.0.0.1:9/mcp")._servers
    assert await made.of("ten_a") == found
    with pytest.raises(RetinueError) as away:
        await found[0].call(SCOPE, Call("c", found[0].name, {"a": 1, "b": 1}), lambda _: None)
    assert away.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    clock.time += TTL_S
    assert await made.of("ten_a") == []


async def test_a_redirect_to_another_host_is_not_followed_and_its_credential_not_shown(url: str) -> None:
    seen: list[dict[bytes, bytes]] = []

    def answering(status: int, headers: list[tuple[bytes, bytes]]) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                for kind in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{kind}.complete"})
                return
            seen.append(dict(scope["headers"]) | {b":port": str(scope["server"][1]).encode()})
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        return app

    async with served(answering(500, [])) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere}/mcp".encode()
        async with served(answering(307, [(b"location", location)])) as port:
            made = servers(f"http://127.0.0.1:{port}/mcp", headers={"Authorization": "Bearer secret"})
            assert await made.of("ten_a") == []
            assert seen
            assert {headers[b":port"] for headers in seen} == {str(port).encode()}
            assert all(headers[b"authorization"] == b"Bearer secret" for headers in seen)


async def test_bounded_an_answer_that_is_too_long_is_broken_off() -> None:
    async with served(desk().streamable_http_app(stateless_http=True, json_response=True)) as port:
        tool = await servers(f"http://127.0.0.1:{port}/mcp").find("ten_a", "mcp__desk__shout")
        assert tool is not None
        for length, ok in ((1, True), (BODY_SIZE_MAX_BYTES // 100_000 + 1, False)):
            call = Call("c", tool.name, {"text": "a" * length})
            if ok:
                assert (await tool.call(SCOPE, call, lambda _: None)).ok
                continue
            with pytest.raises(RetinueError) as broken:
                await tool.call(SCOPE, call, lambda _: None)
            assert broken.value.reason is Reason.DEPENDENCY_UNAVAILABLE


def test_the_allowlist_is_a_file_that_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "servers.json"
    settings = Settings(address="", mcp_servers=str(path))
    assert read_mcp_servers(Settings(address="")) == {}
    path.write_text(json.dumps({"desk": {"url": "https://a.test/mcp", "headers": {"X": "y"}, "tenants": "*"}}))
    assert read_mcp_servers(settings)["desk"].serves("ten_x")
    for wrong in (
        {"De__sk": {"url": "https://a.test"}},
        {"desk": {"url": "nowhere"}},
        {"desk": {"url": "https://a.test", "tenant": []}},
        {"desk": {"url": "https://a.test", "timeout_s": 0}},
        {"desk": {"url": "https://a.test", "headers": {"X": "a\nb"}}},
        {f"d{n}": {"url": "https://a.test"} for n in range(40)},
        [],
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(SettingError):
            read_mcp_servers(settings)
    path.unlink()
    with pytest.raises(SettingError):
        read_mcp_servers(settings)
