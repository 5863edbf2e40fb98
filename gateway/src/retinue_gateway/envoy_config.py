"""Envoy's bootstrap, made by a pure function: what the edge checks, limits, turns into gRPC, and refuses."""

from pathlib import Path
from typing import Any, NamedTuple

from retinue_gateway import envoy_refusals
from retinue_gateway.envoy_clusters import BUFFER_SIZE_BYTES, GRPC_CLUSTER, asgi_cluster, grpc_cluster
from retinue_gateway.envoy_filters import filters
from retinue_gateway.envoy_routes import SOCKET_IDLE_TIMEOUT_S, routes

Json = dict[str, Any]

CONNECTIONS_MAX = 16_384
"""Client connections at once; eight tenants' worth of the 2,000 sockets that one may open."""

HEADERS_SIZE_MAX_KIB = 16
"""A request's headers with its path: a token and a long query, many times over; what is larger is refused as such."""

HEADERS_TIMEOUT_S = 10
"""A client that needs longer to send its headers is holding a connection, not making a request."""

REQUEST_TIMEOUT_S = 30
"""Time for a whole request to arrive: 1 MiB at 35 KiB/s, a file of 4 MiB at 140 KiB/s. An upgraded socket is
past this once it is answered."""

DELAYED_CLOSE_TIMEOUT_S = 0.1
"""How long a client may take to close after all was sent to it. Envoy's own second would hold up everybody who waits
for the end of a WebSocket."""

STREAM_IDLE_TIMEOUT_S = 300
"""A stream without a byte in either direction; keep-alive comments come every 15 s."""


_TRACEPARENT_LENGTH = 55
_TRACEPARENT = "^00-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+$"
_SPAN_PART = "-[0-9a-f]{16}-..$"
_ZERO = "-0+-"
"""W3C's form of a traceparent in parts, each small enough for Envoy's bound on expressions, and what neither of its ids
may be."""

_ASIDE = "x-retinue-traceparent"
"""Where a traceparent is kept meanwhile; clients' own headers of such names are dropped."""


class Tls(NamedTuple):
    """A certificate chain and its private key, as PEM files."""

    certificate: Path
    key: Path


class Sockets(NamedTuple):
    """Where Envoy meets its neighbours: paths of unix sockets."""

    grpc: Path
    asgi: Path
    admin: Path


class Listen(NamedTuple):
    """Where clients come in."""

    host: str
    port: int


def build(listen: Listen, sockets: Sockets, descriptor: Path, *, tls: Tls | None, sample_percent: float) -> Json:
    """Make the whole bootstrap. `descriptor` is the descriptor set of the edge service."""
    return {
        "node": {"id": "edge", "cluster": "retinue"},
        "admin": {"address": {"pipe": {"path": str(sockets.admin), "mode": 0o600}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _runtime()}]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": CONNECTIONS_MAX,
                    },
                }
            ]
        },
        "static_resources": {
            "listeners": [_listener(listen, descriptor, tls, sample_percent)],
            "clusters": [grpc_cluster(sockets.grpc), asgi_cluster(sockets.asgi)],
        },
    }


def _keep_well_formed_traces() -> Json:
    """Take away a traceparent that is malformed: Envoy would begin no trace, and the answer would have no id.

    Mutations have no condition: a well-formed value is moved aside, and back after everything else was removed. What
    an expression makes empty is not added.
    """
    given = "request.headers['traceparent']"
    is_whole = f"{given}.size() == {_TRACEPARENT_LENGTH} && {given}.matches('{_TRACEPARENT}')"
    well_formed = f"{is_whole} && {given}.matches('{_SPAN_PART}') && !{given}.matches('{_ZERO}') ? {given} : ''"

    def add(name: str, value: str) -> Json:
        return {"append": {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}

    mutations = [
        {"remove": _ASIDE},
        add(_ASIDE, f"%CEL({well_formed})%"),
        {"remove": "traceparent"},
        add("traceparent", f"%REQ({_ASIDE})%"),
        {"remove": _ASIDE},
    ]
    return {
        "name": "well-formed-traces",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3."
            "HeaderMutation",
            "mutations": mutations,
        },
    }


def _runtime() -> Json:
    # Spans reach the gateway in few calls and soon enough to look at a trace right after its run.
    return {"tracing.opentelemetry.flush_interval_ms": 500, "tracing.opentelemetry.min_flush_spans": 128}


def _listener(listen: Listen, descriptor: Path, tls: Tls | None, sample_percent: float) -> Json:
    chain: Json = {"filters": [_connection_manager(descriptor, tls, sample_percent)]}
    if tls:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(tls.certificate)},
                            "private_key": {"filename": str(tls.key)},
                        }
                    ],
                },
            },
        }
    return {
        "name": "edge",
        "address": {"socket_address": {"address": listen.host, "port_value": listen.port}},
        "per_connection_buffer_limit_bytes": BUFFER_SIZE_BYTES,
        # A second Envoy on the same port must fail aloud instead of taking half of the connections.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "filter_chains": [chain],
    }


def _connection_manager(descriptor: Path, tls: Tls | None, sample_percent: float) -> Json:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
            "HttpConnectionManager",
            "stat_prefix": "edge",
            "codec_type": "AUTO",
            "server_name": "retinue",
            # Who connects is a stranger, from whatever address: its x-envoy-* headers are dropped, too.
            "use_remote_address": True,
            "internal_address_config": {"unix_sockets": False},
            "generate_request_id": True,
            "normalize_path": True,
            "merge_slashes": True,
            # Refused by a route of its own, behind the beginning of the trace: that answer is to be found again, too.
            "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
            "early_header_mutation_extensions": [_keep_well_formed_traces()],
            "common_http_protocol_options": {
                "headers_with_underscores_action": "REJECT_REQUEST",
                "idle_timeout": f"{SOCKET_IDLE_TIMEOUT_S}s",
            },
            "http2_protocol_options": {
                "initial_stream_window_size": BUFFER_SIZE_BYTES,
                "initial_connection_window_size": 4 * BUFFER_SIZE_BYTES,
            },
            "max_request_headers_kb": HEADERS_SIZE_MAX_KIB,
            "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
            "request_timeout": f"{REQUEST_TIMEOUT_S}s",
            "stream_idle_timeout": f"{STREAM_IDLE_TIMEOUT_S}s",
            "delayed_close_timeout": f"{DELAYED_CLOSE_TIMEOUT_S}s",
            "tracing": {
                "random_sampling": {"value": sample_percent},
                # A path may hold a contact's name or a token; a span says where a request went by its other parts.
                "max_path_tag_length": 1,
                "spawn_upstream_span": False,
                "provider": {
                    "name": "envoy.tracers.opentelemetry",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                        "service_name": "envoy",
                        "grpc_service": {"envoy_grpc": {"cluster_name": GRPC_CLUSTER}, "timeout": "1s"},
                    },
                },
            },
            "local_reply_config": {"mappers": envoy_refusals.mappers()},
            "http_filters": filters(descriptor),
            "route_config": routes(descriptor),
        },
    }
