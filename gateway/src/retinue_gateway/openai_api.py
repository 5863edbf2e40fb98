"""OpenAI's API: models, and chat completions whose runs are as durable as any other."""

import asyncio
import hashlib
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec
from google.protobuf import json_format, struct_pb2
from google.rpc import status_pb2
from opentelemetry.trace import SpanKind
from retinue.edge.v1 import edge_service_pb2
from retinue.router.v1 import router_service_pb2, run_pb2
from retinue_kit import ids, telemetry, tenancy, wire
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import validate
from retinue_kit.streams import START, Cursor

from retinue_gateway import asgi, chat, encode, fields, sse
from retinue_gateway.chat import ApiError, Ask
from retinue_gateway.crash_points import Point
from retinue_gateway.credentials import Caller, Credentials
from retinue_gateway.events import Events, FindRun, Stream
from retinue_gateway.operations import CHAT, ENQUEUE, Operations
from retinue_gateway.relay import DivergedError, Relay

WHOLE_TIMEOUT_S = 600
"""How long a request that is not streamed waits for its run: as long as OpenAI's own clients do."""

KEYED_LENGTH = 26
"""Characters of the contact's name that is made from an idempotency key, as many as an id has."""

_ENDS = {run_pb2.RUN_STATE_FAILED: "run.failed", run_pb2.RUN_STATE_CANCELLED: "run.cancelled"}
DONE = b"data: [DONE]\n\n"
_encoder = msgspec.json.Encoder()


class OpenAi:
    """Serves OpenAI's API over HTTP."""

    def __init__(self, operations: Operations, events: Events, credentials: Credentials, runtimes: list[str]) -> None:
        self._operations = operations
        self._events = events
        self._credentials = credentials
        self._runtimes = runtimes

    async def models(self, request: asgi.Request) -> None:
        """GET /v1/models."""
        try:
            self._credentials.admit(request.headers)
        except RetinueError as error:
            await _refuse(request, chat.from_error(error))
            return
        names = chat.models(self._runtimes)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": chat.MODEL} for name in names]
        await request.answer_json(200, {"object": "list", "data": data})

    async def complete(self, request: asgi.Request) -> None:
        """POST /v1/chat/completions."""
        parent = request.headers.get("traceparent", "")
        with telemetry.span("chat.completions", kind=SpanKind.SERVER, traceparent=parent) as span:
            try:
                caller = self._credentials.admit(request.headers)
                tenancy.enter(caller.identity)
                span.set_attribute("tenant.id", caller.tenant_id)
                ask = chat.parse(await request.body(), self._runtimes)
                run, replayed = await self._submit(request, ask, caller)
                await _unless_left(request, self._answer(request, ask, caller, run, replayed))
            except ConnectionError:
                raise
            except Exception as error:
                told = error if isinstance(error, ApiError) else chat.from_error(encode.error(error))
                telemetry.fail(span, told.code or str(told.status))
                await _refuse(request, told)

    async def _submit(self, request: asgi.Request, ask: Ask, caller: Caller) -> tuple[run_pb2.Run, bool]:
        """Accept the message; a contact of its own is made from the key, so that a repeat finds the same run."""
        key = fields.check_key(request.headers.get("idempotency-key", ""))
        contact = ask.contact or _utf8(request.headers.get("x-contact", ""))
        earlier = [] if contact else ask.earlier
        if not contact:
            digest = hashlib.sha256(f"{caller.tenant_id}\n{key}".encode()).hexdigest()
            contact = f"chat_{digest[:KEYED_LENGTH]}" if key else ids.new_id("chat")
        message = edge_service_pb2.SendMessageRequest(contact=contact, text=ask.text, runtime=ask.runtime)
        validate(message)
        fields.check_contact(contact)
        fields.check_storable(message)
        parameters = struct_pb2.Struct()
        json_format.ParseDict(ask.parameters, parameters)
        fields.check_storable(router_service_pb2.SubmitRunRequest(parameters=parameters))
        context = [router_service_pb2.ContextMessage(role=role, text=text) for role, text in earlier]
        for part in context:
            fields.check_storable(part)
        return await self._operations.submit(
            router_service_pb2.SubmitRunRequest(
                tenant_id=caller.tenant_id,
                principal=caller.principal,
                contact=contact,
                text=ask.text,
                kind=CHAT,
                runtime=ask.runtime,
                on_busy=ENQUEUE,
                context=context,
                parameters=parameters if ask.parameters else None,
                idempotency_key=key,
            )
        )

    async def _answer(self, request: asgi.Request, ask: Ask, caller: Caller, run: run_pb2.Run, replayed: bool) -> None:
        after = Cursor.parse(run.after_cursor) if run.after_cursor else START
        headers = {"idempotent-replay": "true"} if replayed else {}
        known = None if replayed else after
        with await self._events.open(caller, run.log_id, after, known=known) as stream:
            find_run = partial(self._operations.find_run, run.run_id, caller)
            if ask.stream:
                await _Chunks(request, ask, run).tell(stream, headers, find_run)
            else:
                await self._tell_whole(request, ask, await _end(run.run_id, stream, find_run), headers)

    async def _tell_whole(self, request: asgi.Request, ask: Ask, run: run_pb2.Run, headers: dict[str, str]) -> None:
        """Answer what a run that is over has said."""
        _check_end(_ENDS.get(run.state, ""), run.error)
        message = {"role": "assistant", "content": run.output_text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = _usage(run.usage.input_tokens, run.usage.output_tokens)
        body = {**_head(ask, run, "chat.completion"), "choices": [choice], "usage": usage}
        reach(Point.COMPLETION_TELLING)
        await request.answer_json(200, body, headers)
        reach(Point.COMPLETION_TOLD)


async def _end(run_id: str, stream: Stream, find_run: FindRun) -> run_pb2.Run:
    """Wait until a run is over; answers it. Raises RetinueError(RUN_NOT_FOUND) if it was removed with its contact."""
    try:
        async with asyncio.timeout(WHOLE_TIMEOUT_S):
            return await stream.wait_for_end(run_id, find_run)
    except TimeoutError:
        raise ApiError(504, f"The run goes on as {run_id}.", code=str(Reason.RUN_TIMEOUT)) from None


class _Chunks:
    """Answers piece by piece."""

    def __init__(self, request: asgi.Request, ask: Ask, run: run_pb2.Run) -> None:
        self._request = request
        self._run = run
        self._include_usage = ask.include_usage
        self._head = _head(ask, run, "chat.completion.chunk")

    async def tell(self, stream: Stream, headers: dict[str, str], find_run: FindRun) -> None:
        await self._request.begin(200, sse.CONTENT_TYPE, {**dict(sse.HEADERS), **headers})
        await self._write({"role": "assistant", "content": ""})
        relay = Relay()
        try:
            while not relay.ended:
                entries = await stream.next()
                if not entries:
                    await find_run()  # one that was removed with its contact ends without a word
                    await self._request.write(sse.KEEP_ALIVE)
                text = ""
                for entry in entries:
                    if entry.run_id == self._run.run_id:
                        text += relay.feed(entry)
                    else:
                        relay.pass_over(entry.cursor)
                if text:
                    reach(Point.COMPLETION_TELLING)
                    await self._write({"content": text})
                    reach(Point.COMPLETION_TOLD)
            _check_end(relay.ended, json_format.ParseDict(relay.error or {}, status_pb2.Status()))
        except Exception as error:
            await self._request.write(_data(_told(error).body()), more=False)
            return
        await self._write({}, finish_reason="stop")
        if self._include_usage:
            usage = _usage(relay.usage.get("input_tokens", 0), relay.usage.get("output_tokens", 0))
            await self._request.write(_data({**self._head, "choices": [], "usage": usage}))
        await self._request.write(DONE, more=False)

    async def _write(self, delta: dict[str, str], finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        await self._request.write(_data(chunk))


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + _encoder.encode(value) + b"\n\n"


def _head(ask: Ask, run: run_pb2.Run, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{run.run_id}", "object": kind, "created": run.create_time.seconds, "model": ask.model}


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": int(read), "completion_tokens": int(written), "total_tokens": int(read) + int(written)}


def _check_end(ended: str, status: status_pb2.Status) -> None:
    """Raise ApiError unless the run has answered."""
    if ended == "run.cancelled":
        raise _final(ApiError(400, "The run was cancelled.", code="RUN_CANCELLED"))
    if ended == "run.failed":
        raise _final(chat.from_error(wire.from_status(status)))


def _final(error: ApiError) -> ApiError:
    error.final = True
    return error


def _told(error: Exception) -> ApiError:
    if isinstance(error, DivergedError):
        text = "The run was resumed and answers differently now; ask again."
        return ApiError(500, text, code="ANSWER_CHANGED")
    return error if isinstance(error, ApiError) else chat.from_error(encode.error(error))


async def _refuse(request: asgi.Request, error: ApiError) -> None:
    if request.begun:
        raise ConnectionError("an answer broke off") from error
    headers = {}
    if error.final:
        headers["x-should-retry"] = "false"
    elif error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    await request.answer_json(error.status, error.body(), headers)


async def _unless_left(request: asgi.Request, work: Coroutine[Any, Any, None]) -> None:
    """Do some work, but stop it when the client leaves; its run goes on."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(request.left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _utf8(value: str) -> str:
    """Read a header that may hold any script."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        raise RetinueError.field("x-contact", "must be UTF-8.") from None
