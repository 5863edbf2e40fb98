"""Envoy's bootstrap, and what it is told of boxes and of what they may reach, made by pure functions.

Paths are relative to the proxy's folder, in which Envoy runs. Each box has a listener on a socket of its own, with a
host for each of its grants and a refusal for everything else. Each target has a cluster whose addresses come from us:
Envoy resolves no names, so what was checked is what is connected to.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from retinue_sandbox.egress import routes
from retinue_sandbox.egress.injected import Secret
from retinue_sandbox.egress.routes import NAME_TO_SECRETS, NAME_TO_TARGET, NAME_TO_TLS
from retinue_sandbox.egress.targets import Target

Json = dict[str, Any]

CONNECTIONS_MAX = 32
"""Of one box at once; a package manager opens a handful."""

DOWNSTREAM_CONNECTIONS_MAX = 4096
"""Of all boxes at once."""

UPSTREAM_CONNECTIONS_MAX = 4096
"""To one target at once, of all boxes."""

BUFFER_SIZE_BYTES = 64 * 1024
"""Held of each direction of a connection."""

RATE_KIB_S = 16 * 1024
"""What one box may send and receive a second. With the time that a stream may take, this bounds what passes."""

REQUESTS_BURST = 200
REQUESTS_PER_S = 50
"""Requests and tunnels that one box may begin; more are answered 429 and not written down."""

STREAM_DURATION_MAX_S = 900
"""For a request with its answer, or a tunnel. An execution has at most 600 s."""

IDLE_TIMEOUT_S = 120
"""Without a byte in either direction."""

HEADERS_TIMEOUT_S = 10
HEADERS_SIZE_MAX_KIB = 32
HEADERS_COUNT_MAX = 100

DELAYED_CLOSE_TIMEOUT_S = 0.2
"""How long a client may take to close after all was sent to it."""

CONNECT_TIMEOUT_S = 5

HELLO_TIMEOUT_S = 10
"""For a TLS client to say whom it wants to talk to."""

ADMIN_SOCKET = "admin.sock"
CLUSTERS_FILE = "clusters.json"
LISTENERS_FILE = "listeners.json"
AUTHORITIES_FILE = "authorities.pem"
ENDPOINTS_FOLDER = "endpoints"
SOCKETS_FOLDER = "s"
SOCKET_NAME = "proxy.sock"

_TYPE = "type.googleapis.com/"
_FILTERS = f"{_TYPE}envoy.extensions.filters."
_LISTENER = "envoy.config.listener.v3.Listener"

LOG_FIELDS = {
    "box": "",
    "method": "%REQ(:METHOD):16%",
    "authority": "%REQ(:AUTHORITY):300%",
    "status": "%RESPONSE_CODE%",
    "detail": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "sent_bytes": "%BYTES_RECEIVED%",
    "received_bytes": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "address": "%UPSTREAM_REMOTE_ADDRESS%",
    "route": "%ROUTE_NAME%",
}
"""A line for each request and tunnel, at its end. Paths, queries and other headers may hold secrets: left out."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way out of one box."""

    key: str
    """Names its folder; unguessable, and nothing is in it."""
    targets: tuple[Target, ...]
    secrets: tuple[Secret, ...] = ()
    """Those that its tenant may use."""
    guarded_headers: frozenset[str] = frozenset()
    """Headers in which any secret of the deployment may stand."""


def bootstrap() -> Json:
    """Make what Envoy starts with: no listener, no cluster, and the files that will name some."""
    return {
        "node": {"id": "egress", "cluster": "retinue"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}}},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": f"{_TYPE}envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
            }
        ],
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": DOWNSTREAM_CONNECTIONS_MAX,
                    },
                }
            ]
        },
        "dynamic_resources": {"cds_config": _file(CLUSTERS_FILE), "lds_config": _file(LISTENERS_FILE)},
    }


def _file(path: str) -> Json:
    return {"path_config_source": {"path": f"./{path}"}, "resource_api_version": "V3"}


def endpoints_file(target: Target) -> str:
    """Where a target's addresses are told."""
    return f"{ENDPOINTS_FOLDER}/{hashlib.sha256(str(target).encode()).hexdigest()[:24]}.json"


def way_folder(key: str) -> str:
    """Where a box's way out begins: a folder, so that the box finds the socket that is in it at the time."""
    return f"{SOCKETS_FOLDER}/{key}"


def endpoints(target: Target, addresses: Sequence[str], version: int) -> Json:
    """Tell a target's addresses, the one to try first being the first. None: the target cannot be reached."""
    places = [{"address": _place(address, target.port)} for address in addresses]
    found: list[Json] = []
    if places:
        endpoint: Json = dict(places[0])
        if places[1:]:
            endpoint["additional_addresses"] = places[1:]
        found.append({"lb_endpoints": [{"endpoint": endpoint}]})
    kind = "envoy.config.endpoint.v3.ClusterLoadAssignment"
    return _response(kind, [{"cluster_name": NAME_TO_TARGET.format(target), "endpoints": found}], version)


def _place(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def _response(kind: str, resources: Iterable[Json], version: int) -> Json:
    return {
        "version_info": str(version),
        "resources": [{"@type": _TYPE + kind, **resource} for resource in resources],
    }


def clusters(targets: Iterable[Target], secrets: Iterable[Secret], tls_ports: frozenset[int], version: int) -> Json:
    """Tell of targets: those of secrets can be reached over TLS too, tunnels to TLS ports by way of a look inside."""
    guarded = {target for secret in secrets for target in secret.targets}
    made: list[Json] = []
    for target in targets:
        made.append(_cluster(NAME_TO_TARGET.format(target), target))
        if target in guarded:
            made.append(_cluster(NAME_TO_SECRETS.format(target), target) | _tls(target))
        if is_inspected(target, tls_ports):
            made.append(_inner_cluster(target))
    return _response("envoy.config.cluster.v3.Cluster", made, version)


def is_inspected(target: Target, tls_ports: frozenset[int]) -> bool:
    """Whether tunnels to it must begin with TLS that names the host. TLS names no addresses."""
    return target.port in tls_ports and not target.is_address


def _cluster(name: str, target: Target) -> Json:
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": _file(endpoints_file(target)),
            "service_name": NAME_TO_TARGET.format(target),
        },
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "per_connection_buffer_limit_bytes": BUFFER_SIZE_BYTES,
        "circuit_breakers": {"thresholds": [_threshold()]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                # No connection serves two requests: what one box has sent must not be able to answer another.
                "common_http_protocol_options": {"max_requests_per_connection": 1},
            }
        },
    }


def _threshold() -> Json:
    most = UPSTREAM_CONNECTIONS_MAX
    return {"max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": 0}


def _tls(target: Target) -> Json:
    context: Json = {
        "@type": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "validation_context": {
                "trusted_ca": {"filename": AUTHORITIES_FILE},
                "match_typed_subject_alt_names": [
                    {"san_type": "IP_ADDRESS" if target.is_address else "DNS", "matcher": {"exact": target.host}}
                ],
            },
        },
    }
    if not target.is_address:
        context["sni"] = target.host
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def _inner_cluster(target: Target) -> Json:
    name = NAME_TO_TLS.format(target)
    address = {"envoy_internal_address": {"server_listener_name": name, "endpoint_id": name}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "circuit_breakers": {"thresholds": [_threshold()]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def listeners(ways: Iterable[msgspec.Raw], targets: Iterable[Target], tls_ports: frozenset[int], version: int) -> Json:
    """Tell of boxes, as `listener` has written them, and of looks inside tunnels."""
    inner = [_inner_listener(target) for target in targets if is_inspected(target, tls_ports)]
    told = _response(_LISTENER, inner, version)
    told["resources"] += ways
    return told


def _inner_listener(target: Target) -> Json:
    """A tunnel whose TLS names another host than was granted, or none, ends here: no chain of filters is for it."""
    return {
        "name": NAME_TO_TLS.format(target),
        "internal_listener": {},
        "per_connection_buffer_limit_bytes": BUFFER_SIZE_BYTES,
        "listener_filters_timeout": f"{HELLO_TIMEOUT_S}s",
        "listener_filters": [
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {"@type": f"{_FILTERS}listener.tls_inspector.v3.TlsInspector"},
            }
        ],
        "filter_chains": [
            {
                "filter_chain_match": {"server_names": [target.host], "transport_protocol": "tls"},
                "filters": [
                    {
                        "name": "envoy.filters.network.tcp_proxy",
                        "typed_config": {
                            "@type": f"{_FILTERS}network.tcp_proxy.v3.TcpProxy",
                            "stat_prefix": "tunnel",
                            "cluster": NAME_TO_TARGET.format(target),
                            "idle_timeout": f"{IDLE_TIMEOUT_S}s",
                            "max_downstream_connection_duration": f"{STREAM_DURATION_MAX_S}s",
                        },
                    }
                ],
            }
        ],
    }


def listener(way: Way, tls_ports: frozenset[int]) -> msgspec.Raw:
    """Write a box's listener; it stays the same for as long as the box has its way out."""
    limit: Json = {
        "name": "envoy.filters.network.connection_limit",
        "typed_config": {
            "@type": f"{_FILTERS}network.connection_limit.v3.ConnectionLimit",
            "stat_prefix": "box",
            "max_connections": CONNECTIONS_MAX,
        },
    }
    made: Json = {
        "@type": _TYPE + _LISTENER,
        "name": f"box|{way.key}",
        "address": {"pipe": {"path": f"{way_folder(way.key)}/{SOCKET_NAME}", "mode": 0o666}},
        "per_connection_buffer_limit_bytes": BUFFER_SIZE_BYTES,
        "filter_chains": [{"filters": [limit, _connection_manager(way, tls_ports)]}],
    }
    return msgspec.Raw(msgspec.json.encode(made))


def _connection_manager(way: Way, tls_ports: frozenset[int]) -> Json:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_FILTERS}network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "box",
            "codec_type": "HTTP1",
            "http_protocol_options": {"allow_absolute_url": True},
            # Who connects is a stranger: what its x-envoy-* headers ask of Envoy is dropped.
            "use_remote_address": True,
            "internal_address_config": {"unix_sockets": False},
            # And the origin is told nothing of us.
            "skip_xff_append": True,
            "generate_request_id": False,
            "server_header_transformation": "PASS_THROUGH",
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "max_request_headers_kb": HEADERS_SIZE_MAX_KIB,
            "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
            "delayed_close_timeout": f"{DELAYED_CLOSE_TIMEOUT_S}s",
            "stream_idle_timeout": f"{IDLE_TIMEOUT_S}s",
            "common_http_protocol_options": {
                "idle_timeout": f"{IDLE_TIMEOUT_S}s",
                "max_stream_duration": f"{STREAM_DURATION_MAX_S}s",
                "max_headers_count": HEADERS_COUNT_MAX,
            },
            "access_log": [_access_log(way.key)],
            "local_reply_config": {"mappers": routes.mappers()},
            "http_filters": [_request_limit(), _rate_limit(), _router()],
            "route_config": routes.build(
                way.targets, way.secrets, way.guarded_headers, lambda target: is_inspected(target, tls_ports)
            ),
        },
    }


def _request_limit() -> Json:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": f"{_FILTERS}http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "box",
            "token_bucket": {
                "max_tokens": REQUESTS_BURST,
                "tokens_per_fill": REQUESTS_PER_S,
                "fill_interval": "1s",
            },
            "filter_enabled": always,
            "filter_enforced": always,
        },
    }


def _rate_limit() -> Json:
    return {
        "name": "envoy.filters.http.bandwidth_limit",
        "typed_config": {
            "@type": f"{_FILTERS}http.bandwidth_limit.v3.BandwidthLimit",
            "stat_prefix": "box",
            "enable_mode": "REQUEST_AND_RESPONSE",
            "limit_kbps": RATE_KIB_S,
        },
    }


def _router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_FILTERS}http.router.v3.Router", "suppress_envoy_headers": True},
    }


def _access_log(key: str) -> Json:
    """Write to standard output, which the service reads. What the limit of requests refuses could flood it."""
    return {
        "name": "envoy.access_loggers.stdout",
        "filter": {
            "extension_filter": {
                "name": "envoy.access_loggers.extension_filters.cel",
                "typed_config": {
                    "@type": f"{_TYPE}envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                    "expression": "!(has(response.code_details) && response.code_details == 'local_rate_limited')",
                },
            }
        },
        "typed_config": {
            "@type": f"{_TYPE}envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": {**LOG_FIELDS, "box": key}},
        },
    }
