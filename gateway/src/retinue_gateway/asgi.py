"""What cannot be said through Envoy's transcoder, as a small ASGI application: requests, answers, routes."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
from retinue_kit import wire
from retinue_kit.errors import Code, Reason, RetinueError

from retinue_gateway import encode

BODY_SIZE_MAX_BYTES = 1024 * 1024
"""A request's body, as the public contract bounds it."""

DRAINED_SIZE_MAX_BYTES = 16 * BODY_SIZE_MAX_BYTES
"""What is read, and thrown away, of a body that is too large: a client that is cut off while it sends does not always
come to read why."""

STATUSES = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""HTTP's status for each code, as Envoy's transcoder maps them."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log: structlog.stdlib.BoundLogger = structlog.get_logger()


def status_of(error: RetinueError) -> int:
    """HTTP's status for an error."""
    return 413 if error.reason is Reason.BODY_TOO_LARGE else STATUSES[error.code]


def headers_of(scope: Scope) -> dict[str, str]:
    """Read the headers; of one that is repeated, the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


class Request:
    """A request over HTTP, and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = headers_of(scope)
        self.path: str = scope["path"]
        self._receive = receive
        self._send = send
        self.begun = False
        """Whether an answer has begun, so that no other can be given."""

    async def body(self) -> bytes:
        """Read the whole body. Raises RetinueError(BODY_TOO_LARGE), ConnectionError if the client leaves."""
        length = self.headers.get("content-length", "")
        if length.isdigit() and int(length) > DRAINED_SIZE_MAX_BYTES:
            raise _too_large()
        pieces: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client left")
            piece = message.get("body", b"")
            size += len(piece)
            if size <= BODY_SIZE_MAX_BYTES:
                pieces.append(piece)
            elif size > DRAINED_SIZE_MAX_BYTES:
                break
            more = message.get("more_body", False)
        if size > BODY_SIZE_MAX_BYTES:
            raise _too_large()
        return b"".join(pieces)

    async def left(self) -> None:
        """Wait until the client has left; the body must have been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    @contextmanager
    def watched(self) -> "Iterator[asyncio.Task[None]]":
        """Watch for the client to leave; the task is done once it has. The body must have been read."""
        leaving = asyncio.create_task(self.left(), name="client-leaves")
        try:
            yield leaving
        finally:
            leaving.cancel()

    async def answer(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Answer at once."""
        await self.begin(status, content_type, {"content-length": str(len(body)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": body})

    async def answer_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        await self.answer(status, body, "application/json", headers)

    async def begin(self, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Begin an answer whose body follows piece by piece."""
        self.begun = True
        pairs = [("content-type", content_type), *(headers or {}).items()]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, piece: bytes, *, more: bool = True) -> None:
        """Send a piece of the body; waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})


Handler = Callable[[Request], Awaitable[None]]
SocketHandler = Callable[[Scope, Receive, Send], Awaitable[None]]


class App:
    """Finds what serves a request by method and path; answers errors that the handlers leave."""

    def __init__(
        self,
        routes: dict[tuple[str, str], Handler],
        sockets: dict[str, SocketHandler],
        mounts: dict[str, SocketHandler] | None = None,
    ) -> None:
        """`mounts` are applications of their own, by path: every method is theirs, and so are their errors.

        One that ends in "/" has every path beneath it.
        """
        self._routes = routes
        self._sockets = sockets
        self._mounts = mounts or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket, as ASGI calls it."""
        if scope["type"] == "websocket":
            handle_socket = self._sockets.get(scope["path"])
            if handle_socket is None:
                await send({"type": "websocket.close", "code": 1000})
            else:
                await handle_socket(scope, receive, send)
            return
        mount = self._find_mount(scope["path"])
        if mount is not None:
            await mount(scope, receive, send)
            return
        request = Request(scope, receive, send)
        handler = self._routes.get((scope["method"], scope["path"]), _not_found)
        try:
            await handler(request)
        except ConnectionError:
            log.debug("client left", path=request.path)
        except Exception as error:
            await refuse(request, error)

    def _find_mount(self, path: str) -> SocketHandler | None:
        beneath = (mount for prefix, mount in self._mounts.items() if prefix.endswith("/") and path.startswith(prefix))
        return self._mounts.get(path) or next(beneath, None)


async def _not_found(request: Request) -> None:
    await request.body()  # Envoy sends here what is too large, whatever it is
    raise RetinueError(Reason.ROUTE_NOT_FOUND, "There is nothing at this path for this method.")


async def refuse(request: Request, error: Exception) -> None:
    """Answer an error in the shape of the public API. Raises ConnectionError if an answer has begun."""
    told = encode.error(error)
    if request.begun:
        raise ConnectionError("an answer broke off") from error
    headers = {}
    if told.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(told.retry_after_s)))
    await request.answer_json(status_of(told), wire.to_json(wire.to_status(told)), headers)


def _too_large() -> RetinueError:
    return RetinueError(
        Reason.BODY_TOO_LARGE, "The body is larger than 1 MiB, the bundle than 3 MiB, or the file than 4 MiB."
    )
