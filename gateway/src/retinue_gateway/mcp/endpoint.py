"""MCP over HTTP at one path, without sessions of its own: every request is whole, and any process may answer it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.transport_security import TransportSecuritySettings
from opentelemetry.trace import SpanKind
from retinue_kit import telemetry, tenancy, wire
from retinue_kit.errors import Reason, RetinueError

from retinue_gateway import asgi
from retinue_gateway.credentials import Caller, Credentials
from retinue_gateway.mcp import tools
from retinue_gateway.mcp.boxes import Ask, Boxes, session_of

PATH = "/v1/mcp"

TENANT_CALLS_MAX = 32
"""Calls of one tenant at once, so that no one takes all places."""

CALLS_MAX = 256
"""Requests under way in this process; an execution may take ten minutes, and its answer has to wait for it."""

RETRY_AFTER_S = 1.0

START_TIMEOUT_S = 10.0
"""For what serves requests to be there; it is a task that begins."""

SESSION_KEY = "mcp-session-id"
"""What a client may tell its conversations apart by. We hand out none, so that any process may serve any request."""

_CALLER = "retinue.caller"
"""Under this name the request holds who calls."""


class Endpoint:
    """Serves POST, while `running` is entered."""

    def __init__(self, boxes: Boxes, credentials: Credentials, hosts: str) -> None:
        """`hosts` are the public names of this address, separated by commas; `:*` stands for any port."""
        names = [name.strip() for name in hosts.split(",") if name.strip()]
        self._credentials = credentials
        self._counts: Counter[str] = Counter()
        server = tools.server(boxes, _read)
        self._app = server.streamable_http_app(
            streamable_http_path=PATH,
            stateless_http=True,
            max_request_body_size=asgi.BODY_SIZE_MAX_BYTES,
            transport_security=TransportSecuritySettings(
                allowed_hosts=names,
                allowed_origins=[f"{scheme}://{name}" for name in names for scheme in ("http", "https")],
            ),
        )
        self._manager = server.session_manager

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve for as long as this is entered; what is under way at the end is cancelled."""
        ready, over = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            # In a task of its own: who enters this need not be who leaves it, as its scopes want it.
            async with self._manager.run():
                ready.set()
                await over.wait()

        holding = asyncio.create_task(hold(), name="mcp")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await ready.wait()
            yield
        finally:
            over.set()
            await holding

    async def serve(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Serve one request, as ASGI calls it. What is refused here is refused in the public API's own shape."""
        request = asgi.Request(scope, receive, send)
        try:
            caller = self._credentials.admit(request.headers)
            body = await request.body()
            if scope["method"] != "POST":
                await _refuse_method(request)
                return
            mine = caller.tenant_id
            if self._counts.total() >= CALLS_MAX or self._counts[mine] >= TENANT_CALLS_MAX:
                text = "Too many calls are under way; try again."
                raise RetinueError(Reason.QUEUE_FULL, text, retry_after_s=RETRY_AFTER_S)
        except ConnectionError:
            return
        except Exception as error:
            await asgi.refuse(request, error)
            return
        self._counts[mine] += 1
        try:
            await self._answer(scope, caller, request.headers, _again(body, receive), send)
        finally:
            self._counts[mine] -= 1
            if not self._counts[mine]:
                del self._counts[mine]

    async def _answer(
        self,
        scope: asgi.Scope,
        caller: Caller,
        headers: Mapping[str, str],
        receive: asgi.Receive,
        send: asgi.Send,
    ) -> None:
        tenancy.enter(caller.identity)
        parent = headers.get("traceparent", "")
        with telemetry.span("mcp", kind=SpanKind.SERVER, traceparent=parent) as span:
            span.set_attribute("tenant.id", caller.tenant_id)
            await self._app({**scope, _CALLER: caller}, receive, send)


async def _refuse_method(request: asgi.Request) -> None:
    """Say what MCP wants said where nothing is sent unasked and no session is to be ended."""
    error = RetinueError(Reason.ROUTE_NOT_FOUND, "There is nothing at this path for this method.")
    await request.answer_json(405, wire.to_json(wire.to_status(error)), {"allow": "POST"})


def _again(body: bytes, receive: asgi.Receive) -> asgi.Receive:
    """Let a body that was read be read once more; behind it comes what has not been read."""
    read = False

    async def again() -> Any:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _read(context: Context, tool: str, arguments: Mapping[str, Any]) -> Ask:
    """Read who calls: out of the request that Envoy let in, and nothing that a client says in a call."""
    request = context.request_context.request
    assert request is not None
    caller: Caller = request.scope[_CALLER]
    given = request.headers.get(SESSION_KEY, "")
    return Ask(caller, session_of(caller, given), str(context.request_context.request_id), tool, arguments)
