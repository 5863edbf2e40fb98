"""The wire of plain model calls. See plain/ for what they do."""

from typing import Any

import grpc
from retinue.runtime_adapter.v1 import model_service_pb2 as wire
from retinue.runtime_adapter.v1 import model_service_pb2_grpc as wire_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service

from retinue_runtime_adapter.plain.embedding import Embedder
from retinue_runtime_adapter.plain.summarizing import Summarizer

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(wire_grpc.ModelServiceServicer):
    """Serves retinue.runtime_adapter.v1.ModelService."""

    def __init__(self, summarizer: Summarizer, embedder: Embedder | None) -> None:
        self._summarizer = summarizer
        self._embedder = embedder

    async def Summarize(self, request: wire.SummarizeRequest, context: Context) -> wire.SummarizeResponse:
        lines = [(message.role, message.text) for message in request.messages]
        text, model = await self._summarizer.sum_up(request.model, request.former_summary, lines, request.token_count)
        return wire.SummarizeResponse(text=text, model=model)

    async def Embed(self, request: wire.EmbedRequest, context: Context) -> wire.EmbedResponse:
        if self._embedder is None:
            text = "No model that turns texts into vectors is set."
            raise RetinueError(Reason.CAPABILITY_MISSING, text, capability="embeddings")
        vectors, model = await self._embedder.embed(request.texts)
        return wire.EmbedResponse(model=model, vectors=[wire.Vector(values=vector) for vector in vectors])


def service(summarizer: Summarizer, embedder: Embedder | None) -> Service:
    """The service, ready to be added to a server; without an embedder nothing is turned into vectors."""
    name = wire.DESCRIPTOR.services_by_name["ModelService"].full_name
    return Service(wire_grpc.add_ModelServiceServicer_to_server, ModelServicer(summarizer, embedder), name)
