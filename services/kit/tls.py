"""Owns TLS between services: what it is made of, by configuration, and whom a client's certificate names.

`..._credentials` are for gRPC's own library, `..._context` for `http2`. Files are read when one of them is made, at
start: a new certificate is shown by the next process.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from prometheus_client import Gauge

from services.kit.identity import Identity, Role
from services.kit.settings import ServiceSettings

_EXPIRES = Gauge(
    "tollkeeper_tls_certificate_expires_timestamp_seconds",
    "When the certificate that this process shows to other services expires, since 1970; 0: it shows none",
)


class TlsFileError(Exception):
    """A certificate, key or CA that cannot be used, or one without the other; the message names the file."""


class _Pair(NamedTuple):
    """A certificate chain and its private key, PEM."""

    chain: bytes
    key: bytes


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """TLS where a certificate is configured, mutual TLS where a CA is too; None for plain text.

    Raises:
        TlsFileError: they cannot be used. So do the other three.
    """
    shown, authority = _shown_by_server(settings), _authority(settings)
    if shown is None:
        return None
    return grpc.ssl_server_credentials([(shown.key, shown.chain)], authority, require_client_auth=authority is not None)


def server_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for an aio server."""
    if _shown_by_server(settings) is None:
        return None
    tls = _context(settings, ssl.PROTOCOL_TLS_SERVER)
    if settings.tls_ca_file is not None:
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def channel_credentials(settings: ServiceSettings) -> grpc.ChannelCredentials | None:
    """TLS where a CA is configured, showing this service's certificate where it has one; None for plain text."""
    shown, authority = _shown(settings), _authority(settings)
    if authority is None:
        return None
    return grpc.ssl_channel_credentials(authority, shown.key if shown else None, shown.chain if shown else None)


def channel_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for a channel of our own."""
    return _context(settings, ssl.PROTOCOL_TLS_CLIENT) if settings.tls_ca_file is not None else None


def _context(settings: ServiceSettings, side: int) -> ssl.SSLContext:
    """Shows the configured certificate and trusts the configured CA, where there are such."""
    shown, authority = _shown(settings), _authority(settings)
    tls = ssl.SSLContext(side)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["h2"])
    if shown is not None and settings.tls_cert_file is not None:
        tls.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    if authority is not None:
        tls.load_verify_locations(settings.tls_ca_file)
    return tls


def _shown_by_server(settings: ServiceSettings) -> _Pair | None:
    """The same as `_shown`, for a server: one that is to ask its peers who they are does not serve in plain text."""
    shown = _shown(settings)
    if shown is None and settings.tls_ca_file is not None:
        raise TlsFileError("TLS_CA_FILE is given without TLS_CERT_FILE and TLS_KEY_FILE")
    return shown


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
