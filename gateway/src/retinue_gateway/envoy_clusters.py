"""Whom Envoy speaks to: the gateway, by gRPC and by HTTP, each on a unix socket."""

from pathlib import Path
from typing import Any

Json = dict[str, Any]

BUFFER_SIZE_BYTES = 256 * 1024
"""What Envoy holds of a connection in either direction before it stops reading; bounds the cost of a slow reader."""

GRPC_CLUSTER = "gateway-grpc"
ASGI_CLUSTER = "gateway-asgi"


def grpc_cluster(path: Path) -> Json:
    """Reach the gateway's gRPC server."""
    http2 = {
        "connection_keepalive": {"interval": "30s", "timeout": "5s"},
        "initial_stream_window_size": BUFFER_SIZE_BYTES,
        "initial_connection_window_size": 16 * BUFFER_SIZE_BYTES,
    }
    return _cluster(GRPC_CLUSTER, path, {"explicit_http_config": {"http2_protocol_options": http2}})


def asgi_cluster(path: Path) -> Json:
    """Reach the gateway's HTTP server."""
    # The server closes idle connections after 5 s; whoever closes first must be the one who sends.
    return _cluster(
        ASGI_CLUSTER,
        path,
        {
            "common_http_protocol_options": {"idle_timeout": "3s"},
            "explicit_http_config": {"http_protocol_options": {}},
        },
    )


def _cluster(name: str, path: Path, options: Json) -> Json:
    bounds = {"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192, "max_retries": 64}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": BUFFER_SIZE_BYTES,
        "circuit_breakers": {"thresholds": [bounds]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                **options,
            }
        },
    }
