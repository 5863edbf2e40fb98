"""What Envoy does with each request, in order: strip, check, limit, turn JSON into gRPC."""

from importlib import resources
from pathlib import Path
from typing import Any

from retinue_gateway.envoy_clusters import ASGI_CLUSTER

Json = dict[str, Any]

BODY_SIZE_MAX_BYTES = 1024 * 1024
"""A request's body as the public contract bounds it; below what the services take, so that the edge is who refuses."""

FILE_SIZE_MAX_BYTES = 4 * BODY_SIZE_MAX_BYTES
"""A file that is uploaded, which is the body."""

BUNDLE_SIZE_MAX_BYTES = 3 * BODY_SIZE_MAX_BYTES
"""A bundle that is brought back, which is the body."""

ANSWER_SIZE_MAX_BYTES = 32 * 1024 * 1024
"""A unary answer as JSON: a page of 2 MiB grows by escapes, at worst sixfold."""

RATE_PER_S = 1000
"""Requests a second that each tenant may make for as long as it likes, as the public contract promises."""

RATE_BURST = 2000
"""Requests that a tenant may make at once after a quiet second."""

RATED_TENANTS_MAX = 4096
"""Tenants whose rate is remembered, the least recent forgotten first: about 1 KiB each."""

RATE_UNNAMED_PER_S = 10_000
"""Requests a second without a tenant (health, documents), all together: far above any prober."""

KEYS_REFETCH_S = 30
"""How old the signing keys that tokens are checked with may be."""

TOKENS_CACHED_MAX = 1024
"""Verified tokens that are remembered, so that a busy client's signature is checked once."""

EDGE_PACKAGE = "retinue.edge.v1"
EDGE_SERVICE = f"{EDGE_PACKAGE}.EdgeService"
INSTANCE_SERVICE = f"{EDGE_PACKAGE}.InstanceService"
FILE_SERVICE = f"{EDGE_PACKAGE}.FileService"
EDGE_SERVICES = (
    EDGE_SERVICE,
    INSTANCE_SERVICE,
    FILE_SERVICE,
    f"{EDGE_PACKAGE}.ContextService",
    f"{EDGE_PACKAGE}.ScheduleService",
    f"{EDGE_PACKAGE}.ToolService",
    f"{EDGE_PACKAGE}.WebhookService",
    f"{EDGE_PACKAGE}.DeadLetterService",
)
"""What the public contract is made of; each has its JSON form."""

ISSUER = "retinue"
AUDIENCE = "retinue"

OPEN_PATHS = ("/healthz", "/readyz", "/openapi.json", "/docs")
"""Paths that need no token."""

OPEN_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""What gRPC callers may ask without a token."""

_CLAIMS = {
    "tenant": "x-retinue-tenant",
    "sub": "x-retinue-principal",
    "scope": "x-retinue-scope",
    "jti": "x-retinue-jti",
    "exp": "x-retinue-exp",
}
_STRIP = "strip-forged-headers"
_EVENT_PATHS = "/v1/(contacts|runs)/[^/]+/events"

FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
"""Where the types of HTTP filters are."""


def filters(descriptor: Path) -> list[Json]:
    """List the filters."""
    return [
        _strip_forged_headers(),  # first: nothing after it can be told by a client who it is
        _check_tokens(),
        _strip_token(),
        _limit_rate(),  # after the token, whose tenant it counts
        {  # off, except on the routes that name it; the transcoder's own limit is per piece, not per body
            "name": "envoy.filters.http.buffer",
            "disabled": True,
            "typed_config": {"@type": f"{FILTERS}.buffer.v3.Buffer", "max_request_bytes": BODY_SIZE_MAX_BYTES},
        },
        {"name": "envoy.filters.http.grpc_json_transcoder", "typed_config": transcoder(descriptor, [*EDGE_SERVICES])},
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{FILTERS}.router.v3.Router", "suppress_envoy_headers": True},
        },
    ]


def _mutations(name: str, **mutations: list[Json]) -> Json:
    return {
        "name": name,
        "typed_config": {"@type": f"{FILTERS}.header_mutation.v3.HeaderMutation", "mutations": mutations},
    }


def _strip_forged_headers() -> Json:
    prefixes = ("x-tenant-", "x-retinue-")
    return _mutations(
        _STRIP,
        request_mutations=[{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in prefixes],
    )


def _strip_token() -> Json:
    code = resources.files("retinue_gateway").joinpath("strip_token.lua").read_text()
    return {
        "name": "strip-token",
        "typed_config": {"@type": f"{FILTERS}.lua.v3.Lua", "default_source_code": {"inline_string": code}},
    }


def without_grpc_headers() -> Json:
    """Configure a route: headers that would mean something to gRPC, or that it refuses, go no further.

    HTTP knows more names than gRPC, and a client that speaks HTTP cannot know which.
    """
    pattern = "grpc-.*|.*-bin|.*[^0-9a-z_.:-].*"
    mutation = {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": pattern}}}}
    return {
        _STRIP: {
            "@type": f"{FILTERS}.header_mutation.v3.HeaderMutationPerRoute",
            "mutations": {"request_mutations": [mutation]},
        }
    }


def _check_tokens() -> Json:
    header = {"from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}]}
    parameter = {"from_params": ["access_token"]}
    socket_headers = [*header["from_headers"], {"name": "sec-websocket-protocol", "value_prefix": "bearer."}]
    rules: list[Json] = [{"match": {"path": path}} for path in OPEN_PATHS]
    rules += [{"match": {"prefix": prefix}} for prefix in OPEN_PREFIXES]
    rules += [
        {"match": {"path": "/v1/ws"}, "requires": {"provider_name": "socket"}},
        {"match": {"safe_regex": {"regex": _EVENT_PATHS}}, "requires": {"provider_name": "events"}},
        {"match": {"prefix": "/"}, "requires": {"provider_name": "calls"}},
    ]
    return {
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": f"{FILTERS}.jwt_authn.v3.JwtAuthentication",
            "providers": {
                "calls": _provider(forward=False, **header),
                # Taking the token away would decode the whole query, and take the whole subprotocol header, which the
                # handshake must answer; so it is done behind this, by strip_token.lua.
                "events": _provider(forward=True, **header, **parameter),
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
            "@type": f"{FILTERS}.local_ratelimit.v3.LocalRateLimit",
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


def transcoder(descriptor: Path, services: list[str], body_size_max_bytes: int = BODY_SIZE_MAX_BYTES) -> Json:
    """Turn JSON into calls of these services, and their answers into JSON."""
    return {
        "@type": f"{FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(descriptor),
        "services": services,
        "convert_grpc_status": True,
        "ignore_unknown_query_parameters": True,
        "print_options": {"preserve_proto_field_names": True, "always_print_primitive_fields": True},
        "request_validation_options": {"reject_unknown_method": True},
        # Clients write `@`, `:` and `+` of a contact's name both plain and escaped.
        "url_unescape_spec": "ALL_CHARACTERS_EXCEPT_SLASH",
        "max_request_body_size": body_size_max_bytes,
        "max_response_body_size": ANSWER_SIZE_MAX_BYTES,
    }
