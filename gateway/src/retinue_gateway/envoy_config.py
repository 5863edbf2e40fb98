"""Envoy's bootstrap, made by a pure function: what the edge checks, limits, turns into gRPC, and refuses."""

from pathlib import Path
from typing import Any, NamedTuple

from retinue_gateway import envoy_refusals

Json = dict[str, Any]

BODY_SIZE_MAX_BYTES = 1024 * 1024
"""A request's body as the public contract bounds it; below gRPC's own 4 MiB, so that the edge is who refuses."""

ANSWER_SIZE_MAX_BYTES = 32 * 1024 * 1024
"""A unary answer as JSON: a gRPC message of at most 4 MiB grows by escapes, at worst sixfold."""

BUFFER_SIZE_BYTES = 256 * 1024
"""What Envoy holds of a connection in either direction before it stops reading; bounds the cost of a slow reader."""

RATE_PER_S = 1000
"""Requests a second that each tenant may make for as long as it likes, as the public contract promises."""

RATE_BURST = 2000
"""Requests that a tenant may make at once after a quiet second."""

RATED_TENANTS_MAX = 4096
"""Tenants whose rate is remembered, the least recent forgotten first: about 1 KiB each."""

RATE_UNNAMED_PER_S = 10_000
"""Requests a second without a tenant (health, documents), all together: far above any prober."""

CONNECTIONS_MAX = 16_384
"""Client connections at once; eight tenants' worth of the 2,000 sockets that one may open."""

HEADERS_TIMEOUT_S = 10
"""A client that needs longer to send its headers is holding a connection, not making a request."""

REQUEST_TIMEOUT_S = 30
"""Time for a whole request to arrive: 1 MiB at 35 KiB/s. An upgraded socket is past this once it is answered."""

UNARY_TIMEOUT_S = 75
"""Backstop for calls that answer once; the longest wait a client may ask for is 60 s."""

STREAM_IDLE_TIMEOUT_S = 300
"""A stream without a byte in either direction; keep-alive comments come every 15 s."""

SOCKET_IDLE_TIMEOUT_S = 3600
"""A WebSocket without a frame in either direction."""

RETRIES_MAX = 3
"""Further tries where nothing has reached the gateway yet; with their backoff they span a few hundred milliseconds."""

KEYS_REFETCH_S = 30
"""How old the signing keys that tokens are checked with may be."""

TOKENS_CACHED_MAX = 1024
"""Verified tokens that are remembered, so that a busy client's signature is checked once."""

GRPC_CLUSTER = "gateway-grpc"
ASGI_CLUSTER = "gateway-asgi"
EDGE_SERVICE = "retinue.edge.v1.EdgeService"
ISSUER = "retinue"
AUDIENCE = "retinue"
_STREAMING_METHODS = ("StreamMessage", "WatchContact", "WatchRun")
_OPEN_PATHS = ("/healthz", "/readyz", "/openapi.json", "/docs")
_OPEN_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
_CLAIMS = {
    "tenant": "x-retinue-tenant",
    "sub": "x-retinue-principal",
    "scope": "x-retinue-scope",
    "jti": "x-retinue-jti",
    "exp": "x-retinue-exp",
}
_EVENT_PATHS = "/v1/(contacts|runs)/[^/]+/events"
_HTTP = "type.googleapis.com/envoy.extensions.filters.http"


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
            "clusters": [_grpc_cluster(sockets.grpc), _asgi_cluster(sockets.asgi)],
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
            "path_with_escaped_slashes_action": "REJECT_REQUEST",
            "common_http_protocol_options": {
                "headers_with_underscores_action": "REJECT_REQUEST",
                "idle_timeout": f"{SOCKET_IDLE_TIMEOUT_S}s",
            },
            "http2_protocol_options": {
                "initial_stream_window_size": BUFFER_SIZE_BYTES,
                "initial_connection_window_size": 4 * BUFFER_SIZE_BYTES,
            },
            "request_headers_timeout": f"{HEADERS_TIMEOUT_S}s",
            "request_timeout": f"{REQUEST_TIMEOUT_S}s",
            "stream_idle_timeout": f"{STREAM_IDLE_TIMEOUT_S}s",
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
            "http_filters": _filters(descriptor),
            "route_config": _routes(descriptor),
        },
    }


def _filters(descriptor: Path) -> list[Json]:
    return [
        _strip_forged_headers(),  # first: nothing after it can be told by a client who it is
        _check_tokens(),
        _strip_query_token(),
        _limit_rate(),  # after the token, whose tenant it counts
        {  # off, except on the routes that name it; the transcoder's own limit is per piece, not per body
            "name": "envoy.filters.http.buffer",
            "disabled": True,
            "typed_config": {"@type": f"{_HTTP}.buffer.v3.Buffer", "max_request_bytes": BODY_SIZE_MAX_BYTES},
        },
        {"name": "envoy.filters.http.grpc_json_transcoder", "typed_config": _transcoder(descriptor, [EDGE_SERVICE])},
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{_HTTP}.router.v3.Router", "suppress_envoy_headers": True},
        },
    ]


def _mutations(name: str, **mutations: list[Json]) -> Json:
    return {
        "name": name,
        "typed_config": {"@type": f"{_HTTP}.header_mutation.v3.HeaderMutation", "mutations": mutations},
    }


def _strip_forged_headers() -> Json:
    prefixes = ("x-tenant-", "x-retinue-")
    return _mutations(
        "strip-forged-headers",
        request_mutations=[{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes],
    )


def _strip_query_token() -> Json:
    return _mutations("strip-query-token", query_parameter_mutations=[{"remove": "access_token"}])


def _check_tokens() -> Json:
    header = {"from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}]}
    parameter = {"from_params": ["access_token"]}
    socket_headers = [*header["from_headers"], {"name": "sec-websocket-protocol", "value_prefix": "bearer."}]
    rules: list[Json] = [{"match": {"path": path}} for path in _OPEN_PATHS]
    rules += [{"match": {"prefix": prefix}} for prefix in _OPEN_PREFIXES]
    rules += [
        {"match": {"path": "/v1/ws"}, "requires": {"provider_name": "socket"}},
        {"match": {"safe_regex": {"regex": _EVENT_PATHS}}, "requires": {"provider_name": "events"}},
        {"match": {"prefix": "/"}, "requires": {"provider_name": "calls"}},
    ]
    return {
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": f"{_HTTP}.jwt_authn.v3.JwtAuthentication",
            "providers": {
                "calls": _provider(forward=False, **header),
                "events": _provider(forward=False, **header, **parameter),
                # Taking the token away would take the whole subprotocol header, which the handshake must answer.
                "socket": _provider(forward=True, from_headers=socket_headers, **parameter),
            },
            "rules": rules,
        },
    }


def _provider(*, forward: bool, **sources: object) -> Json:
    return {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "require_expiration": True,
        "clock_skew_seconds": 1,
        "forward": forward,
        **sources,
        "remote_jwks": {
            "http_uri": {"uri": "http://gateway/.well-known/jwks.json", "cluster": ASGI_CLUSTER, "timeout": "2s"},
            "cache_duration": f"{KEYS_REFETCH_S}s",
            "async_fetch": {"failed_refetch_duration": "1s"},
        },
        "jwt_cache_config": {"jwt_cache_size": TOKENS_CACHED_MAX},
        "claim_to_headers": [{"header_name": name, "claim_name": claim} for claim, name in _CLAIMS.items()],
    }


def _limit_rate() -> Json:
    def bucket(per_s: int, burst: int) -> Json:
        return {"max_tokens": burst, "tokens_per_fill": per_s, "fill_interval": "1s"}

    every = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    header = {"header_name": _CLAIMS["tenant"], "descriptor_key": "tenant"}
    return {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": f"{_HTTP}.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "rate",
            "token_bucket": bucket(RATE_UNNAMED_PER_S, RATE_UNNAMED_PER_S),
            "always_consume_default_token_bucket": False,
            "filter_enabled": every,
            "filter_enforced": every,
            "rate_limited_as_resource_exhausted": True,
            "max_dynamic_descriptors": RATED_TENANTS_MAX,
            "rate_limits": [{"actions": [{"request_headers": header}]}],
            "descriptors": [{"entries": [{"key": "tenant"}], "token_bucket": bucket(RATE_PER_S, RATE_BURST)}],
        },
    }


def _transcoder(descriptor: Path, services: list[str]) -> Json:
    return {
        "@type": f"{_HTTP}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(descriptor),
        "services": services,
        "convert_grpc_status": True,
        "ignore_unknown_query_parameters": True,
        "print_options": {"preserve_proto_field_names": True, "always_print_primitive_fields": True},
        "request_validation_options": {"reject_unknown_method": True},
        # Clients write `@`, `:` and `+` of a contact's name both plain and escaped.
        "url_unescape_spec": "ALL_CHARACTERS_EXCEPT_SLASH",
        "max_request_body_size": BODY_SIZE_MAX_BYTES,
        "max_response_body_size": ANSWER_SIZE_MAX_BYTES,
    }


def _routes(descriptor: Path) -> Json:
    untraced = {
        "client_sampling": {"numerator": 0},
        "random_sampling": {"numerator": 0},
        "overall_sampling": {"numerator": 0},
    }
    plain = {  # what ASGI answers is not transcoded
        "envoy.filters.http.grpc_json_transcoder": _transcoder(descriptor, [])
    }
    bounded = {
        "envoy.filters.http.buffer": {
            "@type": f"{_HTTP}.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": BODY_SIZE_MAX_BYTES},
        }
    }

    def asgi(path: str, method: str, timeout_s: int, **more: object) -> Json:
        header = {"name": ":method", "string_match": {"exact": method}}
        action: Json = {"cluster": ASGI_CLUSTER, "timeout": f"{timeout_s}s"}
        if path == "/v1/ws":
            action |= {"idle_timeout": f"{SOCKET_IDLE_TIMEOUT_S}s", "upgrade_configs": [{"upgrade_type": "websocket"}]}
        else:
            action["retry_policy"] = _retries()
        return {"match": {"path": path, "headers": [header]}, "route": action, **more}

    def grpc(prefix: str, timeout_s: int, **more: object) -> Json:
        action = {"cluster": GRPC_CLUSTER, "timeout": f"{timeout_s}s", "retry_policy": _retries()}
        return {"match": {"prefix": prefix}, "route": action, **more}

    routes = [asgi(path, "GET", 10, typed_per_filter_config=plain, tracing=untraced) for path in _OPEN_PATHS]
    routes += [
        asgi("/v1/ws", "GET", 0, typed_per_filter_config=plain),
        asgi("/v1/models", "GET", 10, typed_per_filter_config=plain),
        asgi("/v1/chat/completions", "POST", 0, typed_per_filter_config={**plain, **bounded}),
    ]
    # A transcoded request is routed a second time, by its method.
    routes += [grpc(f"/{EDGE_SERVICE}/{method}", 0) for method in _STREAMING_METHODS]
    routes += [grpc(f"/{EDGE_SERVICE}/", UNARY_TIMEOUT_S), grpc("/v1/", 0, typed_per_filter_config=bounded)]
    routes += [grpc(prefix, 0, tracing=untraced) for prefix in _OPEN_PREFIXES]
    # Nothing else of what the gateway serves to the mesh is reachable from outside.
    routes.append({"match": {"prefix": "/"}, "direct_response": {"status": 404}, "typed_per_filter_config": plain})
    return {
        "name": "edge",
        "virtual_hosts": [{"name": "edge", "domains": ["*"], "routes": routes}],
        "response_headers_to_add": [envoy_refusals.TRACE_ID_HEADER],
        "response_headers_to_remove": ["grpc-accept-encoding"],
    }


def _retries() -> Json:
    # Only where the request has not been sent, so that even what must not happen twice may be tried again.
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request",
        "num_retries": RETRIES_MAX,
        "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"},
    }


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


def _grpc_cluster(path: Path) -> Json:
    http2 = {
        "connection_keepalive": {"interval": "30s", "timeout": "5s"},
        "initial_stream_window_size": BUFFER_SIZE_BYTES,
        "initial_connection_window_size": 16 * BUFFER_SIZE_BYTES,
    }
    return _cluster(GRPC_CLUSTER, path, {"explicit_http_config": {"http2_protocol_options": http2}})


def _asgi_cluster(path: Path) -> Json:
    # The server closes idle connections after 5 s; whoever closes first must be the one who sends.
    return _cluster(
        ASGI_CLUSTER,
        path,
        {
            "common_http_protocol_options": {"idle_timeout": "3s"},
            "explicit_http_config": {"http_protocol_options": {}},
        },
    )
