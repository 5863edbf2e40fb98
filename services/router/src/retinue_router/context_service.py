"""Contexts on the wire."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from retinue.router.v1 import context_service_pb2 as wire
from retinue.router.v1 import context_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.domain.contacts import log_id_of
from retinue_router.operations.context import Contexts
from retinue_router.store.context import Header

PART_SIZE_MAX_BYTES = 256 * 1024
"""Of the events of one answer, but for one that is larger by itself."""


class ContextServicer(wire_grpc.ContextServiceServicer):
    """What the log holds of sessions."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    async def ReadContext(
        self, request: wire.ReadContextRequest, context: Serving
    ) -> AsyncGenerator[wire.ReadContextResponse, None]:
        tenant_id, contact = request.tenant_id, request.contact
        part, size = wire.ReadContextResponse(), 0
        reading = self._contexts.read(
            tenant_id, contact, request.session_id, request.through_cursor, request.without_run_id
        )
        async with aclosing(reading) as found:
            async for one in found:
                if isinstance(one, Header):
                    part.header.log_id = log_id_of(tenant_id, contact)
                    part.header.session_id = one.session_id
                    part.header.display_name, part.header.channel = one.display_name, one.channel
                    part.header.profile.update(msgspec.json.decode(one.profile))
                    part.header.through_cursor = str(one.through)
                    continue
                if size and size + len(one.json) > PART_SIZE_MAX_BYTES:
                    yield part
                    part, size = wire.ReadContextResponse(), 0
                part.events.append(encoding.event(one))
                size += len(one.json)
        yield part

    async def ImportContext(self, request: wire.ImportContextRequest, context: Serving) -> wire.ImportContextResponse:
        session_id, replayed = await self._contexts.bring(
            request.tenant_id,
            request.contact,
            request.digest,
            [(message.role, message.text) for message in request.messages],
            (request.summary, request.summary_message_count),
            list(request.losses),
            (request.display_name, request.channel, encoding.plain(request.profile, "profile")),
        )
        return wire.ImportContextResponse(session_id=session_id, replayed=replayed)
