"""Owns host:port addresses: how they are written, and the failure to listen on one."""

from __future__ import annotations

_MAX_PORT = 65535


class BindError(Exception):
    """An address that cannot be listened on; the message names it."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port". Raises BindError where it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > _MAX_PORT:
        raise BindError(f"not an address of the form host:port: {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
