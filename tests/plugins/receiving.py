"""A receiver of webhooks, as strangers run them: real HTTP on a port of its own, and as rude as a test wants it."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web
from standardwebhooks import Webhook

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Received(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The delivery's."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, object]:
        """Read it as the standard's own verifier does."""
        read: dict[str, object] = Webhook(secret).verify(self.body, self.headers)
        return read


class Receiver:
    """Keeps what it gets; answers 200, or what `answers` holds, in turn, the last one again and again."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: list[Handler] = []
        self.release = asyncio.Event()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listen on a free port of this machine."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        await web.SockSite(self._runner, listening, ssl_context=tls).start()

    async def stop(self) -> None:
        """Let go of whoever waits, and end."""
        self.release.set()
        await self._runner.cleanup()

    def url(self, path: str = "/hook") -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path, headers, await request.read()))
        if not self.answers:
            return web.Response(text="thanks")
        handler = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await handler(request)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> Handler:
        """An answer as it should be."""

        async def handle(request: web.Request) -> web.Response:
            return web.Response(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

        return handle

    async def hang(self, request: web.Request) -> web.Response:
        """Says nothing until it is let go of."""
        await self.release.wait()
        return web.Response()

    async def pour(self, request: web.Request) -> web.StreamResponse:
        """Answers 200 with a body that does not end."""
        response = web.StreamResponse()
        await response.prepare(request)
        while not self.release.is_set():
            await response.write(b" " * 65536)
        return response

    async def reset(self, request: web.Request) -> web.Response:
        """Cuts the connection without a word."""
        assert request.transport is not None
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
        return web.Response()
