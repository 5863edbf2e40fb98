"""What is kept of one run while it is executed: its frames, what was paid, what is told of it beside its frames."""

import time
from collections.abc import Sequence

from retinue.runtime_adapter.v1 import runtime_event_pb2 as pb
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import InvokeRequest
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.wire import counted
from retinue_runtime_adapter.openclaw.ports import Meter
from retinue_runtime_adapter.openclaw.turn import RunTurn
from retinue_runtime_adapter.openclaw.under_way import Begun, Run
from retinue_runtime_adapter.tools.ports import Call

OUTPUT_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes for an attempt whose request names no limit: a long book chapter."""


class Work:
    """What one run has come to."""

    def __init__(self, request: InvokeRequest, run: Run) -> None:
        self.request = request
        self.run = run
        self.turn = RunTurn(
            reasoning=request.reasoning, size_max_bytes=request.output_size_bytes or OUTPUT_SIZE_MAX_BYTES
        )
        self.meter = Meter()
        self.usage: pb.RuntimeUsage | None = None
        self._reasoning_bytes = 0

    def reason(self, text: str) -> None:
        """Tell reasoning, which the model's endpoint is heard to say."""
        self._reasoning_bytes += len(text.encode())
        if self._reasoning_bytes <= (self.request.output_size_bytes or OUTPUT_SIZE_MAX_BYTES):
            self.run.tell([RuntimeEvent(reasoning_delta=pb.ReasoningDelta(text=text))])
        else:
            self.run.attempt.abort(Trouble(Reason.OUTPUT_TOO_LARGE, "The run produced more than a run may."))

    async def record(self, call: Call) -> None:
        """Wait until it is recorded that a call begins which may change something. Raises OUTPUT_TOO_LARGE."""

        def announce() -> Sequence[RuntimeEvent]:
            return self.turn.announce(call.call_id, call.tool, call.arguments, int(time.time() * 1000))

        try:
            await self.run.begin(Begun(self.request.runtime, call.tool), announce)
        except Trouble as trouble:
            self.run.attempt.abort(trouble)
            raise trouble.error from None

    def overflow(self, trouble: Trouble) -> None:
        """A call does not fit its model. Where nothing was told yet the run ends at once, so that the conversation can
        be summed up by whoever has its log; later OpenClaw helps itself, by summing up what only it knows.
        """
        if not self.run.told:
            self.run.attempt.abort(trouble)

    def used(self) -> pb.RuntimeUsage:
        """What was used: as it was paid, which our endpoint has seen, else as the gateway says."""
        meter = self.meter
        if not meter.calls and self.usage is not None:
            return self.usage
        return pb.RuntimeUsage(
            input_tokens=counted(meter.input_tokens),
            output_tokens=counted(meter.output_tokens),
            model=meter.model,
            cost_micros=meter.cost_micros,
        )
