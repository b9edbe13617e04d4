"""Owns the posting of alerts to strangers' addresses: signed, to public addresses only, and never for long.

The addresses that were checked are those connected to: a name that means another one a moment later gains nothing. A
redirection is a failure, and no more of an answer is read than its head. However slowly an endpoint talks, an attempt
ends when its time is up.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from services.subscriptions.alerts.addresses import is_public
from services.subscriptions.alerts.model import body_of, signature
from services.subscriptions.alerts.store import Due

_MAX_ADDRESSES = 3
_OK, _NOT_OK = 200, 300
_SHORTEST_SECONDS = 0.001  # a timeout of 0 would mean none to wait for


class NotSentError(Exception):
    """An attempt that failed, in words for an operator; never with a secret or an address in them."""


class WebhookSender:
    """Posts alerts to endpoints. Raises NotSentError for whatever is not a 2xx.

    `private_addresses` lets them go to networks that are not public, for a machine of one's own; `tls` says whose
    certificates are trusted, by default the system's.
    """

    def __init__(self, *, timeout_seconds: float, private_addresses: bool, tls: ssl.SSLContext | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._private_addresses = private_addresses
        self._tls = tls or ssl.create_default_context()

    def __call__(self, due: Due) -> None:
        """One attempt."""
        try:
            status = self._post(due)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NotSentError(f"the endpoint was not reached: {type(error).__name__}") from error
        if not _OK <= status < _NOT_OK:
            raise NotSentError(f"the endpoint answered {status}")

    def _post(self, due: Due) -> int:
        parts = urlsplit(due.url)
        host, is_https = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (http.client.HTTPS_PORT if is_https else http.client.HTTP_PORT)
        addresses = self._addresses(host, port)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        body, timestamp = body_of(due.alert_id, due.alert, due.created_at), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "Tollkeeper",
            "connection": "close",
            "webhook-id": due.alert_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(due.signing_secret, due.alert_id, timestamp, body),
        }
        tls = self._tls if is_https else None
        connection = _CheckedConnection(host, port, addresses, timeout_seconds=self._timeout_seconds, tls=tls)
        try:
            connection.request("POST", path, body, headers)
            with connection.getresponse() as answer:
                return answer.status
        except (OSError, http.client.HTTPException):
            if connection.is_over:
                raise TimeoutError from None
            raise
        finally:
            connection.close()

    def _addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of them public. Raises NotSentError."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            raise NotSentError("the endpoint's name does not resolve") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._private_addresses and not all(map(is_public, addresses)):
            raise NotSentError("the endpoint is not on a public address")
        return addresses[:_MAX_ADDRESSES]


class _CheckedConnection(http.client.HTTPConnection):
    """A connection to one of the addresses given, whatever the host's name means by now, cut off after a time.

    A socket's own timeout begins anew with each byte that comes, so a timer ends the whole of it.
    """

    def __init__(
        self, host: str, port: int, addresses: Sequence[str], *, timeout_seconds: float, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, port)
        self.default_port = http.client.HTTPS_PORT if tls is not None else http.client.HTTP_PORT
        self._addresses = addresses
        self._tls = tls
        self._ends = time.monotonic() + timeout_seconds
        self._timer = threading.Timer(timeout_seconds, self._cut_off)
        self._timer.daemon = True
        self._timer.start()

    @property
    def is_over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self._ends

    def connect(self) -> None:
        """Connect to the first address that answers. Raises OSError."""
        bare = self._reach()
        if self._tls is None:
            self.sock = bare
        else:
            # The handshake comes after the socket is known here, so that it, too, can be cut off.
            self.sock = self._tls.wrap_socket(bare, server_hostname=self.host, do_handshake_on_connect=False)
        if self.is_over:  # the timer found no socket to cut off
            raise TimeoutError
        self.sock.settimeout(max(_SHORTEST_SECONDS, self._ends - time.monotonic()))
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def _reach(self) -> socket.socket:
        for number, address in enumerate(self._addresses):
            left = max(_SHORTEST_SECONDS, self._ends - time.monotonic())
            try:
                return socket.create_connection((address, self.port), left / (len(self._addresses) - number))
            except OSError:
                if number == len(self._addresses) - 1:
                    raise
        raise OSError

    def _cut_off(self) -> None:
        sock = self.sock
        if sock is not None:
            with suppress(OSError):  # it has ended by itself
                # Of the plain socket: a TLS one's own would take its state from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and its timer."""
        self._timer.cancel()
        super().close()
