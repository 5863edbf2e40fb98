"""What every runtime looks like to the mesh, and the registry that finds one by name."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import (
    ContextMessage,
    ExportContextRequest,
    ImportContextRequest,
    InvokeRequest,
    ReattachRequest,
    Runtime,
)
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason, RetinueError

Batches = AsyncGenerator[list[RuntimeEvent], None]
"""Events in order; a batch holds what is there at once, so that the first is never delayed and the rest are few."""


class Adapter(Protocol):
    """A runtime, spoken to in its own tongue. What `describe` does not declare is refused by the methods below.

    The stream of `invoke` ends with exactly one `finished`, `failed`, `approval_requested` or `paused` event; the text
    deltas before it join to the text of the completed messages. Closing the generator lets go of the runtime's
    connection at once.
    """

    name: str

    def describe(self) -> Runtime:
        """Tell what it is and can do, from what is known already: no call to anybody."""
        ...

    def invoke(self, request: InvokeRequest) -> Batches:
        """Execute one attempt. Troubles are `failed` events, never exceptions."""
        ...

    def abort(self, tenant_id: str, run_id: str) -> bool:
        """Let the attempt of a run end with a `failed` event of code CANCELLED. False if none is running."""
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...

    def reattach(self, request: ReattachRequest) -> Batches:
        """Join an attempt that another call began. Raises CAPABILITY_MISSING unless `reattach` is declared."""
        raise _missing(self.name, "reattach")

    async def export_context(self, request: ExportContextRequest) -> Sequence[ContextMessage]:
        """Read what the runtime holds of a session. Raises CAPABILITY_MISSING unless `holds_context` is declared."""
        raise _missing(self.name, "holds_context")

    async def import_context(self, request: ImportContextRequest) -> Sequence[str]:
        """Give the runtime a context; answers the losses. Raises CAPABILITY_MISSING unless `holds_context`."""
        raise _missing(self.name, "holds_context")


def _missing(runtime: str, capability: str) -> RetinueError:
    return RetinueError(
        Reason.CAPABILITY_MISSING, f"The runtime {runtime!r} cannot do this.", capability=capability, runtime=runtime
    )


class Registry:
    """The runtimes that are on."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters: Mapping[str, Adapter] = {adapter.name: adapter for adapter in adapters}

    def get(self, name: str) -> Adapter:
        """Find a runtime. Raises RUNTIME_UNAVAILABLE if it is not on."""
        adapter = self._adapters.get(name)
        if adapter is None:
            raise RetinueError(Reason.RUNTIME_UNAVAILABLE, f"The runtime {name!r} is not switched on.", runtime=name)
        return adapter

    def all(self) -> list[Adapter]:
        """Every runtime, in the order in which they were named."""
        return list(self._adapters.values())
