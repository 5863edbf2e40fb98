"""Tools of MCP servers that an operator has allowed: listed, named as ours are, and called within bounds.

A connection is made for each list and each call, so that nothing of one tenant's is kept for another. The client never
follows a redirect to another host: the headers that it bears are for the one it was given.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

from retinue_runtime_adapter.config import McpServer
from retinue_runtime_adapter.tools.bounded import bounded, plain
from retinue_runtime_adapter.tools.metrics import MCP_PREFIX
from retinue_runtime_adapter.tools.ports import RESULT_LENGTH_MAX, Call, Progress, Result, Scope

if TYPE_CHECKING:
    import httpx2
    from mcp import Client

TTL_S = 60.0
"""How long a list of tools is good for."""

AWAY_TTL_S = 10.0
"""How long a server that did not answer is not asked again."""

LIST_TIMEOUT_S = 5.0
"""For a server's list: a person is waiting, and the run goes on without it."""

TOOLS_MAX = 64
"""Tools of one server; what comes behind is left out."""

PAGES_MAX = 8
"""Pages of one server's list."""

NAME_LENGTH_MAX = 64
"""Characters of a tool's whole name, as models' endpoints bound it."""

DESCRIPTION_LENGTH_MAX = 1024
"""Characters of a description that are kept."""

SCHEMA_SIZE_MAX_BYTES = 32 * 1024
"""Bytes of a tool's schema as JSON; a tool with more is left out."""

BODY_SIZE_MAX_BYTES = 4 * 1024 * 1024
"""Bytes of one answer over HTTP, compressed or not."""

_CLIENTS_OWN = frozenset({-32000, -32001, -32700})
"""Codes of errors that the client makes: the connection has ended, no answer came in time, what came is no JSON."""

_OF_ACCESS = frozenset({401, 403, 407, 408, 429})

_UNFIT = re.compile(r"[^A-Za-z0-9_-]")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class McpTool:
    """A tool of a server. Implements ports.Tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    parallel: bool
    idempotent: bool
    server: str
    remote_name: str
    servers: "McpServers"

    async def call(self, scope: Scope, call: Call, progress: Progress) -> Result:
        """Call it. Raises DEPENDENCY_UNAVAILABLE, RUN_TIMEOUT."""
        return await self.servers.call(scope, self, call)


@dataclass(slots=True)
class _Heard:
    """How a server has answered last over HTTP: the client writes errors of its own where a server has said none."""

    speaks: bool = False

    def note(self, status: int, content_type: str) -> None:
        """Note an answer."""
        is_json = content_type.lower().startswith("application/json")
        is_answer = 200 <= status < 300 and (is_json or content_type.lower().startswith("text/event-stream"))
        # An error may come with a status of its own, but the ones that say who may ask, and how often, are for us.
        self.speaks = is_answer or (is_json and 400 <= status < 500 and status not in _OF_ACCESS)

    def is_its_word(self, code: int) -> bool:
        """Whether an error is what the server has said of a call."""
        return self.speaks and code not in _CLIENTS_OWN


@dataclass(slots=True)
class _Listed:
    tools: Sequence[McpTool]
    until: float


class McpServers:
    """The servers, and what each offers."""

    def __init__(self, servers: Mapping[str, McpServer], clock: Clock) -> None:
        self._servers = servers
        self._clock = clock
        self._listed: dict[str, _Listed] = {}
        self._locks = {name: asyncio.Lock() for name in servers}

    async def of(self, tenant_id: str) -> list[McpTool]:
        """Everything that a tenant may be offered; a server that is away leaves its tools out."""
        names = [name for name, server in self._servers.items() if server.serves(tenant_id)]
        found = await asyncio.gather(*(self._tools(name) for name in names))
        return [tool for tools in found for tool in tools]

    async def find(self, tenant_id: str, name: str) -> McpTool | None:
        """One of them, or None."""
        for server_name, server in self._servers.items():
            if server.serves(tenant_id) and name.startswith(f"{MCP_PREFIX}{server_name}__"):
                return next((tool for tool in await self._tools(server_name) if tool.name == name), None)
        return None

    async def _tools(self, name: str) -> Sequence[McpTool]:
        async with self._locks[name]:
            listed = self._listed.get(name)
            if listed is None or listed.until <= self._clock.monotonic():
                listed = self._listed[name] = await self._list(name)
            return listed.tools

    async def _list(self, name: str) -> _Listed:
        try:
            async with self._connected(name, min(LIST_TIMEOUT_S, self._servers[name].timeout_s)) as client:
                tools, cursor = [], None
                for _ in range(PAGES_MAX):
                    page = await client.list_tools(cursor=cursor)
                    tools += page.tools
                    cursor = page.next_cursor
                    if not cursor or len(tools) >= TOOLS_MAX:
                        break
        except RetinueError as error:
            log.warning("an MCP server is away", server=name, detail=error.private)
            return _Listed((), self._clock.monotonic() + AWAY_TTL_S)
        made = [tool for tool in (self._tool(name, found) for found in tools[:TOOLS_MAX]) if tool is not None]
        unique = {tool.name: tool for tool in reversed(made)}
        return _Listed(list(unique.values())[::-1], self._clock.monotonic() + TTL_S)

    def _tool(self, server: str, found: Any) -> McpTool | None:
        name = f"{MCP_PREFIX}{server}__{_UNFIT.sub('_', found.name)}"
        schema = found.input_schema
        try:
            size = len(msgspec.json.encode(schema))
        except (TypeError, ValueError, RecursionError):
            size = SCHEMA_SIZE_MAX_BYTES + 1
        if len(name) > NAME_LENGTH_MAX or size > SCHEMA_SIZE_MAX_BYTES:
            log.warning("a tool of an MCP server is left out", server=server, tool=name[:NAME_LENGTH_MAX])
            return None
        hints = found.annotations
        reads = bool(hints and hints.read_only_hint)
        return McpTool(
            name=name,
            description=plain(found.description or found.title or found.name)[:DESCRIPTION_LENGTH_MAX],
            parameters=schema,
            parallel=reads,
            idempotent=reads or bool(hints and hints.idempotent_hint),
            server=server,
            remote_name=found.name,
            servers=self,
        )

    async def call(self, scope: Scope, tool: McpTool, call: Call) -> Result:
        """Call a tool within its server's time. Raises DEPENDENCY_UNAVAILABLE, RUN_TIMEOUT.

        What the server itself answers, an error too, is a result.
        """
        server = self._servers.get(tool.server)
        if server is None or not server.serves(scope.tenant_id):
            return Result(False, f"There is no tool {tool.name}.")
        from mcp import MCPError

        heard = _Heard()
        async with self._connected(tool.server, server.timeout_s, heard) as client:
            try:
                answer = await client.call_tool(tool.remote_name, call.arguments)
            except MCPError as error:
                if not heard.is_its_word(error.code):
                    raise
                said = f"The server {tool.server} refused the call: {error.message} (code {error.code})."
                return Result(False, bounded(plain(said), RESULT_LENGTH_MAX))
        return Result(not answer.is_error, bounded(plain(_text(answer)), RESULT_LENGTH_MAX))

    @asynccontextmanager
    async def _connected(self, name: str, timeout_s: float, heard: "_Heard | None" = None) -> "AsyncIterator[Client]":
        """Speak to a server within a time. Raises RetinueError, whatever goes wrong."""
        # Imported where it is used: it takes a dozen MiB, and few deployments have such servers.
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        server = self._servers[name]
        try:
            async with (
                asyncio.timeout(timeout_s),
                _http(server, timeout_s, heard or _Heard()) as http,
                Client(streamable_http_client(server.url, http_client=http), cache=None) as client,
            ):
                yield client
        except TimeoutError:
            text = f"The MCP server {name} did not answer within {timeout_s:g} seconds."
            raise RetinueError(Reason.RUN_TIMEOUT, text, private="timeout") from None
        except Exception as error:
            raise RetinueError.unavailable(f"the MCP server {name}", private=_kinds(error)) from None


def _http(server: McpServer, timeout_s: float, heard: "_Heard") -> "httpx2.AsyncClient":
    import httpx2

    class Bounded(httpx2.AsyncHTTPTransport):
        """Breaks an answer off that is longer than one may be."""

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            if request.method == "POST":
                heard.note(response.status_code, response.headers.get("content-type", ""))
            response.stream = Body(response.stream)
            return response

    class Body(httpx2.AsyncByteStream):
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in self._inner:
                size += len(chunk)
                if size > BODY_SIZE_MAX_BYTES:
                    raise httpx2.ReadError("the answer is too long")
                yield chunk

        async def aclose(self) -> None:
            await self._inner.aclose()

    # Compressed, a body could be far longer than what came over the wire.
    headers = {**server.headers, "Accept-Encoding": "identity"}
    return httpx2.AsyncClient(transport=Bounded(), headers=headers, timeout=timeout_s, follow_redirects=False)


def _kinds(error: BaseException) -> str:
    """What went wrong, for the log: kinds of errors and no text, which may hold a credential."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_kinds(inner) for inner in error.exceptions)
    return type(error).__name__


def _text(answer: Any) -> str:
    """A result as text; what is no text is named."""
    parts: list[str] = []
    for block in answer.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource":
            text = getattr(block.resource, "text", None)
            parts.append(text if text is not None else f"[resource {block.resource.uri}]")
        elif block.type == "resource_link":
            parts.append(f"[resource {block.uri}]")
        else:
            parts.append(f"[{block.type}, {getattr(block, 'mime_type', 'of unknown kind')}]")
    if not parts and answer.structured_content is not None:
        parts.append(msgspec.json.encode(answer.structured_content).decode())
    return "\n".join(parts) or ("The tool failed." if answer.is_error else "Done.")
