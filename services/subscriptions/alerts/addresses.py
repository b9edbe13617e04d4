"""Owns which network addresses are public: the only ones that a stranger's endpoint may be at."""

from __future__ import annotations

import ipaddress

# What an IPv6 address of these networks reaches is an IPv4 address that it carries (RFC 6052, in its last 32 bits).
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_BITS = 0xFFFF_FFFF

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(text: str) -> bool:
    """Whether an address, as text, is one of the internet at large. False for what is no address.

    Neither private, shared, loopback, link-local (a cloud's metadata) nor multicast, nor an IPv6 address that stands
    for such an IPv4 one.
    """
    try:
        address: _Address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = _carried(address) or address
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_link_local
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not special and not site_local


def is_address(text: str) -> bool:
    """Whether a host is given as an address, and not by name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for: mapped, 6to4 or translated; None where it stands for itself."""
    if address in _TRANSLATED:
        return ipaddress.IPv4Address(int(address) & _IPV4_BITS)
    return address.ipv4_mapped or address.sixtofour
