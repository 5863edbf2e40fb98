"""Where a client is told to chat."""

import pytest
from retinue_gateway.instances import chat_url
from retinue_kit.errors import Reason, RetinueError


@pytest.mark.parametrize(
    ("authority", "proto", "url"),
    [
        ("127.0.0.1:8080", "http", "ws://127.0.0.1:8080/v1/ws"),
        ("chat.example", "https", "wss://chat.example/v1/ws"),
        ("Chat.Example.:443", "https", "wss://Chat.Example.:443/v1/ws"),
        ("my_gateway", "", "ws://my_gateway/v1/ws"),
        ("[::1]:8080", "http", "ws://[::1]:8080/v1/ws"),
        ("[2001:db8::192.0.2.1]", "https", "wss://[2001:db8::192.0.2.1]/v1/ws"),
    ],
)
def test_the_address_is_the_one_that_the_request_used(authority: str, proto: str, url: str) -> None:
    assert chat_url({"x-retinue-authority": authority, "x-forwarded-proto": proto}) == url


@pytest.mark.parametrize("proto", ["javascript", "wss", "HTTPS://evil", "ftp"])
def test_no_scheme_comes_from_outside(proto: str) -> None:
    assert chat_url({"x-retinue-authority": "a", "x-forwarded-proto": proto}) == "ws://a/v1/ws"


@pytest.mark.parametrize(
    "authority",
    [
        *("", "a/b", "a?b", "a#b", "user@a", "a:b@c", "a:", "a:123456", "a b", "a\r\nb", "a%2fb", "a\\b", "ä"),
        *("[::1", "::1", "[fe80::1%25eth0]", "[]", "[::1]x", "a\n", "x" * 254, ":80"),
    ],
)
def test_what_is_no_host_is_refused(authority: str) -> None:
    with pytest.raises(RetinueError) as raised:
        chat_url({"x-retinue-authority": authority, "x-forwarded-proto": "https"})
    assert (raised.value.reason, raised.value.metadata) == (Reason.FIELD_INVALID, {"field": "Host"})


def test_hosts_that_a_client_names_in_other_ways_count_for_nothing() -> None:
    forged = {"x-forwarded-host": "evil.example", "host": "evil.example", "forwarded": "host=evil.example;proto=https"}
    assert chat_url({**forged, "x-retinue-authority": "a:1", "x-forwarded-proto": "http"}) == "ws://a:1/v1/ws"
