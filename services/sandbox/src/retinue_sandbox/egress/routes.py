"""What a box's requests lead to: one virtual host for each name it may use, and a refusal for all others."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from retinue_sandbox.egress.injected import PLACEHOLDER, TLS_PORT, Secret
from retinue_sandbox.egress.targets import Target

Json = dict[str, Any]

NAME_TO_TARGET = "to|{}"
NAME_TO_TLS = "tunnel|{}"
NAME_TO_SECRETS = "tls|{}"
"""Names of clusters, by the target."""

HTTP_PORT = 80
"""What a plain request without a port means."""

METHODS = "GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS"

REFUSED = "refused"
ALLOWED = "allowed"
WITH_SECRET = "allowed-with-secret"
"""Names of routes, for the log."""

_PREFIXES = ("", "Bearer ")
"""What may stand before a placeholder; libraries put it before any key they are given."""

_DROPPED = [
    "proxy-authorization",
    "proxy-connection",
    "x-forwarded-proto",
    "x-request-id",
    "x-envoy-expected-rq-timeout-ms",
]
"""Meant for the proxy, or added by it."""

_NOT_GRANTED = "This host and port were not granted to the sandbox.\n"
_METHOD = "The sandbox's proxy passes no requests of this method.\n"
_MISPLACED = "A placeholder of a secret stands where the secret may not go.\n"
_UNREACHABLE = "This host has no public address that the sandbox may connect to.\n"


def build(
    targets: Sequence[Target],
    secrets: Iterable[Secret],
    guarded_headers: Iterable[str],
    is_inspected: Callable[[Target], bool],
) -> Json:
    """Make the routes of a box with these grants, whose tenant may use these secrets.

    `guarded_headers` are those in which any secret of the deployment may stand.
    """
    granted = set(targets)
    usable = [secret for secret in secrets if granted.intersection(secret.targets)]
    misplaced = [_misplaced(header) for header in sorted(set(guarded_headers))]
    hosts = [
        _virtual_host(
            str(target),
            [_tunnel(target, is_inspected), *_with_secrets(target, usable, granted), *misplaced, *_plain(target)],
        )
        for target in targets
    ]
    for target in targets:
        # Without a port a secret's host is meant as its own TLS port, and what holds no placeholder as plain.
        wrapped = _with_secrets(Target(target.host, TLS_PORT), usable, granted)
        if target.port == HTTP_PORT:
            hosts.append(_virtual_host(target.bare, [*wrapped, *misplaced, *_plain(target)]))
        elif target.port == TLS_PORT and wrapped and Target(target.host, HTTP_PORT) not in granted:
            hosts.append(_virtual_host(target.bare, [*wrapped, *_refusals(_NOT_GRANTED)]))
    hosts.append(_virtual_host("*", _refusals(_NOT_GRANTED)))
    return {
        "name": "box",
        # The clusters are told by another file; Envoy may read it a moment later.
        "validate_clusters": False,
        "request_headers_to_remove": _DROPPED,
        "virtual_hosts": hosts,
    }


def _virtual_host(domain: str, routes: list[Json]) -> Json:
    return {"name": domain, "domains": [domain], "routes": routes}


def _tunnel(target: Target, is_inspected: Callable[[Target], bool]) -> Json:
    return {
        "name": ALLOWED,
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": (NAME_TO_TLS if is_inspected(target) else NAME_TO_TARGET).format(target),
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }


def _with_secrets(target: Target, secrets: Iterable[Secret], granted: set[Target]) -> list[Json]:
    if target not in granted:
        return []
    found = [secret for secret in secrets if target in secret.targets]
    return [_with_secret(target, secret, prefix) for secret in found for prefix in _PREFIXES]


def _with_secret(target: Target, secret: Secret, prefix: str) -> Json:
    is_placeholder = {"name": secret.header, "string_match": {"exact": prefix + secret.placeholder}}
    return {
        "name": WITH_SECRET,
        "match": {"prefix": "/", "headers": [_is_usual_method(), is_placeholder]},
        "route": {"cluster": NAME_TO_SECRETS.format(target), "timeout": "0s", "host_rewrite_literal": _named(target)},
        "request_headers_to_add": [
            {
                # Envoy reads a per cent sign as the beginning of a command.
                "header": {"key": secret.header, "value": prefix + secret.value.replace("%", "%%")},
                "append_action": "OVERWRITE_IF_EXISTS",
            }
        ],
    }


def _named(target: Target) -> str:
    """The host as a client of it would write it."""
    return target.bare if target.port == TLS_PORT else str(target)


def _plain(target: Target) -> list[Json]:
    passed = {
        "name": ALLOWED,
        "match": {"prefix": "/", "headers": [_is_usual_method()]},
        "route": {"cluster": NAME_TO_TARGET.format(target), "timeout": "0s"},
    }
    return [passed, *_refusals(_METHOD)]


def _is_usual_method() -> Json:
    return {"name": ":method", "string_match": {"safe_regex": {"regex": METHODS}}}


def _misplaced(header: str) -> Json:
    """A placeholder that no route before has taken is refused, so that a mistake is seen as one."""
    found = {"safe_regex": {"regex": f".*{re.escape(PLACEHOLDER)}.*"}}
    return _refusal({"prefix": "/", "headers": [{"name": header, "string_match": found}]}, _MISPLACED)


def _refusals(text: str) -> list[Json]:
    return [_refusal({"connect_matcher": {}}, text), _refusal({"prefix": "/"}, text)]


def _refusal(match: Json, text: str) -> Json:
    return {
        "name": REFUSED,
        "match": match,
        "direct_response": {"status": 403, "body": {"inline_string": text}},
    }


def mappers() -> list[Json]:
    """Say of a host without an address why it cannot be reached."""
    return [
        {
            "filter": {"response_flag_filter": {"flags": ["UH"]}},
            "status_code": 403,
            "body": {"inline_string": _UNREACHABLE},
        }
    ]
