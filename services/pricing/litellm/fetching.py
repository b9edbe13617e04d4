"""Owns the fetching of a price map by its address: http and https only, bounded in size, time and redirects."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from services.pricing.litellm.reading import MAX_MAP_BYTES

MAX_URL_CHARS = 2_000
MAX_REDIRECTS = 3
_SCHEMES = ("http", "https")
_LATE = "could not be fetched in time"


class FetchError(Exception):
    """A map that could not be fetched; the message says why."""


class BadAddressError(FetchError):
    """An address that is not asked at all."""


class TooLargeError(FetchError):
    """What stands there is larger than a map may be."""


def check_address(url: str) -> None:
    """Refuse what is no http or https address of a host. Raises BadAddressError."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (it is checked when it is read)
    except ValueError as error:
        raise BadAddressError("is not an address") from error
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise BadAddressError("must be an http or https address")
    if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
        raise BadAddressError(f"must be an address of at most {MAX_URL_CHARS} ASCII characters")
    check_peer(parts.hostname)
    if parts.username is not None or parts.password is not None:
        raise BadAddressError("must not hold a password")


def fetch(url: str, *, timeout_seconds: float = 20) -> bytes:
    """What stands at an address, within `timeout_seconds` in all and MAX_MAP_BYTES. Raises FetchError.

    Link-local addresses are refused, since cloud machines keep their credentials there; others of a private network may
    hold a company's own copy of the map.
    """
    check_address(url)
    connections = _Connections()
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(connections),
        _Https(connections),
        _Redirects(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    headers = {"accept": "application/json", "user-agent": "tollkeeper-pricing"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the scheme was checked)
    watchdog = threading.Timer(timeout_seconds, connections.cut)
    watchdog.daemon = True
    watchdog.start()
    try:
        with opener.open(request, timeout=timeout_seconds) as answer:
            found = _read(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _told(error, in_time=not connections.were_cut) from error
    finally:
        watchdog.cancel()
    if connections.were_cut:
        raise FetchError(_LATE)
    return found


def _told(error: Exception, *, in_time: bool) -> FetchError:
    """What went wrong, fit for the caller."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return FetchError(f"could not be fetched: the server answered {error.code}")
    if not in_time or isinstance(error, TimeoutError):
        return FetchError(_LATE)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return FetchError(_LATE if isinstance(reason, TimeoutError) else f"could not be fetched: {reason or type(reason)}")


def _read(answer: http.client.HTTPResponse) -> bytes:
    found = answer.read(MAX_MAP_BYTES + 1)
    if len(found) > MAX_MAP_BYTES:
        raise TooLargeError(f"is larger than {MAX_MAP_BYTES} bytes")
    if answer.length:
        raise FetchError("could not be fetched: the answer was cut short")
    return found


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    max_repeats = 1


class _Connections:
    """The sockets of one fetch: each is checked when it is made, and all are cut when the time is over."""

    def __init__(self) -> None:
        self._made: list[socket.socket] = []
        self.were_cut = False

    def add(self, made: socket.socket) -> None:
        """Note a socket, unless its peer must not be asked: the socket says who that is, a name may change its mind."""
        try:
            check_peer(str(made.getpeername()[0]))
        except BadAddressError:
            made.close()
            raise
        self._made.append(made)

    def cut(self) -> None:
        """End all that still runs; those who wait for an answer get an error."""
        self.were_cut = True
        for made in self._made:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)


def check_peer(host: str) -> None:
    """Refuse an IP address on the machine's own link; a name passes, until it is known whose it is.

    Raises BadAddressError.
    """
    try:
        peer = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return
    peer = getattr(peer, "ipv4_mapped", None) or peer
    if peer.is_link_local or peer.is_multicast or peer.is_unspecified:
        raise BadAddressError("must not be a link-local address")


class _HttpConnection(http.client.HTTPConnection):
    connections: _Connections

    def connect(self) -> None:
        check_peer(self.host)
        super().connect()
        self.connections.add(self.sock)


class _HttpsConnection(http.client.HTTPSConnection, _HttpConnection):
    """Checked before anything is said, since the plain connection is made first; noted again once it is encrypted."""

    def connect(self) -> None:
        super().connect()
        self.connections.add(self.sock)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()

        class OfThisFetch(_HttpConnection):
            pass

        OfThisFetch.connections = connections
        self._kind = OfThisFetch

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()

        class OfThisFetch(_HttpsConnection):
            pass

        OfThisFetch.connections = connections
        self._kind = OfThisFetch

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._kind, req)
