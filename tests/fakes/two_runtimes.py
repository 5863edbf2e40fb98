"""A runtime adapter with a second runtime: what `openclaw` is asked, the light runtime does in its name.

    python tests/fakes/two_runtimes.py     with what scripted_adapter wants, and RETINUE_AWAY_FILE

While that file exists, `openclaw` is away: it says so, takes no run, and one that it has fails. Messages may be scripts
as there, with one action more, and calls that begun at a pause take a while:

    ["open", CALL_ID, MS]    a tool call that takes so many milliseconds

The ledger has a line of the kind "attempt" for each attempt as it begins, with its runtime as the name.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1 import runtime_event_pb2 as ev
from retinue_kit import process, wire
from retinue_kit.client import Peer
from retinue_kit.server import Server
from scripted_adapter import Scripted, ScriptedServicer, read_script, service
from scripted_adapter import Settings as Scripts

SECOND = "openclaw"
HELD_MS = 400
"""How long calls take that begun at a pause."""

SLICE_S = 0.02
"""How often a call looks whether its runtime is gone."""

AGAIN_S = 0.2
"""When a runtime that is away is to be asked again."""


class Settings(Scripts, frozen=True, kw_only=True):
    """Read from RETINUE_<FIELD>."""

    away_file: Path
    """Exists while the second runtime is away."""


class Gone(Exception):
    """The runtime is away."""


class Scene(Scripted):
    """One attempt at one script; `look` raises Gone if its runtime is away."""

    def __init__(self, *arguments: Any, look: Callable[[], None]) -> None:
        super().__init__(*arguments)
        self._look = look

    def begin(self) -> None:
        """Write down that the attempt begins, and where. Refuses a stale token."""
        self._write("attempt", self._request.runtime)

    async def _hold(self, ms: int) -> None:
        until = asyncio.get_running_loop().time() + ms / 1000
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(SLICE_S)
            self._look()

    async def _open(self, at: int, call_id: str, ms: int) -> AsyncIterator[ev.RuntimeEvent]:
        yield ev.RuntimeEvent(tool_started=ev.ToolStarted(call_id=call_id, tool="count"))
        await self._hold(ms)
        yield ev.RuntimeEvent(checkpoint=ev.Checkpoint(state=self._saved(at + 1)))
        yield ev.RuntimeEvent(tool_finished=ev.ToolFinished(call_id=call_id, ok=True, result="counted"))

    async def _calls(self, at: int, call_ids: list[str], again: bool = False) -> AsyncIterator[ev.RuntimeEvent]:
        if self._state.at == at and self._state.begun:
            await self._hold(HELD_MS)
        async for event in super()._calls(at, call_ids, again):
            yield event


class TwoRuntimes(ScriptedServicer):
    """Performs scripts under either name; everything else is the light runtime's."""

    def __init__(self, upstream: Peer, settings: Settings) -> None:
        super().__init__(upstream, settings.ledger_file)
        self._away = settings.away_file

    async def Invoke(self, request: pb.InvokeRequest, context: Any) -> AsyncIterator[pb.InvokeResponse]:
        await wire.accept(context)

        def look() -> None:
            if request.runtime == SECOND and self._away.exists():
                raise Gone

        scene = Scene(request, self._ledger, self._fences, self._failed, look=look)
        script = read_script(request.text)
        try:
            look()
            scene.begin()
            passed = pb.InvokeRequest()
            passed.CopyFrom(request)
            passed.runtime = "light"
            told = self._pass_on(self._stub.Invoke, passed) if script is None else _batched(scene.events(script))
            async with aclosing(told) as responses:
                async for response in responses:
                    yield response
                    look()
        except Gone:
            yield pb.InvokeResponse(events=[_gone()])

    async def DescribeRuntimes(self, request: pb.DescribeRuntimesRequest, context: Any) -> pb.DescribeRuntimesResponse:
        found = await super().DescribeRuntimes(request, context)
        second = found.runtimes.add()
        second.CopyFrom(found.runtimes[0])
        second.name, second.available = SECOND, not self._away.exists()
        return found


async def _batched(events: AsyncIterator[ev.RuntimeEvent]) -> AsyncIterator[pb.InvokeResponse]:
    async for event in events:
        yield pb.InvokeResponse(events=[event])


def _gone() -> ev.RuntimeEvent:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(AGAIN_S * 1000))
    details = []
    for detail in (
        error_details_pb2.ErrorInfo(reason="RUNTIME_UNAVAILABLE", domain="retinue"),
        error_details_pb2.RetryInfo(retry_delay=delay),
    ):
        details.append(any_pb2.Any())
        details[-1].Pack(detail)
    error = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="The runtime is away.", details=details)
    return ev.RuntimeEvent(failed=ev.Failed(error=error, retryable=True))


async def assemble(settings: Settings, stack: AsyncExitStack) -> Server:
    """Connect to the real adapter, which need not be there yet."""
    upstream = Peer("runtime-adapter", settings.upstream_address)
    stack.push_async_callback(upstream.close)
    servicer = TwoRuntimes(upstream, settings)
    stack.callback(servicer.close)
    return Server(settings.address, [service(servicer)])


if __name__ == "__main__":
    process.main("two-runtimes", Settings, assemble)
