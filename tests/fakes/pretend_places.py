"""What an attempt on OpenClaw meets: a pool whose one gateway plays a script, and a model endpoint that notes runs."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue_runtime_adapter.openclaw import keys
from retinue_runtime_adapter.openclaw.ports import Frame, Load, Meter, Place

TENANT = "ten_a"


def assistant(text, delta=None):
    return Frame("event", {"stream": "assistant", "data": {"text": text, "delta": delta or text, "itemId": "i:1"}})


def final(*texts, tokens=(3, 2)):
    usage = {"input": tokens[0], "output": tokens[1], "cost": {"total": 0}}
    return Frame(
        "final",
        {
            "status": "ok",
            "result": {
                "payloads": [{"text": text} for text in texts],
                "meta": {"agentMeta": {"usage": usage, "model": "default"}, "stopReason": "stop"},
            },
        },
    )


class FakeGateway:
    """Plays what it is given; joining a run plays it from the beginning."""

    def __init__(self):
        self.calls, self.aborted, self.script, self.gate = [], [], [], asyncio.Event()
        self.asked, self.history = [], {}

    async def request(self, method, params, *, timeout_s, traceparent=""):
        self.asked.append((method, params))
        if isinstance(self.history, Exception):
            raise self.history
        return self.history

    async def run(self, call):
        self.calls.append(call)
        for frame in list(self.script):
            if frame is None:
                await self.gate.wait()
            elif isinstance(frame, Exception):
                raise frame
            else:
                yield frame

    async def abort(self, session_key, run_id):
        self.aborted.append((session_key, run_id))
        self.gate.set()
        return True


class FakePool:
    def __init__(self, gateway):
        self.gateway, self.sessions, self.placed, self.held, self.trouble = gateway, {}, [], 0, None
        self.begun, self.is_serving = [], True

    def status(self):
        return True, "one gateway"

    def load(self):
        return Load(4, self.held, 2)

    def present(self, tenant_id):
        if not self.is_serving:
            return None
        return Place("ins_1", keys.agent_id(tenant_id), self.gateway, self.sessions, self.begun.append)

    @asynccontextmanager
    async def place(self, tenant_id, isolation, *, wait_s):
        if self.trouble is not None:
            raise self.trouble
        self.placed.append((tenant_id, isolation))
        self.held += 1
        try:
            yield Place("ins_1", keys.agent_id(tenant_id), self.gateway, self.sessions, self.begun.append)
        finally:
            self.held -= 1


class FakeProxy:
    def __init__(self):
        self.runs, self.meter = [], Meter()

    @contextmanager
    def run(self, **given):
        self.runs.append(given)
        yield self.meter


def request(text="hello", **fields):
    made = {"tenant_id": TENANT, "run_id": "run_1", "session_id": "ses_1", "attempt": 1, "contact": "anna"}
    return pb.InvokeRequest(**{**made, "runtime": "openclaw", "text": text, **fields})


async def events_of(adapter, asked):
    return [event async for batch in adapter.invoke(asked) for event in batch]


def kinds(events):
    return [event.WhichOneof("event") for event in events]
