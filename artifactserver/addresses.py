"""The addresses of peers: for the log, and for whom something counts of which one may only have so much."""

from __future__ import annotations

import ipaddress

from twisted.internet.interfaces import IAddress

#: Bits of an IPv6 address that tell clients apart: one host has at least all addresses of such a network.
_IPV6_NETWORK = 64


def caller_at(address: IAddress) -> str:
    """For whom a connection from ``address`` counts: an IPv4 address, a network of IPv6 addresses, or a unix socket."""
    host = str(getattr(address, "host", ""))
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(ip, ipaddress.IPv4Address):
        return host
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, _IPV6_NETWORK), strict=False))


def host_of(address: object) -> str:
    """The host of a peer's address, for people to read; one of IPv4 that came to a socket for both as such."""
    return str(getattr(address, "host", "unknown")).removeprefix("::ffff:")
