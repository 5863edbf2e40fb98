"""What runs in the containers and pods of the fakes: it listens where entry.mjs would, as healthy as a gateway."""

import asyncio
import json
import socket
from contextlib import suppress

ANSWER = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{"ok":true}'
)


class PretendInstance:
    """Listens once it has its configuration; `stubborn` ones do not end when they are asked to."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.stubborn = stubborn
        self.config: dict = {}
        self._server: asyncio.Server | None = None

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    async def begin(self, config: bytes, listener: socket.socket) -> None:
        """Read the configuration and answer."""
        self.config = json.loads(config)
        assert self.config["gateway"]["bind"] == "loopback"
        self._server = await asyncio.start_server(self._answer, sock=listener)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
        writer.close()

    async def end(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
