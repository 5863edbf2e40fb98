"""Whoever names a webhook's URL chooses whom our machines speak to: public addresses only, in whatever dress."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import Reason, RetinueError
from retinue_router.domain.addresses import is_public, read_url

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "100.128.0.1",
    "172.32.0.1",
    "192.169.0.1",
    "2606:4700::6810:85e5",
    "2a00:1450::1",
]

FORBIDDEN = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd00::1", "fc00::1"],
    "link-local": ["169.254.1.1", "fe80::1", "febf::1"],
    "metadata of clouds": ["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"],
    "unspecified": ["0.0.0.0", "::", "0.1.2.3"],
    "multicast, reserved and broadcast": ["224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "ff02::1"],
    "carriers' shared space": ["100.64.0.1", "100.127.255.255"],
    "IPv4 in IPv6": ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"],
    "IPv4 in a tunnel": ["2002:7f00:1::", "2001:0:7f00:1::"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "with a zone": ["fe80::1%eth0", "2606:4700::1%1"],
    "no address": ["", "localhost", "2130706433", "127.1", "0x7f.0.0.1", "0177.0.0.1", "1.2.3.4.5", "1.2.3"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_spoken_to(address):
    assert is_public(address)


@pytest.mark.parametrize(("kind", "address"), [(kind, a) for kind, found in FORBIDDEN.items() for a in found])
def test_no_other_address_may_be_spoken_to(kind, address):
    assert not is_public(address), kind


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_is_never_public(address):
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_loopback
        assert not isinstance(address, ipaddress.IPv6Address) or address.ipv4_mapped is None


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("https://example.com", "example.com", 443),
        ("HTTPS://Example.COM:8443/hooks?x=1&y=%20", "example.com", 8443),
        ("https://93.184.216.34/hook", "93.184.216.34", 443),
        ("https://[2606:4700::6810:85e5]:4433/hook", "2606:4700::6810:85e5", 4433),
        ("https://open.feishu.cn/open-apis/bot/v2/hook/8a1c-22", "open.feishu.cn", 443),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443),
    ],
)
def test_a_plain_url_is_read(url, host, port):
    target = read_url(url, private=False)
    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "https:///path",
        "//example.com/",
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "https://example.com#@127.0.0.1/",
        "https://example.com/#part",
        "https://example.com\\@127.0.0.1/",
        "https://127.0.0.1\\.example.com/",
        "https://example.com /",
        "https://example.com/\n",
        "https://example.com/\0",
        "https://exa%6dple.com/",
        "https://bücher.example/",
        "httpſ://example.com/",
        "https://\N{KELVIN SIGN}elvin.example/",
        "https://１２７.0.0.1/",
        "https://example.com:22/",
        "https://example.com:80/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:-1/",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://2130706433/",
        "https://127.1/",
        "https://0/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://[::1].example.com/",
        "https://1.2.3.4.5/",
        "https://example.com/" + "a" * 2048,
    ],
)
def test_a_url_that_is_not_sent_to_is_refused_by_its_field(url):
    with pytest.raises(RetinueError, match="url: must") as caught:
        read_url(url, private=False)
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80/", "http://localhost:9/", "https://[::1]:1/", "https://10.0.0.1/"]
)
def test_where_receivers_are_ones_own_any_address_will_do(url):
    assert read_url(url, private=True).port


@pytest.mark.parametrize(
    "url", ["https://user@localhost/", "https://127.1/", "https://2130706433/", "gopher://localhost/"]
)
def test_odd_forms_are_refused_there_as_well(url):
    with pytest.raises(RetinueError):
        read_url(url, private=True)
