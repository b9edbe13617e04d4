"""Owns TLS between services: what it is made of, by configuration, and whom a client's certificate names.

`..._credentials` are for gRPC's own library, `..._context` for `http2`. Certificates are renewed while a process runs:
a handshake takes what the files say, as of at most a second ago. Where they cannot be used, what was used before goes
on, and the log says why. Connections that there are go on too: servers end each after a few minutes.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from prometheus_client import Gauge

from services.kit.identity import Identity, Role
from services.kit.logs import get_logger
from services.kit.settings import ServiceSettings

_log = get_logger(__name__)

_EXPIRES = Gauge(
    "tollkeeper_tls_certificate_expires_timestamp_seconds",
    "When the certificate that this process shows to other services expires, since 1970; 0: it shows none",
)

_RECHECK_SECONDS = 1.0

Made = TypeVar("Made")


class TlsFileError(Exception):
    """A certificate, key or CA that cannot be used, or one without the other; the message names the file."""


class _Pair(NamedTuple):
    """A certificate chain and its private key, PEM."""

    chain: bytes
    key: bytes


class _Renewed(Generic[Made]):
    """What is made of the configured files, and made anew when they have changed; looked at once a second at most."""

    def __init__(self, settings: ServiceSettings, make: Callable[[ServiceSettings], Made]) -> None:
        self._settings = settings
        self._make = make
        named = (settings.tls_cert_file, settings.tls_key_file, settings.tls_ca_file)
        self._files = [file for file in named if file is not None]
        self._lock = threading.Lock()
        self._stamps: list[tuple[int, int, int]] = []
        self._read()
        self._checked = time.monotonic()

    def now(self) -> Made:
        """As the files are, or last could be used. Does not raise: making the first does."""
        with self._lock:
            if time.monotonic() - self._checked >= _RECHECK_SECONDS:
                self._checked = time.monotonic()
                try:
                    self._read()
                except (OSError, TlsFileError) as error:
                    _log.error("certificates cannot be used, keeping those in use", error=str(error))
            return self._made

    def _read(self) -> None:
        stamps = [_stamp(file) for file in self._files]  # before they are read: what changes meanwhile is read again
        if stamps == self._stamps:
            return
        self._made = self._make(self._settings)
        if self._stamps:
            _log.info("new certificates are in use", files=[str(file) for file in self._files])
        self._stamps = stamps


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """TLS where a certificate is configured, mutual TLS where a CA is too; None for plain text.

    Raises:
        TlsFileError: they cannot be used. So do the other three.
    """
    if not _is_secure_server(settings):
        return None
    renewed = _Renewed(settings, _server_configuration)
    given = first = renewed.now()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC before each handshake; None: as before."""
        nonlocal given
        before, given = given, renewed.now()
        return None if given is before else given

    mutual = settings.tls_ca_file is not None
    # Its annotation leaves the None out that its documentation names.
    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=mutual)  # type: ignore[arg-type]


def server_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for an aio server."""
    if not _is_secure_server(settings):
        return None
    renewed = _Renewed(settings, _server_context)
    tls = renewed.now()

    def take(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, also in those that name no server."""
        connection.context = renewed.now()

    tls.sni_callback = take
    return tls


def channel_credentials(settings: ServiceSettings) -> Callable[[], grpc.ChannelCredentials] | None:
    """TLS where a CA is configured, showing this service's certificate where it has one; None for plain text.

    gRPC's channels cannot change theirs: what the result gives is the same object until another channel is due.
    """
    return _Renewed(settings, _channel_credentials).now if _is_secure_client(settings) else None


def channel_context(settings: ServiceSettings) -> Callable[[], ssl.SSLContext] | None:
    """The same for a channel of our own: what its next connection is to be made with."""
    return _Renewed(settings, _channel_context).now if _is_secure_client(settings) else None


def _server_configuration(settings: ServiceSettings) -> grpc.ServerCertificateConfiguration:
    authority, shown = _authority(settings), _shown(settings)
    assert shown is not None, "_is_secure_server"
    return grpc.ssl_server_certificate_configuration([(shown.key, shown.chain)], authority)


def _server_context(settings: ServiceSettings) -> ssl.SSLContext:
    tls = _context(settings, ssl.PROTOCOL_TLS_SERVER)
    if settings.tls_ca_file is not None:
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def _channel_credentials(settings: ServiceSettings) -> grpc.ChannelCredentials:
    authority, shown = _authority(settings), _shown(settings)
    return grpc.ssl_channel_credentials(authority, shown.key if shown else None, shown.chain if shown else None)


def _channel_context(settings: ServiceSettings) -> ssl.SSLContext:
    return _context(settings, ssl.PROTOCOL_TLS_CLIENT)


def _context(settings: ServiceSettings, side: int) -> ssl.SSLContext:
    """Shows the configured certificate and trusts the configured CA, where there are such."""
    authority, shown = _authority(settings), _shown(settings)
    tls = ssl.SSLContext(side)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["h2"])
    if shown is not None and settings.tls_cert_file is not None:
        tls.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    if authority is not None:
        tls.load_verify_locations(settings.tls_ca_file)
    return tls


def _is_secure_server(settings: ServiceSettings) -> bool:
    """Whether it is to serve by TLS: one that is to ask its peers who they are does not serve in plain text."""
    if settings.tls_cert_file is not None or settings.tls_key_file is not None:
        return True
    if settings.tls_ca_file is not None:
        raise TlsFileError("TLS_CA_FILE is given without TLS_CERT_FILE and TLS_KEY_FILE")
    return False


def _is_secure_client(settings: ServiceSettings) -> bool:
    """Whether it is to call by TLS. A certificate that cannot be used is told also where it is shown to nobody."""
    _shown(settings)
    return settings.tls_ca_file is not None


def _shown(settings: ServiceSettings) -> _Pair | None:
    """The configured certificate with its key, or None. gRPC does not say what is wrong with one, OpenSSL hardly."""
    if settings.tls_cert_file is None and settings.tls_key_file is None:
        return None
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        raise TlsFileError("TLS_CERT_FILE and TLS_KEY_FILE: one is given without the other")
    pair = _Pair(_read(settings.tls_cert_file), _read(settings.tls_key_file))
    (certificate, *_) = _certificates(settings.tls_cert_file, pair.chain)
    try:
        key = load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsFileError(f"{settings.tls_key_file}: not an unencrypted PEM private key") from error
    if key.public_key() != certificate.public_key():
        raise TlsFileError(f"{settings.tls_key_file}: not the key of {settings.tls_cert_file}")
    _EXPIRES.set(certificate.not_valid_after_utc.timestamp())
    return pair


def _authority(settings: ServiceSettings) -> bytes | None:
    if settings.tls_ca_file is None:
        return None
    authority = _read(settings.tls_ca_file)
    _certificates(settings.tls_ca_file, authority)
    return authority


def _certificates(file: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise TlsFileError(f"{file}: holds no PEM certificate, or a broken one") from error


def _stamp(file: Path) -> tuple[int, int, int]:
    """What changes with a file, also where it is replaced by another that is as old and as long."""
    try:
        found = file.stat()
    except OSError as error:
        raise TlsFileError(str(error)) from error
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsFileError(str(error)) from error


def peer_identity(
    settings: ServiceSettings, names_of: Callable[[Any], Iterable[str]]
) -> Callable[[Any], Identity | None] | None:
    """Reads the caller from its certificate: a name in `tls_service_names` is a service, any other proves nothing."""
    if settings.tls_ca_file is None or not settings.tls_service_names:
        return None
    services = frozenset(settings.tls_service_names)

    def read(context: Any) -> Identity | None:
        name = next((name for name in names_of(context) if name in services), None)
        return Identity(Role.SERVICE, subject=name) if name is not None else None

    return read
