"""The service as a process, and its servicer under a caller that does not read."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2_grpc import RuntimeAdapterServiceStub
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent, TextDelta
from retinue_runtime_adapter.adapter import Adapter, Registry
from retinue_runtime_adapter.service import service

START_TIMEOUT_S = 30.0
BATCH_SIZE = 100_000

REQUEST = pb.InvokeRequest(
    tenant_id="ten_a", run_id="run_a", session_id="ses_a", attempt=1, fencing_token=1, runtime="light", text="#tokens=2"
)


async def test_the_process_serves_and_stops(
    launch: Any, peer: Any, run_dir: Path, offline_model: Any, healthy: Any
) -> None:
    address = f"unix:{run_dir}/a.sock"
    process = launch("retinue_runtime_adapter", RETINUE_ADDRESS=address, RETINUE_MODEL_BASE_URL=offline_model.base_url)
    client = peer("runtime-adapter", address)
    await healthy(client)
    stub = RuntimeAdapterServiceStub(client.channel)
    described = await client.call(stub.DescribeRuntimes, pb.DescribeRuntimesRequest())
    assert [runtime.name for runtime in described.runtimes] == ["light"]
    assert described.runtimes[0].detail == f"offline model at {offline_model.origin}"
    answers = [answer async for answer in client.stream(stub.Invoke, REQUEST, timeout_s=START_TIMEOUT_S)]
    assert "".join(event.text_delta.text for answer in answers for event in answer.events) == "t0 t1"
    process.terminate()
    assert await asyncio.to_thread(process.wait, START_TIMEOUT_S) == 0


MODEL = {"RETINUE_MODEL_BASE_URL": "http://127.0.0.1:9/v1"}
CLAW = {"RETINUE_RUNTIMES": "openclaw", "RETINUE_OPENCLAW_DIR": "/nowhere", "RETINUE_OPENCLAW_STATE_DIR": "/nowhere"}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "RETINUE_MODEL_BASE_URL is not set"),
        ({**MODEL, "RETINUE_RUNTIMES": "light,openclaw"}, "RETINUE_OPENCLAW_DIR is not set"),
        ({**MODEL, "RETINUE_RUNTIMES": "openclaw", "RETINUE_OPENCLAW_BACKEND": "abacus"}, "'abacus' is none of"),
        ({**MODEL, **CLAW, "RETINUE_OPENCLAW_PROXY_ADDRESS": "nowhere"}, "'nowhere' must be host:port"),
        ({"RETINUE_RUNTIMES": "abacus"}, "there is no runtime 'abacus'"),
        ({"RETINUE_MODEL_BASE_URL": "localhost:11434"}, "RETINUE_MODEL_BASE_URL='localhost:11434' is not an address"),
        ({"RETINUE_MODELS_FILE": "/nowhere.json"}, "RETINUE_MODELS_FILE='/nowhere.json' cannot be read"),
    ],
)
async def test_a_wrong_setting_is_one_line_and_exit_2(
    launch: Any, run_dir: Path, environ: dict[str, str], said: str
) -> None:
    process = launch("retinue_runtime_adapter", RETINUE_ADDRESS=f"unix:{run_dir}/a.sock", **environ)
    assert await asyncio.to_thread(process.wait, START_TIMEOUT_S) == 2
    assert said in process.log()
    assert len(process.log().splitlines()) == 1


class Fountain(Adapter):
    """A runtime that never stops talking."""

    name = "light"

    def __init__(self) -> None:
        self.batches = 0
        self.closed = False

    def describe(self) -> pb.Runtime:
        return pb.Runtime(name=self.name)

    def abort(self, tenant_id: str, run_id: str) -> bool:
        return False

    async def close(self) -> None:
        pass

    async def invoke(self, request: pb.InvokeRequest) -> AsyncGenerator[list[RuntimeEvent], None]:
        try:
            while True:
                self.batches += 1
                yield [RuntimeEvent(text_delta=TextDelta(text="x" * BATCH_SIZE))]
                await asyncio.sleep(0)
        finally:
            self.closed = True


async def test_a_caller_that_does_not_read_holds_the_runtime_back_and_frees_it_when_it_leaves(
    serve: Any, peer: Any, eventually: Any
) -> None:
    fountain = Fountain()
    client = peer("runtime-adapter", await serve([service(Registry([fountain]))]))
    call = RuntimeAdapterServiceStub(client.channel).Invoke(REQUEST)
    seen = -1

    async def stalled() -> bool:
        nonlocal seen
        before, seen = seen, fountain.batches
        await asyncio.sleep(0.1)
        return before == fountain.batches > 0

    await eventually(stalled)
    assert not fountain.closed
    call.cancel()
    await eventually(lambda: fountain.closed)
