"""One WebSocket to a gateway, from its handshake to its end."""

import asyncio
import itertools
from importlib.metadata import version
from typing import Any

from retinue_kit.errors import Reason
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import protocol
from retinue_runtime_adapter.openclaw.follower import Follower

CONNECT_TIMEOUT_S = 5.0
"""Time for a connection and its handshake: loopback answers in milliseconds, a busy gateway in a second or two."""

CLOSE_TIMEOUT_S = 1.0
"""Time for a gateway to agree that a connection ends."""

PENDING_COUNT_MAX = 1_024
"""Requests without an answer yet."""


class LostError(Exception):
    """The connection was lost while an answer was waited for."""


class Connection:
    """One WebSocket from its handshake to its end."""

    def __init__(self, socket: ClientConnection, hello: protocol.Hello) -> None:
        self.socket = socket
        self.hello = hello
        self.pending: dict[str, asyncio.Future[protocol.Incoming]] = {}
        self.finals: dict[str, Follower] = {}
        self._numbers = itertools.count(1)

    async def ask(
        self,
        method: str,
        params: dict[str, Any],
        *,
        timeout_s: float,
        traceparent: str = "",
        follower: Follower | None = None,
    ) -> protocol.Incoming:
        """Send a request and wait for its (first) answer. Raises LostError, Trouble."""
        request_id = f"{method}-{next(self._numbers)}"
        data = protocol.encode(request_id, method, params, traceparent)
        if len(data) > self.hello.payload_max_bytes:
            raise Trouble(Reason.BODY_TOO_LARGE, "The message is longer than OpenClaw accepts.")
        if len(self.pending) >= PENDING_COUNT_MAX:
            raise protocol.lost("Too many requests wait for OpenClaw.")
        answer: asyncio.Future[protocol.Incoming] = asyncio.get_running_loop().create_future()
        self.pending[request_id] = answer
        if follower is not None:
            self.finals[request_id] = follower
        try:
            async with asyncio.timeout(timeout_s):
                await self.socket.send(data, text=True)
                return await answer
        except BaseException as error:
            self.finals.pop(request_id, None)
            if isinstance(error, ConnectionClosed):
                raise LostError from None
            if isinstance(error, TimeoutError):
                raise protocol.lost("OpenClaw did not answer in time.") from None
            raise
        finally:
            del self.pending[request_id]
            if not answer.done():
                answer.cancel()

    def forget(self, follower: Follower) -> None:
        """Expect no further answer for a reader of a run."""
        for request_id in [request_id for request_id, one in self.finals.items() if one is follower]:
            del self.finals[request_id]

    def let_go(self) -> None:
        """Tell everybody who waits that no answer will come."""
        for answer in self.pending.values():
            if not answer.done():
                answer.set_exception(LostError())


async def open_connection(address: str, token: str) -> Connection:
    """Connect and shake hands. Raises Starting, Trouble, and OSError, WebSocketException, TimeoutError, ValueError."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        socket = await connect(
            f"ws://{address}",
            max_size=protocol.FRAME_SIZE_MAX_BYTES,
            compression=None,  # it stays on this machine
            proxy=None,
            ping_interval=None,  # a busy gateway is late with pongs; its ticks are what counts
            close_timeout=CLOSE_TIMEOUT_S,
        )
        try:
            await socket.send(protocol.connect("connect", token, version("retinue-runtime-adapter")), text=True)
            while True:  # ends with the answer, the connection or the time; a challenge comes before it
                answer = protocol.decode(await socket.recv())
                if answer.type == "res":
                    return Connection(socket, protocol.read_hello(answer))
        except BaseException:
            await socket.close()
            raise
