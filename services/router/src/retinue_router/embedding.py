"""Vectors by a model, through the runtime adapter, where an operator has turned that on."""

import math
from collections.abc import Sequence
from typing import Any

from retinue.runtime_adapter.v1 import model_service_pb2 as wire
from retinue.runtime_adapter.v1 import model_service_pb2_grpc as wire_grpc
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import RetinueError

from retinue_router.domain.facts import Vector

ADAPTER = "runtime-adapter"
"""The adapter's name among dependencies."""

EMBED_TIMEOUT_S = 2.0
"""For one call: who remembers or searches waits for it, and goes on without."""

REST_S = 30.0
"""After a call has failed none is made for so long: nobody is to wait for a model that is away, again and again."""

VALUES_MAX = 4096
"""Numbers of a vector, as the contract has it."""


class ModelEmbedder:
    """Implements operations.memory.Embedder."""

    def __init__(self, adapter: Peer, clock: Clock) -> None:
        self._peer = adapter
        self._stub: Any = wire_grpc.ModelServiceStub(adapter.channel)
        self._clock = clock
        self._rests_until = 0.0

    async def embed(self, tenant_id: str, texts: Sequence[str]) -> list[Vector]:
        """One vector for each text, in order. Raises RetinueError: whoever asked takes words instead."""
        if self._clock.monotonic() < self._rests_until:
            raise RetinueError.unavailable(ADAPTER, private="it failed a moment ago")
        try:
            request = wire.EmbedRequest(tenant_id=tenant_id, texts=texts)
            answer: wire.EmbedResponse = await self._peer.call(self._stub.Embed, request, timeout_s=EMBED_TIMEOUT_S)
            return _read(answer, len(texts))
        except RetinueError:
            self._rests_until = self._clock.monotonic() + REST_S
            raise


def _read(answer: wire.EmbedResponse, count: int) -> list[Vector]:
    """Read the vectors. What could not be compared with others of its kind is none."""
    sizes = {len(vector.values) for vector in answer.vectors}
    finite = all(math.isfinite(value) for vector in answer.vectors for value in vector.values)
    if len(answer.vectors) != count or len(sizes) != 1 or not 1 <= max(sizes) <= VALUES_MAX or not finite:
        raise RetinueError.unavailable(ADAPTER, private="its vectors make no sense")
    # A model that is made to answer with other sizes has another name: vectors of two sizes cannot be compared.
    return [Vector(f"{answer.model}/{max(sizes)}", vector.values) for vector in answer.vectors]
