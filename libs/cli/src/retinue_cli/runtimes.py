"""What the runtimes of a mesh say of themselves, and which of them chat runs on."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import (
    DescribeRuntimesRequest,
    DescribeRuntimesResponse,
    Runtime,
)
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2_grpc import RuntimeAdapterServiceStub

from retinue_cli.failures import CommandError
from retinue_cli.mesh import call
from retinue_cli.state import State

if TYPE_CHECKING:
    from retinue_local.runtimes import Runtimes

OPENCLAW = "openclaw"

OPENCLAW_WAIT_S = 30.0
"""A gateway serves within 8 s on an idle machine and 20 on a busy one; nobody is kept from the mesh for longer."""

POLL_S = 0.5


def read(state: State) -> list[Runtime]:
    """Ask the runtime adapter. Raises CommandError if it does not answer."""
    options = [("grpc.default_authority", "runtime-adapter"), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(state.paths.address("runtime-adapter"), options=options) as channel:
        untyped: Any = channel  # the stubs are typed for asyncio alone
        stub: Any = RuntimeAdapterServiceStub(untyped)
        answer: DescribeRuntimesResponse = call(stub.DescribeRuntimes, DescribeRuntimesRequest())
    return list(answer.runtimes)


def named(runtime: Runtime) -> str:
    """Name a runtime, its release, and what it says of itself."""
    name = f"{runtime.name} {runtime.version}".strip()
    detail = runtime.detail.removeprefix(name).removeprefix(runtime.version).strip(" ,;:()")
    return f"{name} ({detail})" if detail else name


async def chat(state: State, known: "Runtimes", note: Callable[[str], None]) -> str:
    """Wait until OpenClaw serves, if it is on and not for long; answers in one line what chat runs on."""
    if known.openclaw is None:
        return f"Chat runs on light: {known.missing}" if known.missing else "Chat runs on light; OpenClaw is left out."
    end = time.monotonic() + OPENCLAW_WAIT_S
    said = ""
    while True:
        try:
            found = next((r for r in await asyncio.to_thread(read, state) if r.name == OPENCLAW), Runtime())
            detail = found.detail or "it is starting"
        except CommandError as error:
            found, detail = Runtime(), str(error)
        if found.available:
            return f"Chat runs on {named(found)}."
        detail = detail.rstrip(".")
        if time.monotonic() > end:
            break
        if detail != said:
            said = detail
            note(f"Waiting for OpenClaw {known.openclaw.version}: {detail} …")
        await asyncio.sleep(POLL_S)
    if known.names == OPENCLAW:
        return f"Chat waits for OpenClaw, which is not there after {OPENCLAW_WAIT_S:.0f} s: {detail}."
    return f"Chat runs on light: {detail}; OpenClaw takes over when it is there."
