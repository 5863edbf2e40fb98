"""Both servers of the edge as one: they start together and drain together."""

import asyncio
from collections.abc import Mapping, Sequence

from retinue_kit.server import Server, Service

from retinue_gateway.asgi import BODY_SIZE_MAX_BYTES
from retinue_gateway.credentials import Credentials, check_scope, scope_of
from retinue_gateway.events import Attendance
from retinue_gateway.listener import Listener

END_MARGIN_S = 1.0
"""Kept of the grace for telling those who are still there that it is over."""


class Edge(Server):
    """The gRPC server of the public API, with the ASGI listener beside it.

    Its health tells of this process alone: with a dependency away it still answers, with an error that says so, where
    a balancer that took it out would leave clients with nothing. /readyz tells of the dependencies.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        credentials: Credentials,
        attendance: Attendance,
        listener: Listener,
    ) -> None:
        def gate(method: str, metadata: Mapping[str, str]) -> None:
            check_scope(credentials.admit(metadata), scope_of(method))

        # Envoy counts the bytes of JSON bodies; what callers of gRPC send is counted here.
        super().__init__(address, services, gate=gate, request_size_max_bytes=BODY_SIZE_MAX_BYTES)
        self.credentials = credentials
        self.attendance = attendance
        self._listener = listener

    async def start(self) -> int:
        """Learn what is revoked, then listen on both."""
        await self.credentials.learn()
        await self._listener.start()
        return await super().start()

    async def drain(self, grace_s: float) -> None:
        """End what has no end of its own, let runs that are told finish within the grace, then stop."""
        # First of all Envoy hears that this connection is at its end, and takes what is new to the next process.
        stopping = asyncio.create_task(super().drain(grace_s))
        await self.attendance.drain(max(0.0, grace_s - END_MARGIN_S))
        await self._listener.stop()
        await stopping
