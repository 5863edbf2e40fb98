"""A gRPC server as every service of the mesh runs it: one list of steps around each call, health, reflection, drain."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import grpc
import protovalidate
import structlog
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry import trace

from retinue_kit import deadlines, telemetry, tenancy, wire
from retinue_kit.errors import RETRY_AFTER_S, Reason, RetinueError
from retinue_kit.loops import keep

METADATA_SIZE_MAX_BYTES = 64 * 1024
"""What comes with a call besides its message. The edge lets 16 KiB in, which count more here: a path twice, and 32
bytes for each header."""

MESSAGE_SIZE_MAX_BYTES = 8 * 1024 * 1024
"""The edge lets bodies of 1 MiB in, and JSON of many small numbers grows sixfold as a message."""

STRUCT_VALUES_MAX = 10_000
"""Values in one struct: validating so many takes some thirty milliseconds, in which nobody else is served."""

PROBE_INTERVAL_S = 1.0
"""How often dependencies are asked; health answers are at most this old."""

PROBE_TIMEOUT_S = 2.0

NEW_SUFFIX = ".new"
"""Of a unix socket that is being set up."""

CONCURRENT_CALLS_MAX = 4096
"""Calls at once; more are refused with RESOURCE_EXHAUSTED by gRPC itself. Counts open event streams at the edge."""

PENDING_CALLS_MAX = 8192
"""Calls that came and wait for the loop to turn: as many as Envoy has under way to one upstream. Beyond gRPC's bound,
1,000, it ends some by chance with a bare CANCELLED, of which a client cannot tell that it may repeat."""

CUT_MARGIN_S = 0.5
"""How long before the end of the grace calls are cut: in time to say why, so that whoever made them knows that nothing
is wrong with what was asked for."""

_UNTRACED = ("/grpc.health.", "/grpc.reflection.", "/opentelemetry.proto.collector.")
"""Calls without a tenant, which none of the steps concern: a collector that traced itself would never come to rest."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Service(NamedTuple):
    """A servicer, how it is added to a server, and its full name."""

    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object
    name: str
    request_size_max_bytes: int | None = None
    """Where it takes larger requests, or smaller ones, than the server's other services."""


Probe = Callable[[], Awaitable[object]]
Gate = Callable[[str, Mapping[str, str]], None]
"""Raises RetinueError unless a call of this method with this metadata may be made at all."""

Serving = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def _bound_structs(request: Message) -> None:
    """Refuse a struct of very many values before anything looks at each of them."""
    for descriptor, found in request.ListFields():
        left = STRUCT_VALUES_MAX
        nested = [found] if isinstance(found, struct_pb2.Struct) else []
        while nested:
            inner = nested.pop()
            values = inner.values if isinstance(inner, struct_pb2.ListValue) else inner.fields.values()
            left -= len(values)
            if left < 0:
                raise RetinueError.field(descriptor.name, f"must not hold more than {STRUCT_VALUES_MAX} values.")
            for value in values:
                kind = value.WhichOneof("kind")
                if kind in ("struct_value", "list_value"):
                    nested.append(getattr(value, kind))


def validate(request: Message, size_max_bytes: int = MESSAGE_SIZE_MAX_BYTES) -> None:
    """Refuse a request that breaks the contract's own limits, naming the first field that does."""
    _bound_structs(request)
    if request.ByteSize() > size_max_bytes:
        raise RetinueError(Reason.BODY_TOO_LARGE, f"The request is larger than {size_max_bytes >> 20} MiB.")
    try:
        protovalidate.validate(request, fail_fast=True)
    except protovalidate.ValidationError as error:
        violation = error.violations[0].proto
        elements = violation.field.elements if violation.field else []
        field = ".".join(element.field_name for element in elements) or "request"
        raise RetinueError.field(field, violation.message) from None


def _lenient(parse: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """Read a request, None if it cannot be read: gRPC itself would answer UNKNOWN with the parser's own words."""

    def read(data: bytes) -> Message | None:
        try:
            return parse(data)
        except DecodeError:
            return None

    return read


def _check_tenant(request: Message, identity: tenancy.Identity) -> None:
    """Refuse a request for one tenant that comes with the identity of another: a mix-up of ours, not of a client's."""
    asked = getattr(request, "tenant_id", "")
    if asked and identity.tenant_id and asked != identity.tenant_id:
        raise RetinueError(Reason.TENANT_MISMATCH, "The request names another tenant than the caller's.")


def text_metadata(context: Serving) -> dict[str, str]:
    """Read what came with a call, but for binary values."""
    return {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}


def _draining() -> RetinueError:
    return RetinueError(Reason.DRAINING, "This process is stopping; try again.", retry_after_s=RETRY_AFTER_S)


def _begin(method: str, request: Message | None, context: Serving) -> trace.Span:
    """What happens before each call, each step with its reason. Contexts end with the call's own task."""
    metadata = text_metadata(context)
    span = telemetry.start_server_span(method[1:], metadata.get("traceparent", ""))  # first: all that follows is seen
    deadlines.enter(context.time_remaining())  # outgoing calls must not outlive the caller
    identity = tenancy.from_metadata(metadata)
    tenant_id = identity.tenant_id or getattr(request, "tenant_id", "")
    if tenant_id and not identity.tenant_id:
        identity = tenancy.Identity(tenant_id, identity.principal, identity.scopes)
    tenancy.enter(identity)  # logs, spans and outgoing calls bear the tenant
    if tenant_id:
        span.set_attribute("tenant.id", tenant_id)
    return span


async def _refuse(error: Exception, span: trace.Span, context: Serving, method: str) -> None:
    """Answer an error with its status; what is not ours is logged and answered with a fixed sentence."""
    if isinstance(error, RetinueError):
        if error.private:
            log.warning("call refused", method=method, reason=str(error.reason), detail=error.private)
    else:
        log.error("call failed", method=method, exc_info=error)
        error = RetinueError(Reason.INTERNAL, "Something went wrong inside; the trace id leads to it.")
    telemetry.fail(span, str(error.reason))
    if error.retry_after_s is not None:
        try:  # trailing metadata never reaches an HTTP client
            await context.send_initial_metadata((("retry-after", str(max(1, round(error.retry_after_s)))),))
        except (grpc.aio.UsageError, RuntimeError):
            log.debug("initial metadata was sent before", method=method)
    await context.abort_with_status(rpc_status.to_status(wire.to_status(error)))


class Steps(grpc.aio.ServerInterceptor):
    """Trace, deadline, identity, validation, errors: around every call, in this order."""

    def __init__(self, gate: Gate | None, request_size_max_bytes: int, services: Sequence[Service] = ()) -> None:
        self._gate = gate
        self._request_size_max_bytes = request_size_max_bytes
        self._own_size_max_bytes = {
            service.name: service.request_size_max_bytes
            for service in services
            if service.request_size_max_bytes is not None
        }
        self._wrapped: dict[str, Handler] = {}
        self._calls: set[asyncio.Task[object]] = set()
        self._cut = False
        self.draining = False

    def cut(self) -> None:
        """End the calls under way with DRAINING: whoever waits for one may ask again, with the same key."""
        self._cut = True
        for task in list(self._calls):
            task.cancel()

    async def intercept_service(self, continuation: Any, details: Any) -> Handler:
        method = details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(details)
            if handler is None or method.startswith(_UNTRACED):
                return cast("Handler", handler)
            wrapped = self._wrap(method, handler)
            self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Handler:
        # The contract has no client streams, so the request is always one message.
        codec = {
            "request_deserializer": _lenient(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }

        async def unary(request: Message | None, context: Serving) -> object:
            span = _begin(method, request, context)
            task = cast("asyncio.Task[object]", asyncio.current_task())
            self._calls.add(task)
            try:
                self._admit(method, request, context)
                return await handler.unary_unary(request, context)
            except (Exception, asyncio.CancelledError) as error:
                await _refuse(self._answerable(error, task, context), span, context, method)
                return None
            finally:
                self._calls.discard(task)
                span.end()

        async def stream(request: Message | None, context: Serving) -> AsyncIterator[object]:
            span = _begin(method, request, context)
            task = cast("asyncio.Task[object]", asyncio.current_task())
            self._calls.add(task)
            try:
                self._admit(method, request, context)
                async for response in handler.unary_stream(request, context):
                    yield response
            except (Exception, asyncio.CancelledError) as error:
                await _refuse(self._answerable(error, task, context), span, context, method)
            finally:
                self._calls.discard(task)
                span.end()

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **codec)
        return grpc.unary_unary_rpc_method_handler(unary, **codec)

    def _answerable(self, error: BaseException, task: "asyncio.Task[object]", context: Serving) -> Exception:
        """Read what a call ended with; raises again what was answered already, and a cancellation that is not ours."""
        if isinstance(error, asyncio.CancelledError) and self._cut and not context.cancelled():
            task.uncancel()
            return _draining()
        if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
            raise error
        return error

    def _admit(self, method: str, request: Message | None, context: Serving) -> None:
        if self.draining:
            raise _draining()
        if self._gate is not None:
            self._gate(method, text_metadata(context))
        if request is None:
            raise RetinueError.field("request", "must be a message of the contract, its strings UTF-8.")
        _check_tenant(request, tenancy.current())
        name = method[1:].partition("/")[0]
        validate(request, self._own_size_max_bytes.get(name, self._request_size_max_bytes))


class Server:
    """A gRPC server on one address, `unix:/path` or `host:port`.

    Health: "" and each service's name serve while every probe passes; each probe's own name tells of it alone. `gate`
    is asked before each call that the steps concern. A request above `request_size_max_bytes` is refused.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[Service],
        probes: dict[str, Probe] | None = None,
        *,
        gate: Gate | None = None,
        request_size_max_bytes: int = MESSAGE_SIZE_MAX_BYTES,
    ) -> None:
        self.address = address
        self._probes = probes or {}
        self._names = [service.name for service in services]
        self._steps = Steps(gate, request_size_max_bytes, services)
        self._health = HealthServicer()
        self._prober: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[self._steps],
            maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
            options=[
                # A stale process must not share the port unnoticed.
                ("grpc.so_reuseport", 0),
                ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
                ("grpc.max_metadata_size", METADATA_SIZE_MAX_BYTES),
                ("grpc.max_receive_message_length", MESSAGE_SIZE_MAX_BYTES),
                ("grpc.max_send_message_length", MESSAGE_SIZE_MAX_BYTES),
            ],
        )
        for service in services:
            service.add(service.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection([*self._names, health_name, reflection.SERVICE_NAME], self._server)

    async def start(self) -> int:
        """Listen and begin to tell of health; answers the port. OSError if the address is taken.

        A unix socket is set up under another name and takes the place of one that a former process still serves on.
        """
        is_socket = self.address.startswith("unix:")
        bound = self.address + NEW_SUFFIX if is_socket else self.address
        if is_socket:
            Path(bound.removeprefix("unix:")).unlink(missing_ok=True)
        try:
            port = self._server.add_insecure_port(bound)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self.address}: {error}") from error
        await self._server.start()
        await self._probe()
        if is_socket:
            Path(bound.removeprefix("unix:")).rename(self.address.removeprefix("unix:"))
        self._prober = keep("probe", self._probe_for_ever)
        return port

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let those under way finish within the grace, then stop."""
        self._steps.draining = True
        if self._prober:
            self._prober.cancel()
        await self._health.enter_graceful_shutdown()
        cutting = asyncio.get_running_loop().call_later(max(0.0, grace_s - CUT_MARGIN_S), self._steps.cut)
        try:
            await self._server.stop(grace_s)
        finally:
            cutting.cancel()

    async def _probe_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PROBE_INTERVAL_S)
            await self._probe()

    async def _probe(self) -> None:
        healthy = True
        for name, probe in self._probes.items():
            passed = True
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await probe()
            except Exception as error:
                passed = False
                log.warning("dependency does not answer", dependency=name, detail=str(error)[:200])
            healthy = healthy and passed
            await self._tell(name, passed)
        for name in ("", *self._names):
            await self._tell(name, healthy)

    async def _tell(self, name: str, passed: bool) -> None:
        served = health_pb2.HealthCheckResponse
        await self._health.set(name, served.SERVING if passed else served.NOT_SERVING)
