"""Which request goes where, for how long, and how often."""

from pathlib import Path
from typing import Any

from retinue_gateway import envoy_refusals
from retinue_gateway.envoy_clusters import ASGI_CLUSTER, GRPC_CLUSTER
from retinue_gateway.envoy_filters import (
    BODY_SIZE_MAX_BYTES,
    BUNDLE_SIZE_MAX_BYTES,
    EDGE_PACKAGE,
    EDGE_SERVICE,
    EDGE_SERVICES,
    FILE_SERVICE,
    FILE_SIZE_MAX_BYTES,
    FILTERS,
    INSTANCE_SERVICE,
    OPEN_PATHS,
    OPEN_PREFIXES,
    transcoder,
    without_grpc_headers,
)

Json = dict[str, Any]

DRAIN_TIMEOUT_S = 30
"""How long a body that is too large may take to be read and thrown away; as long as any request may take to arrive."""

UNARY_TIMEOUT_S = 75
"""Backstop for calls that answer once; the longest wait a client may ask for is 60 s."""

SOCKET_IDLE_TIMEOUT_S = 3600
"""A WebSocket without a frame in either direction."""

RETRIES_MAX = 3
"""Further tries where nothing has reached the gateway yet; with their backoff they span a few hundred milliseconds."""

API_PREFIXES = ("/v1/", "/api/")
"""Where the JSON form of the contract lies."""

FILES_PREFIX = "/v1/files/"
"""Where a body is a file, and may be larger than another."""

DOWNLOAD_TIMEOUT_S = 3600
"""For a file to be read by its client: the largest that an execution writes, 256 MiB, at 75 KiB/s. Who takes nothing
is cut off sooner, as every idle stream is."""

_FILE_PATH = f"{FILES_PREFIX}.+"
_BUNDLE_PATH = "/v1/contacts/[^/]+/bundle"
"""Where a body is a bundle."""

_AUTHORITY = {
    "header": {"key": "x-retinue-authority", "value": "%REQ(:AUTHORITY)%"},
    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
}
"""The host that a request named, which gRPC keeps from whoever answers it."""

_METHOD_GET = {"name": ":method", "string_match": {"exact": "GET"}}
_STREAMING_METHODS = ("StreamMessage", "WatchContact", "WatchRun")


def routes(descriptor: Path) -> Json:
    """Make the route configuration."""
    untraced = {
        "client_sampling": {"numerator": 0},
        "random_sampling": {"numerator": 0},
        "overall_sampling": {"numerator": 0},
    }
    plain = {  # what ASGI answers is not transcoded
        "envoy.filters.http.grpc_json_transcoder": transcoder(descriptor, [])
    }
    bounded = _bounded(BODY_SIZE_MAX_BYTES)

    def asgi(path: str, method: str, timeout_s: int, **more: object) -> Json:
        header = {"name": ":method", "string_match": {"exact": method}}
        action: Json = {"cluster": ASGI_CLUSTER, "timeout": f"{timeout_s}s"}
        if path == "/v1/ws":
            action |= {"idle_timeout": f"{SOCKET_IDLE_TIMEOUT_S}s", "upgrade_configs": [{"upgrade_type": "websocket"}]}
        else:
            action["retry_policy"] = _retries()
        return {"match": {"path": path, "headers": [header]}, "route": action, **more}

    def grpc(place: str | Json, timeout_s: int, **more: object) -> Json:
        action = {"cluster": GRPC_CLUSTER, "timeout": f"{timeout_s}s", "retry_policy": _retries()}
        return {"match": _at(place), "route": action, **more}

    def larger(size_max_bytes: int) -> Json:
        return {
            **_bounded(size_max_bytes),
            **without_grpc_headers(),
            "envoy.filters.http.grpc_json_transcoder": transcoder(descriptor, [*EDGE_SERVICES], size_max_bytes),
        }

    def too_large(place: str | Json, size_max_bytes: int) -> Json:
        # What says that it is too large is read to its end there: cut off here, a client may not come to read why.
        header = {"name": "content-length", "range_match": {"start": size_max_bytes + 1, "end": 2**63 - 1}}
        return {
            "match": {**_at(place), "headers": [header]},
            "route": {"cluster": ASGI_CLUSTER, "timeout": f"{DRAIN_TIMEOUT_S}s"},
            "typed_per_filter_config": plain,
        }

    listed: list[Json] = [
        {  # no name holds a slash, and what one is must not be read in two ways
            "match": {"safe_regex": {"regex": "(?i).*%(2f|5c).*"}},
            "direct_response": {"status": 400},
            "typed_per_filter_config": plain,
        },
    ]
    bundle_path = {"safe_regex": {"regex": _BUNDLE_PATH}}
    listed += [
        too_large(FILES_PREFIX, FILE_SIZE_MAX_BYTES),
        {  # past the transcoder, which would end what broke off as if it were whole
            "match": {"safe_regex": {"regex": _FILE_PATH}, "headers": [_METHOD_GET]},
            "route": {"cluster": ASGI_CLUSTER, "timeout": f"{DOWNLOAD_TIMEOUT_S}s", "retry_policy": _retries()},
            "typed_per_filter_config": plain,
        },
        grpc(FILES_PREFIX, 0, typed_per_filter_config=larger(FILE_SIZE_MAX_BYTES)),
        too_large(bundle_path, BUNDLE_SIZE_MAX_BYTES),
        grpc(bundle_path, 0, typed_per_filter_config=larger(BUNDLE_SIZE_MAX_BYTES)),
        *(too_large(prefix, BODY_SIZE_MAX_BYTES) for prefix in API_PREFIXES),
    ]
    listed += [asgi(path, "GET", 10, typed_per_filter_config=plain, tracing=untraced) for path in OPEN_PATHS]
    listed += [
        asgi("/v1/ws", "GET", 0, typed_per_filter_config=plain),
        asgi("/v1/models", "GET", 10, typed_per_filter_config=plain),
        asgi("/v1/chat/completions", "POST", 0, typed_per_filter_config={**plain, **bounded}),
        {  # whatever the method: which there are, and how one is refused that is not, is said by MCP
            "match": {"path": "/v1/mcp"},
            "route": {"cluster": ASGI_CLUSTER, "timeout": "0s", "retry_policy": _retries()},
            "typed_per_filter_config": {**plain, **bounded},
        },
    ]
    # A transcoded request is routed a second time, by its method.
    listed += [grpc(f"/{EDGE_SERVICE}/{method}", 0) for method in _STREAMING_METHODS]
    listed.append(grpc(f"/{FILE_SERVICE}/DownloadFile", DOWNLOAD_TIMEOUT_S))
    listed.append(grpc(f"/{INSTANCE_SERVICE}/GetChatUrl", UNARY_TIMEOUT_S, request_headers_to_add=[_AUTHORITY]))
    listed.append(grpc(f"/{EDGE_PACKAGE}.", UNARY_TIMEOUT_S))
    whole = {**bounded, **without_grpc_headers()}
    listed += [grpc(prefix, 0, typed_per_filter_config=whole) for prefix in API_PREFIXES]
    listed += [grpc(prefix, 0, tracing=untraced) for prefix in OPEN_PREFIXES]
    # Nothing else of what the gateway serves to the mesh is reachable from outside.
    listed.append({"match": {"prefix": "/"}, "direct_response": {"status": 404}, "typed_per_filter_config": plain})
    return {
        "name": "edge",
        "virtual_hosts": [{"name": "edge", "domains": ["*"], "routes": listed}],
        "response_headers_to_add": [envoy_refusals.TRACE_ID_HEADER],
        "response_headers_to_remove": ["grpc-accept-encoding"],
    }


def _at(place: str | Json) -> Json:
    """Match what begins so, or is otherwise as Envoy is told."""
    return {"prefix": place} if isinstance(place, str) else place


def _bounded(size_max_bytes: int) -> Json:
    return {
        "envoy.filters.http.buffer": {
            "@type": f"{FILTERS}.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": size_max_bytes},
        }
    }


def _retries() -> Json:
    # Only where the request has not been sent, so that even what must not happen twice may be tried again.
    return {
        # What a leaving process ends as cancelled was not begun there either: calls under way end as draining.
        "retry_on": "connect-failure,refused-stream,reset-before-request,cancelled",
        "num_retries": RETRIES_MAX,
        "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"},
    }
