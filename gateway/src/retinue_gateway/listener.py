"""The ASGI application on its unix socket, in the same loop as everything else."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from retinue_kit.server import NEW_SUFFIX
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from retinue_gateway.asgi import App
from retinue_gateway.ws import CLOSE_NOW

SOCKET_MESSAGE_MAX_BYTES = 2 * 1024 * 1024
"""Beyond it a socket is closed; up to it, what is too large is answered."""

PING_S = 20.0
"""How often a silent socket is asked whether it is still there, and how long it may take to answer."""

LINGER_S = 10.0
"""How long what was sent last may wait for a peer that does not read, before its connection is dropped."""

START_TIMEOUT_S = 10.0
POLL_S = 0.005


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's own, with an end: a peer that never reads cannot hold a connection open."""

    async def run_asgi(self) -> None:
        """Serve the socket; afterwards its transport is gone within LINGER_S."""
        extensions: dict[str, Any] = self.scope["extensions"]
        extensions[CLOSE_NOW] = self._close_now
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(LINGER_S, self.transport.abort)

    def _close_now(self, code: int, reason: str) -> None:
        """Close behind what waits to be sent, without waiting for it."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()


class _Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Listener:
    """Listens until told to stop."""

    def __init__(self, app: App, path: str) -> None:
        self._path = path
        self._new_path = f"{path}{NEW_SUFFIX}"
        options: dict[str, Any] = {
            "uds": self._new_path,
            "http": "h11",
            "ws": SocketProtocol,
            "ws_max_size": SOCKET_MESSAGE_MAX_BYTES,
            "ws_ping_interval": PING_S,
            "ws_ping_timeout": PING_S,
            "ws_per_message_deflate": False,
            "lifespan": "off",
            "log_config": None,
            "log_level": "error",
            "access_log": False,
            "server_header": False,
            "timeout_graceful_shutdown": 1,
        }
        self._server = _Server(uvicorn.Config(app, **options))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, in the place of a former process that still does; RuntimeError if that fails."""
        Path(self._new_path).unlink(missing_ok=True)
        self._task = asyncio.create_task(self._server.serve(), name="asgi")
        async with asyncio.timeout(START_TIMEOUT_S):
            while not self._server.started:
                if self._task.done():
                    self._task.result()
                    raise RuntimeError(f"cannot listen on {self._path}")
                await asyncio.sleep(POLL_S)
        Path(self._new_path).rename(self._path)

    async def stop(self) -> None:
        """Close what is left and stop."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
