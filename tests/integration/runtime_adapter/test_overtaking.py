"""no_stale_write: an attempt that was overtaken is refused at the runtime, or ended there, whatever the runtime."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client import REGISTRY
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2_grpc import RuntimeAdapterServiceStub
from retinue.runtime_adapter.v1.runtime_event_pb2 import Finished, RuntimeEvent, TextDelta
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.adapter import Adapter, Registry
from retinue_runtime_adapter.service import service

WAIT_S = 10.0


class Patient(Adapter):
    """A runtime that says one word and then waits for ever, unless it is told to be quick. It knows of no abort."""

    name = "light"

    def __init__(self) -> None:
        self.at_work: set[int] = set()

    def describe(self) -> pb.Runtime:
        return pb.Runtime(name=self.name)

    def abort(self, tenant_id: str, run_id: str) -> bool:
        return False

    async def close(self) -> None:
        pass

    async def invoke(self, request: pb.InvokeRequest) -> AsyncGenerator[list[RuntimeEvent], None]:
        self.at_work.add(request.fencing_token)
        try:
            yield [RuntimeEvent(text_delta=TextDelta(text="one"))]
            if request.text != "quick":
                await asyncio.Event().wait()
            yield [RuntimeEvent(finished=Finished())]
        finally:
            self.at_work.discard(request.fencing_token)


def request(token: int, text: str = "", **fields: Any) -> pb.InvokeRequest:
    made = {"tenant_id": "ten_a", "run_id": "run_a", "session_id": "ses_a", "attempt": token, "fencing_token": token}
    return pb.InvokeRequest(**{**made, "runtime": "light", "text": text, **fields})


def refused() -> float:
    return REGISTRY.get_sample_value("retinue_stale_writes_refused_total", {"sink": "runtime"}) or 0.0


class Caller:
    """Calls a service whose only runtime is a patient one."""

    def __init__(self, runtime: Patient, client: Any) -> None:
        self.runtime = runtime
        self._client = client
        self._stub = RuntimeAdapterServiceStub(client.channel)

    def invoke(self, of: pb.InvokeRequest) -> Any:
        return aiter(self._client.stream(self._stub.Invoke, of, timeout_s=WAIT_S))

    async def words(self, of: pb.InvokeRequest) -> list[str]:
        return [event.WhichOneof("event") async for answer in self.invoke(of) for event in answer.events]


@pytest.fixture
async def caller(serve: Any, peer: Any) -> Caller:
    runtime = Patient()
    return Caller(runtime, peer("runtime-adapter", await serve([service(Registry([runtime]))])))


async def test_an_attempt_under_way_ends_when_a_later_one_of_its_session_begins(caller: Caller) -> None:
    before = refused()
    zombie = caller.invoke(request(1))
    await anext(zombie)
    # Another run of the session: it is the session's token that counts.
    assert await caller.words(request(2, "quick", run_id="run_b")) == ["text_delta", "finished"]
    with pytest.raises(RetinueError) as raised:
        await anext(zombie)
    assert raised.value.reason is Reason.STALE_FENCING_TOKEN
    assert caller.runtime.at_work == set()
    assert refused() == before + 1


async def test_an_attempt_that_comes_too_late_is_refused(caller: Caller) -> None:
    before = refused()
    await caller.words(request(2, "quick"))
    with pytest.raises(RetinueError) as raised:
        await caller.words(request(1, "quick"))
    assert raised.value.reason is Reason.STALE_FENCING_TOKEN
    assert refused() == before + 1


async def test_attempts_of_other_sessions_and_tenants_go_on(caller: Caller) -> None:
    first = caller.invoke(request(1))
    await anext(first)
    await caller.words(request(2, "quick", session_id="ses_b"))
    await caller.words(request(2, "quick", tenant_id="ten_b"))
    assert caller.runtime.at_work == {1}
    await first.aclose()


async def test_an_attempt_that_is_over_holds_nothing_of_the_next(caller: Caller) -> None:
    before = refused()
    for token in (1, 2, 2):
        assert await caller.words(request(token, "quick")) == ["text_delta", "finished"]
    assert refused() == before
