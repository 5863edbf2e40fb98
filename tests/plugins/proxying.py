"""The model endpoint for gateways, driven as a gateway does, and endpoints behind it that do as a test says."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from retinue_kit.clock import SystemClock
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.openclaw.model_proxy import LoopbackModelProxy
from retinue_runtime_adapter.openclaw.ports import Meter

INSTANCE, TENANT = "ins_a", "ten_a"
DONE = "[DONE]"


class Answered(NamedTuple):
    """An answer: its status and its body, whole."""

    status: int
    body: bytes

    @property
    def events(self) -> list[str]:
        """The data of a stream's events, without the last one's mark."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines)
        found = [line.removeprefix("data: ") for line in lines]
        return found[:-1] if found[-1] == DONE else found

    @property
    def is_whole(self) -> bool:
        """Whether a stream has the mark of its end."""
        return self.body.endswith(f"data: {DONE}\n\n".encode())

    @property
    def text(self) -> str:
        """What a stream says."""
        chunks = [json.loads(event) for event in self.events]
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)

    @property
    def error(self) -> dict[str, Any]:
        """What a refusal says."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A request as OpenClaw makes it."""
    made = {"model": "default", "messages": [{"role": "user", "content": text}], "stream": True}
    return {**made, "stream_options": {"include_usage": True}, "max_completion_tokens": 8192, **fields}


def traceparent(trace: str) -> str:
    """A traceparent of a trace."""
    return f"00-{trace}-{'b' * 16}-01"


class Proxy:
    """An endpoint that serves, and a gateway's client of it."""

    def __init__(self, proxy: LoopbackModelProxy, http: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self._http = http

    def run(self, *, instance: str = INSTANCE, tenant: str = TENANT, **fields: Any) -> AbstractContextManager[Meter]:
        """Let a run's calls through."""
        made = {"run_id": "run_a", "trace_id": "", "model": "", "parameters": {}, "on_reasoning": None}
        return self.proxy.run(instance_id=instance, tenant_id=tenant, **{**made, **fields})

    @asynccontextmanager
    async def open(
        self, asked: dict[str, Any] | bytes, *, credential: str | None = None, trace: str = "", tenant: str = TENANT
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and answer as soon as the head of the answer is there."""
        credential = self.proxy.credential(INSTANCE, tenant) if credential is None else credential
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if credential:
            headers["Authorization"] = f"Bearer {credential}"
        if trace:
            headers["traceparent"] = traceparent(trace)
        body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        async with self._http.post(
            f"{self.proxy.base_url}/chat/completions", data=io.BytesIO(body), headers=headers
        ) as response:
            yield response

    async def ask(self, asked: str | dict[str, Any] | bytes, **options: Any) -> Answered:
        """Ask, and read the answer to its end."""
        async with self.open(chat(asked) if isinstance(asked, str) else asked, **options) as response:
            return Answered(response.status, await response.read())

    async def get(self, path: str, credential: str) -> Answered:
        """Read something else."""
        headers = {"Authorization": f"Bearer {credential}"}
        async with self._http.get(self.proxy.base_url + path, headers=headers) as response:
            return Answered(response.status, await response.read())


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def upstream(answer: Answer, path: str = "/chat/completions") -> AsyncIterator[str]:
    """Serve a model's endpoint that answers as it is told; yields its base address."""
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post(f"/v1{path}", answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def event(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> bytes:
    """A chunk of a model's answer, as it goes over the wire."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], **fields}
    chunk["choices"][0]["finish_reason"] = finish  # type: ignore[index]
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


END = event({}, "stop") + b"data: [DONE]\n\n"


def streaming(*parts: bytes | asyncio.Event, status: int = 200) -> Answer:
    """Answer with these bytes, each written by itself, waiting for the events among them."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(status=status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            if isinstance(part, asyncio.Event):
                await part.wait()
            else:
                await response.write(part)
        await response.write_eof()
        return response

    return answer


@asynccontextmanager
async def proxies() -> AsyncIterator[Callable[..., Awaitable[Proxy]]]:
    """Answer a maker of endpoints: `await make(base_url, model_api_key="a,b")` sets settings."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)))

        async def make(base_url: str, **fields: Any) -> Proxy:
            settings = Settings(**{"address": "", "model_base_url": base_url, **fields})
            http = await stack.enter_async_context(session(settings))
            proxy = LoopbackModelProxy(settings, read_models(settings), http, SystemClock())
            await proxy.start()
            stack.push_async_callback(proxy.close)
            return Proxy(proxy, client)

        yield make
