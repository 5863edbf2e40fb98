"""The bundled offline model: a small, deterministic server that speaks OpenAI's chat completions.

It repeats, it does not think; each plain answer says so. It lets Retinue run without an account, and it is the model of
the tests and the benchmark. `python -m retinue_local.offline_model --port N` listens on the loopback address and prints
its port as the first line (`--port 0` takes a free one).

`POST /v1/chat/completions` (streamed and not), `POST /v1/embeddings` (nearness by words that are shared), `GET
/v1/models`, `GET /health`. `GET /_stats` counts requests, those open now, and those whose client left before the end.
With `--record`, `GET /_requests` shows the latest requests: body, names of headers, traceparent.

Words of the last user message that begin with `#` steer the answer, for tests. Several may be given, also joined by
commas: `#tokens=20 #delay=50` or `#fail_times=2,status=503,key=a`.

    #tokens=N          an answer of exactly N tokens: "t0 t1 t2 …"
    #echo=TEXT         the rest of the message is the answer, as it stands
    #recall            the answer is all earlier user messages, joined by " | "
    #think=TEXT        the answer begins with <think>TEXT</think>; TEXT goes on to the next " #" or the end
    #reasoning=TEXT    the same in the field `reasoning_content`
    #card              the answer holds a card
    #first=MS          milliseconds before the first token
    #delay=MS          milliseconds between tokens
    #no_usage          usage is not told
    #status=N          refuse with this status; #code=TEXT is the error's code, #retry_after=S a header
    #fail_times=N      refuse only the first N requests that bear the same #key=TEXT (status 500 if none is given);
                       with #error, #cut, #hang or #nonsense those are what goes wrong with them instead
    #refuse_key=TEXT   refuse only requests with this API key (status 401 if none is given)
    #refuse_model=TEXT refuse only requests for this model
    #strict_roles      refuse two messages of one role in a row
    #error=N           an error event in the stream after N tokens
    #cut=N             close the connection after N tokens
    #hang              answer nothing at all; #hang=N falls silent after N tokens
    #nonsense          answer with a web page; #nonsense=stream with an event stream that makes no sense
    #tool=NAME {JSON}  call a tool, if there are tools; to the end of the line. `offline_tools` says how steps are made
"""

import argparse
import asyncio
import itertools
import json
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from retinue_local.offline_plan import BEFORE, NAME, ROLE, Plan, Request, count_tokens
from retinue_local.offline_vectors import vector_of

RECORDED_MAX = 200
"""Requests shown at /_requests, the latest ones."""

FAILURE_KEYS_MAX = 4096
"""Keys of #fail_times that are remembered; then counting begins anew."""

BODY_SIZE_MAX_BYTES = 8 * 1024 * 1024
"""Bytes of a request: a context of 200 messages fits many times."""

HANG_S = 3600.0
"""How long #hang is silent; no test waits that long."""

SHUTDOWN_TIMEOUT_S = 0.5
"""Time for answers under way when the process is told to stop."""

_TROUBLES = frozenset({"error", "cut", "hang", "nonsense"})
"""Directives of an answer that goes wrong."""

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


class Texts(msgspec.Struct):
    """A request for vectors."""

    input: list[str]
    model: str = NAME


_decode = msgspec.json.Decoder(Request).decode
_decode_texts = msgspec.json.Decoder(Texts).decode


class OfflineModel:
    """The server's state: counters and the latest requests."""

    def __init__(self, *, record: bool) -> None:
        self._record = record
        self._recorded: deque[dict[str, Any]] = deque(maxlen=RECORDED_MAX)
        self._failures: Counter[str] = Counter()
        self._request_count = 0
        self._open_count = 0
        self._aborted_count = 0

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=BODY_SIZE_MAX_BYTES)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/embeddings", self.embed)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/_stats", self.stats)
        if self._record:
            app.router.add_get("/_requests", self.requests)
        return app

    async def health(self, _request: web.Request) -> web.Response:
        """Say that it serves."""
        return web.json_response({"ok": True, "model": "Retinue's bundled offline model"})

    async def models(self, _request: web.Request) -> web.Response:
        """List the one model."""
        model = {"id": NAME, "object": "model", "created": 0, "owned_by": "retinue"}
        return web.json_response({"object": "list", "data": [model]})

    async def stats(self, _request: web.Request) -> web.Response:
        """Tell the counters."""
        return web.json_response(
            {"requests": self._request_count, "open": self._open_count, "aborted": self._aborted_count}
        )

    async def requests(self, _request: web.Request) -> web.Response:
        """Show the latest requests, oldest first."""
        return web.json_response(list(self._recorded))

    async def embed(self, http: web.Request) -> web.Response:
        """Turn texts into vectors."""
        self._request_count += 1
        try:
            asked = _decode_texts(await http.read())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _refusal(400, f"The request is not valid: {error}", "invalid_request")
        data = [{"index": index, "embedding": vector_of(text)} for index, text in enumerate(asked.input)]
        tokens = sum(map(count_tokens, asked.input))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "model": asked.model, "data": data, "usage": usage})

    async def complete(self, http: web.Request) -> web.StreamResponse:
        """Answer a conversation."""
        data = await http.read()
        self._request_count += 1
        try:
            request = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _refusal(400, f"The request is not valid: {error}", "invalid_request")
        if self._record:
            recorded = {"headers": sorted(http.headers), "traceparent": http.headers.get("traceparent", "")}
            self._recorded.append({**recorded, "body": json.loads(data)})
        plan = Plan(request)
        self._open_count += 1
        try:
            refused = self._refuse(plan, request, http.headers.get("Authorization", ""))
            if refused is not None:
                return refused
            if plan.options.get("hang") == "":
                await asyncio.sleep(HANG_S)
            if plan.options.get("nonsense") == "":
                return web.Response(text="<html>It works!</html>", content_type="text/html")
            if not request.stream:
                return self._whole(plan)
            return await self._stream(http, plan, request)
        except (asyncio.CancelledError, ConnectionError):
            self._aborted_count += 1
            raise
        finally:
            self._open_count -= 1

    def _refuse(self, plan: Plan, request: Request, authorization: str) -> web.Response | None:
        options = plan.options
        if not options:
            return None
        status = plan.number("status", 0)
        if "strict_roles" in options:
            roles = [message.role for message in request.messages]
            if any(one == other for one, other in itertools.pairwise(roles)):
                return _refusal(400, "Conversation roles must alternate user/assistant/...", "bad_request")
        if "fail_times" in options:
            if self._recovered(plan):
                return None
            status = status or (0 if _TROUBLES & options.keys() else 500)
        if "refuse_key" in options:
            if authorization != f"Bearer {options['refuse_key']}":
                return None
            status = status or 401
        if "refuse_model" in options:
            if request.model != options["refuse_model"]:
                return None
            status = status or 500
        if not 400 <= status < 600:
            return None
        key = authorization.removeprefix("Bearer ")
        message = f"The offline model was asked to refuse with {status}{f' (key {key})' if key else ''}."
        return _refusal(status, message, options.get("code", "asked_for"), options.get("retry_after", ""))

    def _recovered(self, plan: Plan) -> bool:
        """Count a request that bears #fail_times; whether nothing goes wrong any more."""
        if len(self._failures) >= FAILURE_KEYS_MAX:
            self._failures.clear()
        key = plan.options.get("key", "")
        self._failures[key] += 1
        if self._failures[key] <= plan.number("fail_times", 0):
            return False
        for name in _TROUBLES & plan.options.keys():
            del plan.options[name]
        return True

    def _whole(self, plan: Plan) -> web.Response:
        tokens = count_tokens(plan.text)
        reason = "tool_calls" if plan.calls else "stop"
        message: dict[str, Any] = {"role": "assistant", "content": plan.text}
        if plan.calls:
            message["tool_calls"] = [call.whole() for call in plan.calls]
        return web.json_response(
            {
                "id": "chatcmpl-offline",
                "object": "chat.completion",
                "created": 0,
                "model": NAME,
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": _usage(plan.input_tokens, tokens),
            }
        )

    async def _stream(self, http: web.Request, plan: Plan, request: Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=_HEADERS)
        response.enable_chunked_encoding()
        first_s, delay_s = plan.number("first", 0) / 1000, plan.number("delay", 0) / 1000
        await response.prepare(http)
        count = 0
        async for chunk in _paced(plan, first_s, delay_s):
            if count == plan.number("cut", -1):
                assert http.transport is not None
                http.transport.close()
                return response
            if count == plan.number("hang", -1):
                await asyncio.sleep(HANG_S)
            if count == plan.number("error", -1):
                await response.write(b'data: {"error":{"message":"The engine has stopped.","code":503}}\n\n')
                return response
            await response.write(chunk)
            count += 1
        ending = plan.ending()
        if request.stream_options and request.stream_options.include_usage and "no_usage" not in plan.options:
            usage = json.dumps(_usage(plan.input_tokens, count)).encode()
            ending += BEFORE + b'[],"usage":' + usage + b"}\n\n"
        await response.write_eof(ending + b"data: [DONE]\n\n")
        return response


async def _paced(plan: Plan, first_s: float, delay_s: float) -> AsyncIterator[bytes]:
    """The answer's events, each at its time; the role goes with the first token."""
    if plan.options.get("nonsense") == "stream":
        yield b"data: <html>It works!</html>\n\n"
        return
    before = ROLE
    if first_s:
        await asyncio.sleep(first_s)
    for chunk in plan.chunks():
        yield before + chunk
        before = b""
        if delay_s:
            await asyncio.sleep(delay_s)


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    total = input_tokens + output_tokens
    return {"prompt_tokens": input_tokens, "completion_tokens": output_tokens, "total_tokens": total}


def _refusal(status: int, message: str, code: str, retry_after: str = "") -> web.Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    error = {"message": message, "type": "offline_model", "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


async def serve(port: int, *, record: bool) -> None:
    """Listen on the loopback address until SIGTERM or SIGINT; the port goes to standard output once it is open."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A client that leaves must be noticed, or #hang would hold its handler and no abort would be counted.
    runner = web.AppRunner(
        OfflineModel(record=record).app(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        sys.stdout.write(f"{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()


def main() -> None:
    """Read the command line and serve. Exits with 2 if the port is taken."""
    parser = argparse.ArgumentParser(prog="retinue_local.offline_model", description="Retinue's bundled offline model.")
    parser.add_argument("--port", type=int, required=True, help="port on the loopback address; 0 takes a free one")
    parser.add_argument("--record", action="store_true", help="show the latest requests at /_requests")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.port, record=options.record))
    except (OSError, OverflowError) as error:
        sys.stderr.write(f"offline model: cannot listen on port {options.port}: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
