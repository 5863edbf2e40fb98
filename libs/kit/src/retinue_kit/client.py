"""Calls to other services: a deadline, the trace and the identity on each; errors come back typed."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retinue_kit import deadlines, telemetry, tenancy, wire
from retinue_kit.errors import RetinueError
from retinue_kit.server import MESSAGE_SIZE_MAX_BYTES

R = TypeVar("R")

CALL_TIMEOUT_S = 5.0
"""Default for a unary call: thousands of times what one takes, short enough for a person to wait."""

RECONNECT_MAX_MS = 500
"""A neighbour that restarts is back within a second; gRPC's own default would wait for up to two minutes."""

HEALTH_TIMEOUT_S = 2.0

SEVERAL = ("dns:", "ipv4:", "ipv6:")
"""How an address begins that may name several processes of a service: `dns:///name:port`, `ipv4:one:port,two:port`."""

BY_TENANT = json.dumps({"loadBalancingConfig": [{"ring_hash_experimental": {"requestHashHeader": tenancy.TENANT_KEY}}]})
"""One tenant's calls go to one of several processes, the same for every caller that knows the same addresses; to its
neighbour on the ring while it is away. So what a process keeps for a tenant, such as a runtime's instance, is found."""

_BY_HEADER = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"
"""The variable that has gRPC take the header's name, read as a channel is made; without it each call fails."""


def _metadata() -> list[tuple[str, str]]:
    metadata = tenancy.to_metadata()
    parent = telemetry.traceparent()
    if parent:
        metadata.append(("traceparent", parent))
    return metadata


class Peer:
    """A channel to another service, by address; `name` appears in errors. Of several processes one serves a tenant."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._is_several = address.startswith(SEVERAL)
        if self._is_several:
            os.environ[_BY_HEADER] = "true"
        self.channel = grpc.aio.insecure_channel(
            address,
            options=[
                *([("grpc.service_config", BY_TENANT)] if self._is_several else []),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
                ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX_BYTES),
                ("grpc.max_send_message_length", MESSAGE_SIZE_MAX_BYTES),
                # Every name resolves locally, and a unix socket has no authority of its own.
                ("grpc.default_authority", name),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        self._health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def call(self, method: Any, request: object, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Make a unary call of a stub's method. Raises RetinueError only."""
        try:
            return await method(request, timeout=deadlines.timeout_s(timeout_s), metadata=_metadata())
        except grpc.aio.AioRpcError as error:
            raise wire.from_rpc_error(error, self.name) from error

    async def stream(
        self, method: Any, request: object, *, timeout_s: float, accepted: Callable[[], None] | None = None
    ) -> AsyncIterator[Any]:
        """Make a call that answers with a stream; leaving the iteration cancels it. Raises RetinueError only.

        `accepted` is called once the server says that it has taken the call up (`wire.accept`).
        """
        call = method(request, timeout=deadlines.timeout_s(timeout_s), metadata=_metadata())
        try:
            if accepted is not None and any(name == wire.ACCEPTED for name, _ in await call.initial_metadata()):
                accepted()
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise wire.from_rpc_error(error, self.name) from error
        finally:
            call.cancel()

    async def ready(self, timeout_s: float) -> None:
        """Wait until there is a connection to whoever serves the tenant. Raises RetinueError(DEPENDENCY_UNAVAILABLE).

        Where one process serves all, it costs nothing to have one; of several, the tenant's is asked whether it serves.
        """
        try:
            async with asyncio.timeout(timeout_s):
                if self._is_several:
                    # Each is connected to when it is first asked, and not before: the channel's state says nothing.
                    request = health_pb2.HealthCheckRequest()
                    await self._health.Check(request, timeout=timeout_s, metadata=_metadata(), wait_for_ready=True)
                elif self.channel.get_state() is not grpc.ChannelConnectivity.READY:
                    await self.channel.channel_ready()
        except (TimeoutError, grpc.aio.AioRpcError):
            raise RetinueError.unavailable(self.name, private="no connection") from None

    async def check(self, service: str = "") -> None:
        """Raise RetinueError(DEPENDENCY_UNAVAILABLE) unless the peer (or its named dependency) says that it serves."""
        try:
            answer = await self._health.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=HEALTH_TIMEOUT_S, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            raise RetinueError.unavailable(self.name, private=str(error.code())) from error
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise RetinueError.unavailable(service or self.name, private="not serving")

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await asyncio.shield(self.channel.close())
