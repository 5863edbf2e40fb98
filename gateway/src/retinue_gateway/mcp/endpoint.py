"""MCP over HTTP at one path, without sessions of its own: every request is whole, and any process may answer it.

The `mcp` package takes seconds of a processor to load, and 34 MiB. A gateway loads it for the first request that needs
it, in a thread, so that whoever is served meanwhile goes on being served.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import structlog
from opentelemetry.trace import SpanKind
from retinue_kit import telemetry, tenancy, wire
from retinue_kit.errors import Reason, RetinueError

from retinue_gateway import asgi
from retinue_gateway.credentials import Caller, Credentials
from retinue_gateway.mcp.boxes import Boxes
from retinue_gateway.mcp.keeping import Keeping

PATH = "/v1/mcp"

TENANT_CALLS_MAX = 32
"""Calls of one tenant at once, so that no one takes all places."""

CALLS_MAX = 256
"""Requests under way in this process; an execution may take ten minutes, and its answer has to wait for it."""

RETRY_AFTER_S = 1.0

LOAD_TIMEOUT_S = 30.0
"""How long a request waits for what serves it to be loaded: a few seconds, the rest for a machine that is busy."""

CALLER = "retinue.caller"
"""Under this name the request holds who calls."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Served(NamedTuple):
    """What serves requests, once `run` is entered."""

    app: asgi.SocketHandler
    run: Callable[[], AbstractAsyncContextManager[None]]


def load(boxes: Boxes, keeping: Keeping, names: list[str]) -> Served:
    """Make what serves requests; takes seconds the first time. `names` are those of this address."""
    from retinue_gateway.mcp import serving

    return Served(*serving.make(boxes, keeping, names, PATH))


class Endpoint:
    """Serves POST, while `running` is entered."""

    def __init__(self, boxes: Boxes, keeping: Keeping, credentials: Credentials, hosts: str) -> None:
        """`hosts` are the public names of this address, separated by commas; `:*` stands for any port."""
        self._names = [name.strip() for name in hosts.split(",") if name.strip()]
        self._boxes = boxes
        self._keeping = keeping
        self._credentials = credentials
        self._counts: Counter[str] = Counter()
        self._holding: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[asgi.SocketHandler] | None = None
        self._over = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve for as long as this is entered; what is under way at the end is cancelled."""
        try:
            yield
        finally:
            self._over.set()
            if self._holding is not None:
                await self._holding

    async def _app(self) -> asgi.SocketHandler:
        """Answer what serves requests; all who wait wait for one load, and whoever leaves does not stop it.

        Raises RetinueError(DEPENDENCY_UNAVAILABLE) where that takes too long.
        """
        if self._ready is None or (self._ready.done() and self._ready.exception() is not None):
            self._ready = asyncio.get_running_loop().create_future()
            # In a task of its own: who asks first need not be who is there at the end, as its scopes want it.
            self._holding = asyncio.create_task(self._hold(self._ready), name="mcp")
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            raise RetinueError.unavailable("mcp", private="it was not loaded in time") from None

    async def _hold(self, ready: "asyncio.Future[asgi.SocketHandler]") -> None:
        try:
            served = await asyncio.to_thread(load, self._boxes, self._keeping, self._names)
            async with served.run():
                ready.set_result(served.app)
                await self._over.wait()
        except Exception as error:
            log.error("mcp cannot be served", exc_info=error)
            if ready.done():
                self._ready = None  # who comes next has it made anew
            else:
                ready.set_exception(error)
                ready.exception()  # is looked at by those who wait, if any still does

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
            try:
                app = await self._app()
            except Exception as error:
                await asgi.refuse(request, error)
                return
            await self._answer(app, scope, caller, request.headers, _again(body, receive), send)
        finally:
            self._counts[mine] -= 1
            if not self._counts[mine]:
                del self._counts[mine]

    async def _answer(
        self,
        app: asgi.SocketHandler,
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
            await app({**scope, CALLER: caller}, receive, send)


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
