"""What may be reached: "host:port" as policy grants it, and the addresses behind it that may be connected to."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retinue_kit.errors import RetinueError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORT_MAX = 65535
NAME_LENGTH_MAX = 253

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
"""A name whose last label is a number is an address in disguise: "127.1" and "0x7f000001" are loopback to resolvers."""

_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""Addresses in which a translator finds an IPv4 address, the last four bytes."""

_NEVER: tuple[Network, ...] = (
    # Serves a machine's own secrets in Azure, though the address is a public one.
    ipaddress.ip_network("168.63.129.16/32"),
    # What Python's releases do not agree on: of protocols' own (metadata in Oracle's cloud), of translators.
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("64:ff9b:1::/48"),
)


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A host and a port. `host` is a name in small letters without a dot at its end, or an address without brackets."""

    host: str
    port: int

    @property
    def is_address(self) -> bool:
        """Whether the host is an address, not a name."""
        return ":" in self.host or _is_address(self.host)

    @property
    def bare(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        """Write it as "host:port"."""
        return f"{self.bare}:{self.port}"


def parse(text: str, default_port: int | None = None) -> Target:
    """Read "host:port". Raises RetinueError(FIELD_INVALID, metadata.field "egress") for anything else."""
    host, colon, port = text.rpartition(":")
    if default_port is not None and (not colon or text.endswith("]")):
        host, port = text, str(default_port)
    if not (port.isascii() and port.isdecimal()) or not 0 < int(port) <= PORT_MAX:
        raise _refused(text)
    return Target(_host(host, text), int(port))


def parse_all(texts: Iterable[str]) -> list[Target]:
    """Read several, each once, sorted. Raises as `parse` does."""
    return sorted({parse(text) for text in texts})


def _host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _refused(text) from None
    if _is_address(host):
        return host
    name = host.lower()
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name) or _NUMERIC.fullmatch(name.rpartition(".")[2]):
        raise _refused(text)
    return name


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _refused(text: str) -> RetinueError:
    return RetinueError.field("egress", f"must be host:port, not {text[:80]!r}.")


def reachable(addresses: Sequence[str], private: Sequence[Network] = ()) -> list[str]:
    """Keep of resolved addresses, in their order, what boxes may connect to: public ones, and those in `private`.

    Loopback, private, link-local, unique local, shared, multicast and reserved addresses are not public, nor are cloud
    providers' metadata services, in whichever way they are wrapped in IPv6.
    """
    found: list[str] = []
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:  # with a scope, as link-local ones have
            continue
        if (_is_public(address) or _is_in(address, private)) and str(address) not in found:
            found.append(str(address))
    return found


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _is_public(address: Address) -> bool:
    inner = _unwrapped(address)
    if inner is not address:
        return _is_public(inner)
    if address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return address.is_global and not _is_in(address, _NEVER)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
