"""Owns TLS between services: what it is made of, by configuration, and whom a client's certificate names.

`..._credentials` are for gRPC's own library, `..._context` for `http2`.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from services.kit.identity import Identity, Role
from services.kit.settings import ServiceSettings


def server_credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """TLS where a certificate is configured, mutual TLS where a CA is too; None for plain text."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    authority = settings.tls_ca_file.read_bytes() if settings.tls_ca_file else None
    pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def server_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for an aio server. Raises OSError for files that cannot be used."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    tls = _context(settings, ssl.PROTOCOL_TLS_SERVER)
    if settings.tls_ca_file is not None:
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def channel_credentials(settings: ServiceSettings) -> grpc.ChannelCredentials | None:
    """TLS where a CA is configured, showing this service's certificate where it has one; None for plain text."""
    if settings.tls_ca_file is None:
        return None
    key = settings.tls_key_file.read_bytes() if settings.tls_key_file else None
    chain = settings.tls_cert_file.read_bytes() if settings.tls_cert_file else None
    return grpc.ssl_channel_credentials(settings.tls_ca_file.read_bytes(), key, chain)


def channel_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """The same for a channel of our own. Raises OSError for files that cannot be used."""
    return _context(settings, ssl.PROTOCOL_TLS_CLIENT) if settings.tls_ca_file is not None else None


def _context(settings: ServiceSettings, side: int) -> ssl.SSLContext:
    """Shows the configured certificate and trusts the configured CA, where there are such."""
    tls = ssl.SSLContext(side)
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.set_alpn_protocols(["h2"])
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        for file in (settings.tls_cert_file, settings.tls_key_file):
            file.open("rb").close()  # what is not there is told by its name, which the next line does not
        tls.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    if settings.tls_ca_file is not None:
        tls.load_verify_locations(cadata=settings.tls_ca_file.read_text())
    return tls


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
