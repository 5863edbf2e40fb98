"""Watchers of contacts: they follow from the start, and go on after the last cursor that they saw, whatever is cut."""

import asyncio
import contextlib
import json
import random

import websockets

from harness.clients import PAUSE_S, Client, read_event
from harness.history import Cursor, Event, Watch

CLOSED_OK = (1000, 1001, 1005, 1006, 1011, 1012, 1013)
"""Ends of a socket after which a client comes back."""

PINGS_S = 10.0


class Watcher:
    """Follows one contact until it has seen everything up to a cursor that is told to it at the end."""

    def __init__(self, client: Client, contact: str, name: str, *, leaves: random.Random | None = None) -> None:
        self.watch = Watch(name, client.tenant, contact)
        client.history.watches.append(self.watch)
        self._client = client
        self._target: Cursor | None = None
        self._leaves = leaves
        self._leave_at = 0

    def aim(self, target: Cursor) -> None:
        """Nothing more will come after this cursor."""
        self._target = target

    @property
    def has_all(self) -> bool:
        """Whether it has seen what it is to see."""
        return self._target is not None and self._last >= self._target

    @property
    def _last(self) -> Cursor:
        return self.watch.events[-1].cursor if self.watch.events else (0, 0)

    def _take(self, event: Event) -> bool:
        """Keep an event; False if it is time to leave: some come back again and again."""
        self.watch.events.append(event)
        self._client.board.heard((self.watch.tenant, self.watch.contact), event)
        if self._leaves is None:
            return True
        self._leave_at = self._leave_at or len(self.watch.events) + self._leaves.randint(5, 40)
        if len(self.watch.events) >= self._leave_at:
            self._leave_at = 0
            return False
        return True

    async def follow(self) -> None:
        """Watch over HTTP until cancelled."""
        path = f"/v1/contacts/{self.watch.contact}/events"
        while True:
            self.watch.connections += 1
            async with contextlib.aclosing(self._client.events(path, _text(self._last))) as events:
                async for event in events:
                    if not self._take(event):
                        break
            await asyncio.sleep(PAUSE_S / 2)

    async def follow_by_socket(self) -> None:
        """Watch over a WebSocket until cancelled."""
        url = self._client.url.replace("http", "ws", 1) + "/v1/ws"
        headers = {"authorization": f"Bearer {self._client.token}"}
        while True:
            self.watch.connections += 1
            try:
                async with websockets.connect(
                    url, additional_headers=headers, proxy=None, open_timeout=5, ping_interval=PINGS_S, close_timeout=1
                ) as socket:
                    await self._read(socket)
            except websockets.InvalidStatus as error:
                if error.response.status_code not in (429, 503):
                    self._client.history.errors.append(f"socket refused with {error.response.status_code}")
            except websockets.ConnectionClosed as error:
                code = error.rcvd.code if error.rcvd else 1006
                if code not in CLOSED_OK:
                    self._client.history.errors.append(f"socket closed with {code}")
            except (OSError, TimeoutError, websockets.WebSocketException):
                pass
            await asyncio.sleep(PAUSE_S)

    async def _read(self, socket: websockets.ClientConnection) -> None:
        params = {"contact": self.watch.contact, "after": _text(self._last)}
        await socket.send(json.dumps({"type": "req", "id": "1", "method": "events.subscribe", "params": params}))
        async for data in socket:
            frame = json.loads(data)
            if frame["type"] == "event" and frame["event"]["type"] == "error":
                self._client.check_end("/v1/ws", frame["event"]["data"])
                return
            if frame["type"] == "event":
                if not self._take(read_event(frame["event"])):
                    return
            elif frame["type"] == "res" and not frame["ok"]:
                if frame["error"].get("code") not in (8, 14):
                    self._client.history.errors.append(f"subscription refused: {frame['error']}")
                return


def _text(cursor: Cursor) -> str:
    return f"{cursor[0]}-{cursor[1]}"
