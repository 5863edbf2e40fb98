"""Where a webhook may lead: public addresses only, since whoever names a URL chooses whom our machines speak to.

The rule is what is allowed, not what is forbidden, as far as there is such a list: the one of IPv6 is short.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from retinue_kit.errors import RetinueError

URL_LENGTH_MAX = 2048
PORTS = {"https": 443, "http": 80}
PORT_MIN = 1024
"""Below it only the scheme's own port: what else listens there speaks other protocols."""

Address = IPv4Address | IPv6Address

# One reading only: no credentials, no escapes in the host, nothing that two parsers could take for different hosts.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?][!-~]*)?",
    re.IGNORECASE | re.ASCII,  # a long s is an s to a pattern that minds no case
)
_UNSAFE = re.compile(r"[\\\"<>^`{|}#]")
_ALL_DIGITS = re.compile(r"[0-9.]+")

_IPV4_FORBIDDEN = [
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16",  # private
        "100.64.0.0/10",  # shared by carriers; one cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # one cloud's own service, within each of its machines' reach
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",  # protocols' own, benchmarks
        "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",  # documentation
        "224.0.0.0/4", "240.0.0.0/4",  # multicast, reserved, broadcast
    )
]  # fmt: skip

_IPV6_GLOBAL = IPv6Network("2000::/3")
"""Everything else is loopback, mapped or translated IPv4, local to a link or an organisation, multicast, or not given
out."""

_IPV6_FORBIDDEN = [
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocols' own: tunnels through which an IPv4 address is reached, benchmarks
        "2001:db8::/32", "3fff::/20",  # documentation
        "2002::/16",  # an IPv4 address in another form
    )
]  # fmt: skip


class Target(NamedTuple):
    """Where a URL leads, before any name is looked up."""

    scheme: str
    host: str
    """A name in lower case, or an address without brackets."""
    port: int


def is_public(address: str) -> bool:
    """Tell whether an address, in its usual form, may be spoken to; False for what is no address."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv4Address):
        return not any(found in network for network in _IPV4_FORBIDDEN)
    return found.scope_id is None and found in _IPV6_GLOBAL and not any(found in network for network in _IPV6_FORBIDDEN)


def is_address(host: str) -> bool:
    """Tell whether a host is an address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def read_url(url: str, *, private: bool) -> Target:
    """Read a webhook's URL. Raises RetinueError(FIELD_INVALID) for one that is not sent to.

    `private` allows any address and plain HTTP, for deployments whose receivers are their own.
    """
    found = _URL.fullmatch(url)
    if len(url) > URL_LENGTH_MAX or found is None or _UNSAFE.search(url):
        raise RetinueError.field(
            "url",
            f"must be https://host[:port]/path of at most {URL_LENGTH_MAX} ASCII characters, without credentials and"
            " fragment, other characters escaped (names as xn--…).",
        )
    scheme, host = found["scheme"].lower(), found["host"].lower().strip("[]")
    port = int(found["port"] or PORTS[scheme])
    if scheme != "https" and not private:
        raise RetinueError.field("url", "must begin with https://.")
    if not 0 < port < 65536 or (not private and port != PORTS[scheme] and port < PORT_MIN):
        raise RetinueError.field("url", f"must name port {PORTS[scheme]}, or one from {PORT_MIN} to 65535.")
    literal = is_address(host)
    if not literal and (":" in host or _ALL_DIGITS.fullmatch(host)):
        raise RetinueError.field("url", "must name its host, or give its address in the usual form.")
    if literal and not private and not is_public(host):
        raise not_public()
    return Target(scheme, host, port)


def not_public() -> RetinueError:
    """Say that a host is within somebody's own network."""
    return RetinueError.field("url", "must lead to a public address.")
