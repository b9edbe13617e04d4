"""Owns where the ledger's replicas are: what its address stands for, now and when that changes."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from services.kit.logs import get_logger

_log = get_logger(__name__)

# A name is asked for again this often, so that a replica that came gets its share of the accounts soon.
_RESOLVE_SECONDS = 5.0
_NAME_AND_PORT = re.compile(r"(?:dns:///)?([^:/,\[\]]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


class Place(NamedTuple):
    """One replica: a gRPC target, and the name that its certificate has where the target is no name."""

    target: str
    name: str = ""


# What a host and port stand for: addresses (IP and port). Raises OSError.
Resolve = Callable[[str, int], Awaitable[Collection[tuple[str, int]]]]


async def resolved(host: str, port: int) -> list[tuple[str, int]]:
    """The addresses of a name, of one family: a replica that has two has an address in both. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families = {family for family, *_ in found}
    chosen = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    return [(str(address[0]), port) for family, _, _, _, address in found if family == chosen]


class Addresses:
    """What an address stands for: any gRPC target, or several with commas between.

    A host's name (`host:port`, `dns:///host:port`) stands for as many replicas as it has addresses, and is asked for
    again and again. `changed` is called with all places whenever they are others than before. A name that is not found
    keeps the places it had.
    """

    def __init__(self, address: str, changed: Callable[[Collection[Place]], None], resolve: Resolve = resolved) -> None:
        self._changed = changed
        self._resolve = resolve
        self._fixed: list[Place] = []
        self._names: dict[tuple[str, int], list[Place]] = {}
        self._told: set[Place] | None = None
        self._watching: asyncio.Task[None] | None = None
        # gRPC's own form of several: everybody has to know a place by the same words.
        for part in filter(None, map(str.strip, re.sub("^ipv[46]:", "", address).split(","))):
            read = _NAME_AND_PORT.fullmatch(part)
            if read is None or _is_ip(read[1]):
                self._fixed.append(Place(part))
            else:
                self._names[read[1], int(read[2])] = []

    async def start(self) -> None:
        """Find the places, and go on looking where there are names."""
        await self._look()
        if self._names:
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_RESOLVE_SECONDS)
            try:
                await self._look()
            except Exception:  # noqa: BLE001 (whatever it is, a certificate just exchanged, it must not end the looking)
                _log.exception("looking for the ledger's replicas failed")

    async def _look(self) -> None:
        for (host, port), before in self._names.items():
            try:
                async with asyncio.timeout(_RESOLVE_SECONDS):
                    found = await self._resolve(host, port)
            except OSError as error:  # TimeoutError is one
                _log.warning("a name of the ledger was not found", host=host, error=repr(error))
            else:
                self._names[host, port] = [Place(_target(*at), host) for at in found] or before
        places = {*self._fixed, *(place for places in self._names.values() for place in places)}
        if places != self._told:
            self._changed(places)
            self._told = places


def _target(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
