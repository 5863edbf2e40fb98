"""Envoy's configuration, as far as its shape tells."""

import json
from pathlib import Path

import pytest
from retinue_gateway import context, envoy_clusters, envoy_config, envoy_filters, envoy_refusals, files
from retinue_kit.errors import CODES, Reason

PREFIXES = ("/v1/", "/api/")
BUNDLES = "/v1/contacts/[^/]+/bundle"


@pytest.fixture
def config():
    return build()


def build(tls=None, sample_percent=100.0):
    sockets = envoy_config.Sockets(Path("/r/g.sock"), Path("/r/a.sock"), Path("/r/admin.sock"))
    listen = envoy_config.Listen("127.0.0.1", 8080)
    return envoy_config.build(listen, sockets, Path("/d.binpb"), tls=tls, sample_percent=sample_percent)


def manager(config):
    return config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]


def test_it_is_json_and_the_same_each_time(config):
    assert json.dumps(config) == json.dumps(build())


def test_forged_headers_are_gone_before_tokens_are_checked_and_tokens_before_rates(config):
    names = [item["name"] for item in manager(config)["http_filters"]]
    assert names[0] == "strip-forged-headers"
    assert names.index("envoy.filters.http.jwt_authn") < names.index("envoy.filters.http.local_ratelimit")
    assert names[-1] == "envoy.filters.http.router"


def test_only_a_unix_socket_leads_to_the_admin_interface(config):
    assert config["admin"]["address"] == {"pipe": {"path": "/r/admin.sock", "mode": 0o600}}


def test_tls_is_1_3_where_a_certificate_is_set(config):
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    assert "transport_socket" not in chain
    chain = build(tls=envoy_config.Tls(Path("/c"), Path("/k")))["static_resources"]["listeners"][0]["filter_chains"][0]
    common = chain["transport_socket"]["typed_config"]["common_tls_context"]
    assert common["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"
    assert common["alpn_protocols"] == ["h2", "http/1.1"]


def test_sampling_is_what_the_operator_says():
    assert manager(build(sample_percent=2.5))["tracing"]["random_sampling"] == {"value": 2.5}


def test_everything_that_holds_bytes_is_bounded(config):
    resources = config["static_resources"]
    for holder in (*resources["listeners"], *resources["clusters"]):
        assert holder["per_connection_buffer_limit_bytes"] == envoy_clusters.BUFFER_SIZE_BYTES


def test_refusals_use_the_reasons_and_codes_of_the_contract():
    for refusal in envoy_refusals.REFUSALS:
        assert refusal.code == CODES[Reason(refusal.reason)].value or refusal.status == 504


def listed(config):
    return manager(config)["route_config"]["virtual_hosts"][0]["routes"]


def test_bodies_are_bounded_and_odd_headers_dropped_wherever_the_json_form_lies(config):
    found = {route["match"]["prefix"]: route for route in listed(config) if route["match"].get("prefix") in PREFIXES}
    assert set(found) == set(PREFIXES)
    assert [found[prefix]["typed_per_filter_config"] for prefix in PREFIXES].count(
        found["/v1/"]["typed_per_filter_config"]
    ) == len(PREFIXES)
    too_large = [place_of(route) for route in listed(config) if "range_match" in str(route["match"].get("headers"))]
    assert too_large == ["/v1/files/", BUNDLES, *PREFIXES]


def place_of(route):
    return route["match"].get("prefix") or route["match"].get("safe_regex", {}).get("regex")


@pytest.mark.parametrize(
    ("place", "size"), [("/v1/files/", files.FILE_SIZE_MAX_BYTES), (BUNDLES, context.BUNDLE_SIZE_MAX_BYTES)]
)
def test_a_file_and_a_bundle_may_be_larger_than_any_other_body(config, place, size):
    places = [place_of(route) for route in listed(config)]
    first, second = (n for n, found in enumerate(places) if found == place)
    assert second < places.index("/v1/")
    (larger,) = (header["range_match"] for header in listed(config)[first]["match"]["headers"])
    found = listed(config)[second]["typed_per_filter_config"]
    sizes = (
        found["envoy.filters.http.buffer"]["buffer"]["max_request_bytes"],
        found["envoy.filters.http.grpc_json_transcoder"]["max_request_body_size"],
        larger["start"] - 1,
    )
    assert set(sizes) == {size}
    assert size > envoy_filters.BODY_SIZE_MAX_BYTES


def test_the_host_of_a_request_is_told_where_it_is_asked_for_and_to_nobody_else(config):
    named = [route["match"]["prefix"] for route in listed(config) if "request_headers_to_add" in route]
    assert named == ["/retinue.edge.v1.InstanceService/GetChatUrl"]
    prefixes = [route["match"].get("prefix") for route in listed(config)]
    assert prefixes.index(named[0]) < prefixes.index("/retinue.edge.v1.")
