"""The light runtime in front of a real offline model."""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest_asyncio
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit import ids
from retinue_kit.clock import Clock, SystemClock
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from tool_driver import CountingTool, Rules, Runtime

_path = Path(__file__).parents[2] / "plugins" / "offline_model.py"
_spec = importlib.util.spec_from_file_location("offline_model_fixtures", _path)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

offline_model = _module.offline_model


class Light:
    """A light runtime, driven in place."""

    def __init__(self, adapter: LightAdapter) -> None:
        self.adapter = adapter

    async def invoke(self, text: str, **fields: Any) -> list[RuntimeEvent]:
        made = {"tenant_id": "ten_a", "run_id": ids.new_id("run"), "session_id": "ses_a", "runtime": "light"}
        request = pb.InvokeRequest(**{**made, "attempt": 1, "fencing_token": 1, "text": text, **fields})
        return [event async for batch in self.adapter.invoke(request) for event in batch]

    async def text(self, text: str, **fields: Any) -> str:
        """What the model says, for a run that is expected to go well."""
        events = await self.invoke(text, **fields)
        assert events[-1].HasField("finished"), events[-1]
        return "".join(event.text_delta.text for event in events)

    async def failure(self, text: str, **fields: Any) -> Any:
        """How the run fails, for one that is expected to: the `failed` event, which comes last and alone."""
        events = await self.invoke(text, **fields)
        assert events[-1].HasField("failed"), events[-1]
        assert not any(event.HasField("message_completed") for event in events)
        return events[-1].failed


@pytest_asyncio.fixture
async def light(offline_model: Any) -> AsyncIterator[Any]:
    """Answer a maker of light runtimes: `light(model_api_key="a,b")` sets settings; the model is the offline one."""
    async with AsyncExitStack() as stack:

        def make(clock: Clock | None = None, **fields: Any) -> Light:
            settings = Settings(**{"address": "", "model_base_url": offline_model.base_url, **fields})
            adapter = LightAdapter(settings, read_models(settings), session(settings), clock or SystemClock())
            stack.push_async_callback(adapter.close)
            return Light(adapter)

        yield make


@pytest_asyncio.fixture
async def runtime(offline_model: Any) -> AsyncIterator[Any]:
    """Answer a maker of light runtimes with tools: `runtime(tool, rules=…)`; the model is the offline one."""
    made: list[Runtime] = []

    def make(*tools: CountingTool, rules: Rules | None = None) -> Runtime:
        made.append(Runtime(offline_model.base_url, tools, rules or Rules()))
        return made[-1]

    yield make
    for one in made:
        await one.adapter.close()
