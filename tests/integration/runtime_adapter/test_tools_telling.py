"""What an operator sees of tool calls: spans and numbers, none of which holds what was said."""

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from retinue_kit import telemetry
from retinue_kit.clock import SystemClock
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.light.adapter import LightAdapter
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.tools.assembly import Tools
from retinue_runtime_adapter.tools.ports import Result
from tool_driver import Box, CountingTool, Driver, Rules, Shelf

SECRET = "a-word-that-nobody-may-see"


async def fail(*_: Any) -> Result:
    raise RetinueError(Reason.FILE_NOT_FOUND, f"There is no {SECRET}.")


async def away(*_: Any) -> Result:
    raise RetinueError.unavailable("sandbox")


async def lose(*_: Any) -> Result:
    raise RetinueError(Reason.SANDBOX_UNAVAILABLE, "The box has ended.", check="box_lost")


async def miss(*_: Any) -> Result:
    raise RetinueError(Reason.SANDBOX_UNAVAILABLE, "There is no box.", check="box")


@pytest_asyncio.fixture
async def adapter(offline_model: Any) -> AsyncIterator[LightAdapter]:
    tools = [CountingTool("read"), CountingTool("list", do=fail), CountingTool("mcp__x__y"), CountingTool("made_up")]
    tools += [CountingTool("write", do=away, idempotent=True), CountingTool("exec")]
    tools += [CountingTool("edit", do=lose), CountingTool("python", do=miss)]
    settings = Settings(address="", model_base_url=offline_model.base_url)
    made = Tools(Shelf(*tools), Rules(exec="deny"), Box())  # type: ignore[arg-type]
    runtime = LightAdapter(settings, read_models(settings), session(settings), SystemClock(), made)
    yield runtime
    await runtime.close()


NAMES = ["read", "list", "mcp__x__y", "made_up", "write", "exec", "edit", "python"]


def counted() -> dict[tuple[str, str], float]:
    return {
        (sample.labels["tool"], sample.labels.get("outcome", "again")): sample.value
        for metric in REGISTRY.collect()
        if metric.name in ("retinue_tool_calls", "retinue_tool_retries")
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


async def test_calls_are_counted_by_few_names_and_how_they_ended(adapter: LightAdapter) -> None:
    before = counted()
    run = Driver(adapter.invoke, "\n".join(f"#tool={name} {{}}" for name in NAMES), tools=NAMES)
    assert await run.drive() == "finished"
    now = {key: value - before.get(key, 0) for key, value in counted().items() if value != before.get(key, 0)}
    assert now == {
        ("read", "ok"): 1,
        ("list", "failed"): 1,
        ("mcp", "ok"): 1,
        ("other", "ok"): 1,
        ("write", "unknown"): 1,
        ("write", "again"): 1,
        ("exec", "refused"): 1,
        ("edit", "unknown"): 1,  # it may have been done before its box was lost
        ("python", "failed"): 1,
    }


async def test_a_call_is_a_span_that_names_the_tool_and_holds_nothing_that_was_said(
    adapter: LightAdapter,
) -> None:
    provider = telemetry.set_up("test", {})
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    run = Driver(adapter.invoke, f'#tool=read {{"text": "{SECRET}"}}\n#tool=list {{}}', tools=NAMES)
    with telemetry.span("agent_processing", traceparent=f"00-{1:032x}-{2:016x}-01"):
        await run.drive()
    spans = [span for span in exporter.get_finished_spans() if span.name == "tool"]
    found = [dict(span.attributes or {}) for span in spans]
    assert [(one["tool.name"], one["tool.ok"], one["tool.outcome"]) for one in found] == [
        ("read", True, "ok"),
        ("list", False, "failed"),
    ]
    assert [one["tool.call_id"] for one in found] == [finish.call_id for finish in run.finishes()]
    assert SECRET not in "".join(str(span.to_json()) for span in exporter.get_finished_spans())
    provider.shutdown()
