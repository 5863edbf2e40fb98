"""Traces and logs: one set-up for every process. Neither ever holds message text or secrets."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from retinue_kit import config, tenancy
from retinue_kit.spans import LocalSpanExporter

EXPORT_DELAY_MS = 500
"""How long spans are gathered before they are written: short enough to look at a trace right after the run."""

OTLP_PROTOCOL = "grpc"
"""The exporter for HTTP would bring an HTTP client of its own into each process."""

QUEUE_SPANS_MAX = 4096
"""Spans that wait for their export; more are dropped, so that a slow collector costs traces, not memory."""

_tracer: trace.Tracer = trace.get_tracer("retinue")


def set_up(service: str, environ: Mapping[str, str] | None = None) -> TracerProvider:
    """Begin tracing and logging for this process.

    Spans go to RETINUE_TRACE_DIR (one file a process) and to OTEL_EXPORTER_OTLP_ENDPOINT, each where set. Whether a
    trace is recorded was decided at the edge; what begins here without a parent is not. RETINUE_NAME tells processes of
    one service apart. Raises SettingError for a RETINUE_LOG_LEVEL that is none, and for another protocol than ours.
    """
    global _tracer
    environ = os.environ if environ is None else environ
    instance = environ.get("RETINUE_NAME", service)
    resource = Resource.create({"service.name": service, "service.instance.id": instance})
    provider = TracerProvider(resource=resource, sampler=ParentBased(ALWAYS_OFF))
    folder, endpoint = environ.get("RETINUE_TRACE_DIR"), environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if folder:
        local = LocalSpanExporter(Path(folder) / f"{instance}.jsonl", service)
        provider.add_span_processor(
            BatchSpanProcessor(local, max_queue_size=QUEUE_SPANS_MAX, schedule_delay_millis=EXPORT_DELAY_MS)
        )
    if endpoint:
        _check_protocol(environ)
        # Imported where it is used: it takes 7 MiB in each process.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"))
        provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX))
    _tracer = provider.get_tracer("retinue")
    _set_up_logs(instance, config.log_level(environ))
    return provider


def _check_protocol(environ: Mapping[str, str]) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        value = environ.get(name) or OTLP_PROTOCOL
        if value != OTLP_PROTOCOL:
            raise config.SettingError(f"{name}={value!r} is not spoken here: spans leave by OTLP over {OTLP_PROTOCOL}.")


def _add_context(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    tenant_id = tenancy.current().tenant_id
    if tenant_id:
        event.setdefault("tenant_id", tenant_id)
    found = trace_id()
    if found:
        event["trace_id"] = found
    return event


def _set_up_logs(service: str, number: int) -> None:
    common: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        _add_context,
    ]
    rendering: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(),
    ]
    # What libraries say looks like what we say: asyncpg's tracebacks, while Postgres is away, would be many lines.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler])
    structlog.configure(
        processors=[*common, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)


def _parent(traceparent: str) -> otel_context.Context | None:
    """Read a W3C traceparent; None if there is none or it is malformed."""
    parts = traceparent.split("-")
    if len(parts) != 4 or len(parts[1]) != 32 or len(parts[2]) != 16:
        return None
    try:
        found = SpanContext(int(parts[1], 16), int(parts[2], 16), True, TraceFlags(int(parts[3], 16)))
    except ValueError:
        return None
    return trace.set_span_in_context(NonRecordingSpan(found), otel_context.Context())


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    traceparent: str = "",
    attributes: Mapping[str, AttributeValue] | None = None,
    **named: AttributeValue,
) -> Iterator[trace.Span]:
    """Record what happens inside as a span; an exception marks it as failed, with its type but not its text."""
    parent = _parent(traceparent) if traceparent else None
    attributes = {**(attributes or {}), **named}
    with _tracer.start_as_current_span(
        name, context=parent, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def start_span(name: str, kind: SpanKind = SpanKind.INTERNAL) -> trace.Span:
    """Begin a span that is not made current: for work within a generator, whose context is its caller's between two
    values. The caller ends it.
    """
    return _tracer.start_span(name, kind=kind)


def start_server_span(name: str, traceparent: str) -> trace.Span:
    """Begin the span of an incoming call and make it current for this task. The caller ends it."""
    current = _tracer.start_span(name, context=_parent(traceparent), kind=SpanKind.SERVER)
    otel_context.attach(trace.set_span_in_context(current))
    return current


def fail(current: trace.Span, reason: str) -> None:
    """Mark a span as failed."""
    current.set_status(Status(StatusCode.ERROR, reason))


def traceparent(of: trace.Span | None = None) -> str:
    """The current span, or the given one, as a W3C traceparent; empty outside of any trace."""
    found = (of or trace.get_current_span()).get_span_context()
    if not found.is_valid:
        return ""
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def trace_id() -> str:
    """The current trace's id, 32 hex digits; empty outside of any trace."""
    found = trace.get_current_span().get_span_context()
    return f"{found.trace_id:032x}" if found.is_valid else ""
