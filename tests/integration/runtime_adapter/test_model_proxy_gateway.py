"""A real gateway in front of the model endpoint: what the endpoint says has to mean there what it is to mean."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from proxying import INSTANCE, TENANT, Proxy, proxies
from retinue_kit import ids
from retinue_kit.clock import SystemClock
from retinue_kit.errors import Reason
from retinue_runtime_adapter.openclaw import tool_policy
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.gateway_config import CONFIG_NAME, Agent, openclaw_json
from retinue_runtime_adapter.openclaw.ports import Frame, Meter, RunCall

AGENT, TOKEN = "ten-a", "secret"
START_TIMEOUT_S = 330.0
"""Seven seconds on an idle machine."""

RUN_TIMEOUT_S = 120.0
"""Many times what a run takes: a machine may be busy with other tests."""

STOP_TIMEOUT_S = 30.0
LOG_SIZE_MAX = 10_000


class Ended(NamedTuple):
    """A run that is over."""

    meter: Meter
    final: dict[str, Any]
    text: str
    heard: str

    @property
    def is_well(self) -> bool:
        """Whether it has an answer."""
        return self.final.get("status") == "ok"


class Behind:
    """A gateway with one agent, behind whose model calls stands the endpoint under test."""

    def __init__(self, proxy: Proxy, gateway: WebSocketGateway) -> None:
        self.proxy = proxy
        self._gateway = gateway

    async def say(self, text: str, **run: Any) -> Ended:
        """Let a run say something, in a session of its own."""
        call = self._call(text)
        heard: list[str] = []
        trace_id = call.traceparent.split("-")[1]
        with self.proxy.run(run_id=call.run_id, trace_id=trace_id, on_reasoning=heard.append, **run) as meter:
            frames = await self.follow(call)
        told = [f.body["data"] for f in frames if f.kind == "event" and f.body["stream"] == "assistant"]
        text = told[-1]["text"] if told else ""
        return Ended(meter, frames[-1].body, text, "".join(heard))

    def _call(self, text: str) -> RunCall:
        run_id = ids.new_id("run")
        return RunCall(
            run_id=run_id,
            agent_id=AGENT,
            session_key=f"agent:{AGENT}:retinue:{run_id.replace('_', '-')}",
            text=text,
            system="",
            time_s=60,
            traceparent=f"00-{os.urandom(16).hex()}-{'1' * 16}-01",
        )

    async def follow(self, call: RunCall | str) -> list[Frame]:
        """Let a run be executed to its end, with or without the endpoint knowing of it."""
        call = self._call(call) if isinstance(call, str) else call
        async with asyncio.timeout(RUN_TIMEOUT_S):
            return [frame async for frame in self._gateway.run(call)]


@contextmanager
def process(openclaw_dir: Path, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a gateway."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "OPENCLAW_STATE_DIR": str(folder),
        "OPENCLAW_CONFIG_PATH": str(folder / CONFIG_NAME),
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        "OPENCLAW_SKIP_CHANNELS": "1",
        "OPENCLAW_SKIP_CRON": "1",
        "NODE_COMPILE_CACHE": str(openclaw_dir / "cache"),
    }
    program = openclaw_dir / "node_modules" / "openclaw" / "openclaw.mjs"
    argv = [openclaw_dir / "node", program, "gateway", "run", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(argv, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield started
    finally:
        sys.stdout.write((folder / "log").read_text(errors="replace")[-LOG_SIZE_MAX:])
        started.terminate()
        try:
            started.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(STOP_TIMEOUT_S)


@pytest_asyncio.fixture
async def behind(openclaw_dir: Path, offline_model: Any, run_dir: Path) -> AsyncIterator[Behind]:
    """Answer a gateway whose agent is warmed up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with proxies() as make:
        proxy = await make(offline_model.base_url)
        agent = Agent(AGENT, proxy.proxy.base_url, proxy.proxy.credential(INSTANCE, TENANT))
        policy = tool_policy.policy(str(tool_policy.PLUGIN_DIR), "", "")
        config = openclaw_json(
            port=port, token=TOKEN, proxy_base_url=proxy.proxy.base_url, policy=policy, agents=[agent]
        )
        (run_dir / CONFIG_NAME).write_bytes(config)
        with process(openclaw_dir, run_dir, port):
            gateway = WebSocketGateway(f"127.0.0.1:{port}", TOKEN, SystemClock())
            try:
                await gateway.start(START_TIMEOUT_S)
                found = Behind(proxy, gateway)
                with proxy.proxy.warm(INSTANCE, TENANT):
                    assert (await found.follow("hello"))[-1].body["status"] == "ok"
                yield found
            finally:
                await gateway.close()


@pytest.mark.timeout(900)
async def test_a_real_gateway_understands_what_the_endpoint_says(behind: Behind, offline_model: Any) -> None:
    """One test, for a gateway takes seconds to start."""
    count = offline_model.stats()["requests"]
    assert (await behind.say("#tokens=3")).text == "t0 t1 t2"
    assert offline_model.stats()["requests"] == count + 1

    # Whatever goes wrong at the model ends the run at once, without another call, and the next run is served.
    for text, reason in (
        ("#status=500", Reason.MODEL_UNAVAILABLE),
        ("#status=401", Reason.MODEL_AUTH),
        ("#status=429,retry_after=30", Reason.MODEL_RATE_LIMITED),
        ("#tokens=9 #cut=3 #delay=20", Reason.MODEL_RESPONSE_INVALID),
        ("#tokens=9 #error=3 #delay=20", Reason.MODEL_UNAVAILABLE),
        ("#status=400,code=context_length_exceeded", Reason.MODEL_CONTEXT_OVERFLOW),
    ):
        ended = await behind.say(text)
        assert not ended.is_well, ended
        assert ended.meter.trouble is not None
        assert ended.meter.trouble.reason is reason
        assert ended.meter.calls == 1
    ended = await behind.say("#tokens=2")
    assert (ended.text, ended.meter.trouble, ended.meter.output_tokens) == ("t0 t1", None, 2)

    # A run that we know nothing of, and a credential that is over, end their run and nothing else.
    assert (await behind.follow("#tokens=1"))[-1].body["status"] == "error"
    proxy = behind.proxy.proxy
    proxy.assign(INSTANCE, TENANT, "ten_other")
    assert not (await behind.say("#tokens=1")).is_well
    proxy.assign(INSTANCE, "ten_other", TENANT)

    # What the model thinks is heard once and is no part of the text.
    for text in ("#tokens=2 #reasoning=let me see #delay=5", "#tokens=2 #think=let me see #delay=5"):
        ended = await behind.say(text)
        assert (ended.text, ended.heard) == ("t0 t1", "let me see")
