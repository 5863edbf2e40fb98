"""WebSocket: one socket for everything of one tenant."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog
from google.protobuf import json_format
from google.protobuf.message import Message
from opentelemetry.trace import SpanKind
from retinue.edge.v1 import approval_pb2, edge_service_pb2
from retinue_kit import telemetry, tenancy
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import validate
from retinue_kit.streams import Cursor, Entry

from retinue_gateway import encode, fields
from retinue_gateway.asgi import Receive, Scope, Send, headers_of
from retinue_gateway.crash_points import Point
from retinue_gateway.credentials import Caller, Credentials
from retinue_gateway.events import Events
from retinue_gateway.frames import FRAME_SIZE_MAX_BYTES, Frame, error_event, event_frame, refusal_frame, result_frame
from retinue_gateway.operations import Operations

PROTOCOL = "retinue.v1"
SOCKETS_MAX = 4000
"""Sockets at once in this process: twice what one tenant may rely on, at some 50 KiB each when idle."""

SUBSCRIPTIONS_MAX = 256
"""Contacts that one socket may watch."""

OUT_SIZE_MAX_BYTES = 1024 * 1024
OUT_FRAMES_MAX = 4096
"""What may wait to be sent on one socket. A replay waits for room; what is live does not wait for long."""

STALL_S = 5.0
"""How long a full buffer may stay full: a reader that takes nothing for so long is gone, or does not care."""

CLOSE_TRY_LATER = 1013
CLOSE_RESTART = 1012
CLOSE_CREDENTIAL = 4401
CLOSE_NOW = "retinue.close_now"
"""Name of the ASGI extension that closes without waiting until the peer has read what was sent before."""

_CODES = {
    Reason.DRAINING: CLOSE_RESTART,
    Reason.CREDENTIAL_INVALID: CLOSE_CREDENTIAL,
    Reason.CREDENTIAL_EXPIRED: CLOSE_CREDENTIAL,
    Reason.SCOPE_MISSING: CLOSE_CREDENTIAL,
    Reason.CREDENTIAL_MISSING: CLOSE_CREDENTIAL,
}
M = TypeVar("M", bound=Message)
log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Sockets:
    """Serves sockets, a bounded number of them."""

    def __init__(self, operations: Operations, events: Events, credentials: Credentials) -> None:
        self.operations = operations
        self.events = events
        self.credentials = credentials
        self._count = 0

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket from its opening to its end, as ASGI calls it."""
        await receive()
        offered = PROTOCOL if PROTOCOL in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": offered})
        headers = headers_of(scope)
        try:
            caller = self.credentials.admit(headers)
        except RetinueError as error:
            await send({"type": "websocket.close", "code": CLOSE_CREDENTIAL, "reason": error.message})
            return
        if self._count >= SOCKETS_MAX:
            await send({"type": "websocket.close", "code": CLOSE_TRY_LATER, "reason": "Too many sockets; try later."})
            return
        self._count += 1
        tenancy.enter(caller.identity)
        socket = Socket(self, caller, headers.get("traceparent", ""))
        self.events.attendance.add(socket)
        try:
            await socket.serve(receive, send)
        except RetinueError as error:
            await _close(scope, send, error)
        finally:
            self.events.attendance.remove(socket)
            self._count -= 1


async def _close(scope: Scope, send: Send, error: RetinueError) -> None:
    code = _CODES.get(error.reason, CLOSE_TRY_LATER)
    close_now: Callable[[int, str], None] | None = scope.get("extensions", {}).get(CLOSE_NOW)
    if close_now is not None:
        close_now(code, error.message)
    else:
        await send({"type": "websocket.close", "code": code, "reason": error.message})


class Socket:
    """One socket: what it asks is answered in its order; what it watches is told beside that."""

    lasting = True

    def __init__(self, sockets: Sockets, caller: Caller, traceparent: str) -> None:
        self.caller = caller
        self._operations = sockets.operations
        self._events = sockets.events
        self._traceparent = traceparent
        self._out: deque[str] = deque()
        self._out_size = 0
        self._has_out = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._ended = asyncio.Event()
        self._error: RetinueError | None = None
        self._subscriptions: dict[str, asyncio.Task[None]] = {}
        self._methods: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            "messages.send": self._send_message,
            "events.subscribe": self._subscribe,
            "events.unsubscribe": self._unsubscribe,
            "runs.get": self._get_run,
            "runs.cancel": self._cancel_run,
            "approvals.decide": self._decide,
            "ping": self._ping,
        }

    async def serve(self, receive: Receive, send: Send) -> None:
        """Talk until the peer leaves; raises RetinueError if it is to be closed for a reason."""
        limits = {
            "frame_bytes": FRAME_SIZE_MAX_BYTES,
            "buffer_bytes": OUT_SIZE_MAX_BYTES,
            "subscriptions": SUBSCRIPTIONS_MAX,
        }
        self._tell(_json({"type": "hello", "protocol": 1, "methods": list(self._methods), "limits": limits}))
        works = (self._listen(receive), self._speak(send), self._ended.wait())
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._error is not None:
                raise self._error
            for task in done:
                task.result()
        except OSError:
            log.debug("socket lost")
        finally:
            tasks += self._subscriptions.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end(self, error: RetinueError) -> None:
        """Close the socket for a reason."""
        self._error = self._error or error
        self._ended.set()

    def look(self, now: float) -> None:
        """Nothing is due: the server below sends pings."""

    async def _listen(self, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await self._room()
            self._tell(await self._answer(message.get("text")))

    async def _speak(self, send: Send) -> None:
        while True:
            await self._has_out.wait()
            self._has_out.clear()
            while self._out:
                text = self._out.popleft()
                self._out_size -= len(text)
                if self._out_size <= OUT_SIZE_MAX_BYTES // 2 and len(self._out) <= OUT_FRAMES_MAX // 2:
                    self._has_room.set()
                reach(Point.SOCKET_TELLING)
                await send({"type": "websocket.send", "text": text})
                reach(Point.SOCKET_TOLD)

    def _tell(self, text: str) -> None:
        self._out.append(text)
        self._out_size += len(text)
        self._has_out.set()
        if self._out_size > OUT_SIZE_MAX_BYTES or len(self._out) > OUT_FRAMES_MAX:
            self._has_room.clear()

    async def _room(self) -> None:
        """Wait until there is room for one more frame. Raises RetinueError(SLOW_CONSUMER)."""
        if self._has_room.is_set():
            return
        try:
            async with asyncio.timeout(STALL_S):
                await self._has_room.wait()
        except TimeoutError:
            error = RetinueError(Reason.SLOW_CONSUMER, "The reader is too slow; resume with the last cursor.")
            self.end(error)
            raise error from None

    async def _answer(self, text: str | None) -> str:
        """Answer a frame."""
        frame = Frame()
        try:
            frame.read(text)
            method = self._methods.get(frame.method)
            if method is None:
                raise RetinueError(Reason.ROUTE_NOT_FOUND, f"There is no method {frame.method[:64]!r}.")
            with telemetry.span(f"ws.{frame.method}", kind=SpanKind.SERVER, traceparent=self._traceparent):
                return result_frame(frame.id, await method(frame.params))
        except Exception as error:
            return refusal_frame(frame.id, encode.error(error))

    async def _send_message(self, params: dict[str, Any]) -> dict[str, Any]:
        key = params.pop("idempotency_key", "")
        if not isinstance(key, str):
            raise RetinueError.field("idempotency_key", "must be a string.")
        request = _read(params, edge_service_pb2.SendMessageRequest())
        run, replayed = await self._operations.send(request, self.caller, key)
        result: dict[str, Any] = {"run": encode.to_json(encode.run(run))}
        return {**result, "replayed": True} if replayed else result

    async def _get_run(self, params: dict[str, Any]) -> dict[str, Any]:
        request = _read(_named(params, "run"), edge_service_pb2.GetRunRequest())
        return {"run": encode.to_json(await self._operations.get_run(request, self.caller))}

    async def _cancel_run(self, params: dict[str, Any]) -> dict[str, Any]:
        request = _read(_named(params, "run"), edge_service_pb2.CancelRunRequest())
        return {"run": encode.to_json(await self._operations.cancel_run(request, self.caller))}

    async def _decide(self, params: dict[str, Any]) -> dict[str, Any]:
        request = _read(_named(params, "approval"), approval_pb2.DecideApprovalRequest())
        return {"approval": encode.to_json(await self._operations.decide_approval(request, self.caller))}

    async def _ping(self, params: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _subscribe(self, params: dict[str, Any]) -> dict[str, Any]:
        request = _read(params, edge_service_pb2.WatchContactRequest())
        fields.check_contact(request.contact)
        after = Cursor.parse(request.after) if request.after else None
        if request.contact not in self._subscriptions and len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            text = f"A socket has at most {SUBSCRIPTIONS_MAX} subscriptions."
            raise RetinueError(Reason.QUOTA_EXCEEDED, text)
        log_id, last = await self._events.find_log(self.caller.tenant_id, request.contact)
        self._cancel(request.contact)
        # Its first event is told after the answer: this task goes on to tell that before it waits for anything.
        watching = asyncio.create_task(self._watch(request.contact, log_id, after or last, last))
        self._subscriptions[request.contact] = watching
        return {"contact": request.contact, "after": str(after or last)}

    async def _unsubscribe(self, params: dict[str, Any]) -> dict[str, Any]:
        request = _read(params, edge_service_pb2.WatchContactRequest())
        self._cancel(request.contact)
        return {"contact": request.contact}

    def _cancel(self, contact: str) -> None:
        task = self._subscriptions.pop(contact, None)
        if task is not None:
            task.cancel()

    async def _watch(self, contact: str, log_id: str, after: Cursor, known: Cursor) -> None:
        """Tell a contact's events until the subscription is cancelled."""
        try:
            watch = await self._events.watch(self.caller.tenant_id, log_id, after, known)
            try:
                while True:
                    entries: list[Entry] = await watch.next()
                    await self._room()
                    for entry in entries:
                        self._tell(event_frame(contact, entry))
            finally:
                self._events.subscriber.close(watch)
        except Exception as error:
            told = encode.error(error)
            if told.reason is Reason.SLOW_CONSUMER:
                self.end(told)
            else:
                self._tell(error_event(contact, told))
                if self._subscriptions.get(contact) is asyncio.current_task():
                    del self._subscriptions[contact]


def _named(params: dict[str, Any], name: str) -> dict[str, Any]:
    """Read a thing's id under its path's name or its own field's."""
    return {**params, name: params[f"{name}_id"]} if f"{name}_id" in params and name not in params else params


def _read(params: dict[str, Any], request: M) -> M:
    """Read params as a request of the API. Raises RetinueError(FIELD_INVALID)."""
    try:
        json_format.ParseDict(params, request, ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise RetinueError.field("params", str(error)[:200]) from None
    validate(request)
    return request


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
