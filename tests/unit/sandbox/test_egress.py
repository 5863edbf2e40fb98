"""What may be reached, with which secrets, and what is said of it: without a proxy and without a network."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.config import SettingError
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox.egress import decisions, envoy, envoy_config, finding, injected, proxy, routes
from retinue_sandbox.egress.injected import Secret
from retinue_sandbox.egress.targets import Target, parse, parse_all, reachable

API = Target("api.test", 443)
SECRET = Secret("key", (API,), "authorization", "100%-real", None)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("api.test:443", "api.test", 443),
        ("API.Test:80", "api.test", 80),
        ("a_b-c.test:65535", "a_b-c.test", 65535),
        ("8.8.8.8:53", "8.8.8.8", 53),
        ("[2001:DB8::1]:443", "2001:db8::1", 443),
    ],
)
def test_a_host_and_a_port_are_read(text: str, host: str, port: int) -> None:
    assert parse(text) == Target(host, port)
    assert parse(str(Target(host, port))) == Target(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "api.test", "api.test:", "api.test:0", "api.test:65536", "api.test:+80", "api.test:٨٠", ":443",
        "*.test:443", "api.test.:443", ".api.test:443", "-a.test:443", "a b:443", "a/b:443", "user@api.test:443",
        "[api.test]:443", "[::1", "127.1:80", "2130706433:80", "0x7f000001:80", "0x7f.1:80", "1.2.3:80", "*:443",
        "::1:443", "0177.0.0.1:80",
        "api.test:443\n", "api.test\r\n:443", f"{'a' * 64}.test:443", f"{'a.' * 127}test:443", "аpi.test:443",
    ],
)  # fmt: skip
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(RetinueError) as caught:
        parse(text)
    assert (caught.value.reason, caught.value.metadata) == (Reason.FIELD_INVALID, {"field": "egress"})


def test_grants_are_each_taken_once() -> None:
    assert parse_all(["b.test:1", "a.test:2", "B.test:1"]) == [Target("a.test", 2), Target("b.test", 1)]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
        "2002:a00:1::1", "2001:db8::1", "::127.0.0.1", "198.18.0.1", "192.0.2.1", "nonsense",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_never_reached(address: str) -> None:
    assert reachable([address]) == []
    assert reachable(["8.8.8.8", address]) == ["8.8.8.8"]


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_a_public_address_is_reached(address: str) -> None:
    assert reachable([address, address]) == [address]


@given(st.ip_addresses())
def test_no_private_address_passes_in_whatever_wrapping(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if isinstance(address, ipaddress.IPv4Address):
        wrapped = [str(address), f"::ffff:{address}", f"64:ff9b::{address}"]
        assert {bool(reachable([str(ipaddress.ip_address(text))])) for text in wrapped} == {
            bool(reachable([str(address)]))
        }
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        mapped = getattr(address, "ipv4_mapped", None)
        assert not reachable([str(address)]) or (mapped is not None and mapped.is_global)


def test_a_network_of_ones_own_may_be_let_in() -> None:
    private = proxy.networks("10.1.0.0/16, fd00:1::/32")
    assert reachable(["10.1.2.3", "10.2.0.1", "fd00:1::5", "169.254.169.254"], private) == ["10.1.2.3", "fd00:1::5"]
    assert proxy.networks("") == ()
    for wrong in ("10.1.2.3/16", "everything", "10.0.0.0/8;"):
        with pytest.raises(SettingError, match="RETINUE_EGRESS_PRIVATE"):
            proxy.networks(wrong)


def secrets_file(tmp_path: Path, value: Any) -> str:
    """Write a file of secrets."""
    path = tmp_path / "secrets.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_secrets_are_read_and_never_shown(tmp_path: Path) -> None:
    entry = {"hosts": ["api.test", "api.test:8443"], "header": "X-Key", "value": "s3cret", "tenants": ["ten_a"]}
    (secret,) = injected.load(secrets_file(tmp_path, {"key": entry}))
    assert secret.targets == (API, Target("api.test", 8443))
    assert (secret.header, secret.value, secret.placeholder) == ("x-key", "s3cret", "retinue-secret:key")
    assert (secret.is_for("ten_a"), secret.is_for("ten_b")) == (True, False)
    assert "s3cret" not in f"{secret!r} {secret}"
    assert injected.load("") == ()


@pytest.mark.parametrize(
    "value",
    [
        "[]", "{", "nothing", {"key": {"hosts": [], "value": "hidden"}}, {"key": {"hosts": ["a.test"]}},
        {"key": {"hosts": ["a.test"], "value": ""}}, {"key": {"hosts": ["a.test"], "value": "hidden\r\nHost: b"}},
        {"key": {"hosts": ["*"], "value": "hidden"}}, {"a b": {"hosts": ["a.test"], "value": "hidden"}},
        {"key": {"hosts": ["a.test"], "value": "hidden", "header": "Host"}},
        {"key": {"hosts": ["a.test"], "value": "hidden", "header": "x-envoy-retry-on"}},
        {"key": {"hosts": ["a.test"], "value": "hidden", "more": 1}}, {"key": {"hosts": ["a.test"], "value": 7}},
        {f"k{number}": {"hosts": ["a.test"], "value": "hidden"} for number in range(injected.SECRETS_MAX + 1)},
    ],
)  # fmt: skip
def test_a_bad_file_of_secrets_is_refused_without_telling_any(tmp_path: Path, value: Any) -> None:
    with pytest.raises(SettingError, match="RETINUE_EGRESS_SECRETS") as caught:
        injected.load(secrets_file(tmp_path, value))
    assert "hidden" not in str(caught.value)


def test_a_file_of_secrets_is_bounded_and_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        injected.load(str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match="larger"):
        injected.load(secrets_file(tmp_path, " " * (injected.FILE_SIZE_MAX_BYTES + 1)))


def built(*targets: Target, secrets: tuple[Secret, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """The routes of a box, by domain."""
    made = routes.build(targets, secrets, {"authorization"}, lambda target: target.port == 443)
    domains = [domain for host in made["virtual_hosts"] for domain in host["domains"]]
    assert len(set(domains)) == len(domains)  # Envoy refuses two of a name
    return {host["domains"][0]: host["routes"] for host in made["virtual_hosts"]}


def test_only_what_is_granted_has_a_route_that_leads_somewhere() -> None:
    hosts = built(API, Target("web.test", 80))
    assert set(hosts) == {"api.test:443", "web.test:80", "web.test", "*"}
    assert all("direct_response" in route for route in hosts["*"])
    leading = {route["route"]["cluster"] for host in hosts.values() for route in host if "route" in route}
    assert leading == {"tunnel|api.test:443", "to|api.test:443", "to|web.test:80"}
    for host in hosts.values():  # whatever no route before has taken is refused
        assert ["connect_matcher" in route["match"] for route in host[-2:]] == [True, False]
        assert all(route["direct_response"]["status"] == 403 for route in host[-2:])


@given(
    st.lists(
        st.builds(Target, st.sampled_from(["a.test", "b.test", "10.0.0.1", "::1"]), st.sampled_from([80, 443, 81]))
    ),
    st.booleans(),
)
def test_every_set_of_grants_makes_routes_that_lead_to_these_alone(targets: list[Target], with_secrets: bool) -> None:
    unique = sorted(set(targets))
    secret = Secret("s", (Target("a.test", 443), Target("b.test", 81)), "x-key", "v", None)
    hosts = built(*unique, secrets=(secret,) if with_secrets else ())
    leading = {
        route["route"]["cluster"].partition("|")[2] for host in hosts.values() for route in host if "route" in route
    }
    assert leading == {str(target) for target in unique}


def test_a_secret_stands_in_routes_of_its_own_hosts_and_placeholders_are_refused_elsewhere() -> None:
    hosts = built(API, Target("web.test", 443), secrets=(SECRET,))
    assert set(hosts) == {"api.test:443", "api.test", "web.test:443", "*"}
    for domain, host in hosts.items():
        assert ("100%%-real" in json.dumps(host)) == domain.startswith("api.test")
        if domain != "*" and domain.endswith("443"):
            where = [
                index for index, route in enumerate(host) if "misplaced" in route["name"] or "may not go" in str(route)
            ]
            passing = [index for index, route in enumerate(host) if route["name"] == routes.ALLOWED]
            assert where
            assert where[0] < passing[-1]
    with_secret = [route for route in hosts["api.test"] if route["name"] == routes.WITH_SECRET]
    assert {route["route"]["cluster"] for route in with_secret} == {"tls|api.test:443"}
    # Without the grant the secret's host is as any other.
    assert "real" not in json.dumps(built(Target("web.test", 443), secrets=(SECRET,)))


def test_what_envoy_is_told_is_bounded_and_names_only_addresses_that_were_checked() -> None:
    way = envoy_config.Way("k", (API,), (SECRET,), frozenset({"authorization"}))
    ports = frozenset({443})
    written = envoy_config.listeners([envoy_config.listener(way, ports)], [API], ports, 7)
    told = msgspec.json.decode(msgspec.json.encode(written))
    assert told["version_info"] == "7"
    assert [one["name"] for one in told["resources"]] == ["tunnel|api.test:443", "box|k"]
    clusters = envoy_config.clusters([API], [SECRET], frozenset({443}), 1)["resources"]
    assert {cluster["name"]: cluster["type"] for cluster in clusters} == {
        "to|api.test:443": "EDS", "tls|api.test:443": "EDS", "tunnel|api.test:443": "STATIC",
    }  # fmt: skip
    assert all("circuit_breakers" in cluster and "connect_timeout" in cluster for cluster in clusters)
    (none,) = envoy_config.endpoints(API, [], 1)["resources"]
    assert none["endpoints"] == []
    (several,) = envoy_config.endpoints(API, ["1.1.1.1", "2606:4700::1"], 1)["resources"]
    text = json.dumps(several)
    assert re.findall(r'"address": "([^"]+)"', text) == ["1.1.1.1", "2606:4700::1"]
    assert "api.test" not in json.dumps(several["endpoints"])


@pytest.mark.parametrize(
    ("line", "effect"),
    [
        ({"status": 200, "detail": "via_upstream", "route": "allowed"}, "allowed"),
        ({"status": 403, "detail": "via_upstream", "route": "allowed"}, "allowed"),
        ({"status": 200, "detail": "via_upstream", "route": "allowed-with-secret"}, "allowed"),
        ({"status": 200, "detail": "downstream_remote_disconnect", "route": "allowed", "method": "CONNECT"}, "allowed"),
        ({"status": 403, "detail": "direct_response", "route": "refused"}, "refused"),
        ({"status": 403, "detail": "no_healthy_upstream", "route": "allowed"}, "refused"),
        ({"status": 400, "detail": "http1.codec_error", "route": None}, "refused"),
        (
            {"status": 503, "detail": "upstream_reset_before_response_started{connection_failure}", "route": "allowed"},
            "failed",
        ),
    ],
)
def test_a_line_of_the_log_says_what_became_of_a_request(line: dict[str, Any], effect: str) -> None:
    rows: list[dict[str, Any]] = []
    taken = decisions.Decisions(lambda kind, /, **facts: rows.append({"kind": kind, **facts}))
    taken.know("k", "box-1", "ten_a")
    taken.take(json.dumps({"box": "k", "authority": "api.test:443", "method": "GET"} | line).encode())
    (row,) = rows
    assert (row["kind"], row["effect"], row["tenant_id"], row["box"]) == ("egress", effect, "ten_a", "box-1")


def test_lines_of_a_closed_box_are_still_its_own_and_bounded() -> None:
    rows: list[dict[str, Any]] = []
    taken = decisions.Decisions(lambda kind, /, **facts: rows.append(facts))
    for number in range(decisions.FORGOTTEN_MAX + 1):
        taken.know(str(number), f"box-{number}", "ten_a")
        taken.forget(str(number))
    for line in (b'{"box": "1"}', b'{"box": "0"}', b"not a line", b'{"box": 5}'):
        taken.take(line)
    assert [row["box"] for row in rows] == ["box-1", ""]


def test_the_proxy_runs_as_no_tenants_user() -> None:
    assert envoy.user_beside(700_000, 100_000) == envoy.USER
    assert envoy.user_beside(envoy.USER, 1) == envoy.USER + 1
    assert envoy.user_beside(1, envoy.USER) == envoy.USER + 1


def test_an_envoy_that_is_named_has_to_be_a_program(tmp_path: Path) -> None:
    path = tmp_path / "envoy"
    path.write_text("#!/bin/sh\n")
    for wrong in (str(path), "envoy", str(tmp_path)):
        with pytest.raises(SettingError, match="RETINUE_ENVOY_PATH"):
            finding.program(wrong)
    path.chmod(0o755)
    assert finding.program(str(path)) == path
    with pytest.raises(SettingError, match="RETINUE_EGRESS_CA_FILE"):
        finding.authorities(str(tmp_path / "nowhere"))
