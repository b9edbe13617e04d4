"""Owns TLS on both sides of the gateway: to clients, and mutually to the services.

Certificates come by Envoy's secret discovery service from files (a document for each, beside envoy.json), since only
then Envoy takes up new ones by itself: it watches their folder for a rename, which is how Kubernetes updates a Secret.
"""

from __future__ import annotations

from typing import Any

from gateway.options import Address, Options

Json = dict[str, Any]

EDGE_CERTIFICATE = "edge_certificate"
SERVICE_IDENTITY = "service_identity"
SERVICE_AUTHORITY = "service_authority"

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
# TLS 1.2 for clients of long standing, with forward secrecy and authenticated encryption only; 1.3 has nothing else.
_CLIENT_CIPHERS = (
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)


def documents(options: Options) -> dict[str, Json]:
    """The discovery documents that these options need, by file name."""
    found = {}
    if options.certificate_folder is not None:
        found[EDGE_CERTIFICATE] = _certificate(EDGE_CERTIFICATE, options.certificate_folder)
    if options.identity_folder is not None:
        found[SERVICE_IDENTITY] = _certificate(SERVICE_IDENTITY, options.identity_folder)
        found[SERVICE_AUTHORITY] = _authority(SERVICE_AUTHORITY, options.identity_folder)
    return {f"{name}.json": {"resources": [secret]} for name, secret in found.items()}


def to_clients(options: Options) -> Json | None:
    """The listener's transport socket; None for plain HTTP."""
    if options.certificate_folder is None:
        return None
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TLS + "DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "cipher_suites": list(_CLIENT_CIPHERS)},
                "tls_certificate_sds_secret_configs": [_discovered(EDGE_CERTIFICATE, options)],
            },
        },
    }


def to_service(first: Address, options: Options) -> Json | None:
    """A cluster's transport socket; None for plain HTTP/2. Its certificate must name the host of `first`."""
    if options.identity_folder is None:
        return None
    names = {"san_type": "DNS" if first.is_name else "IP_ADDRESS", "matcher": {"exact": first.host}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": _TLS + "UpstreamTlsContext",
            **({"sni": first.host} if first.is_name else {}),
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "tls_certificate_sds_secret_configs": [_discovered(SERVICE_IDENTITY, options)],
                "combined_validation_context": {
                    "default_validation_context": {"match_typed_subject_alt_names": [names]},
                    "validation_context_sds_secret_config": _discovered(SERVICE_AUTHORITY, options),
                },
            },
        },
    }


def _discovered(name: str, options: Options) -> Json:
    path = f"{options.configuration_folder}/{name}.json"
    return {"name": name, "sds_config": {"path_config_source": {"path": path}, "resource_api_version": "V3"}}


def _certificate(name: str, folder: str) -> Json:
    return {
        "@type": _TLS + "Secret",
        "name": name,
        "tls_certificate": {
            "certificate_chain": {"filename": f"{folder}/tls.crt"},
            "private_key": {"filename": f"{folder}/tls.key"},
            "watched_directory": {"path": folder},
        },
    }


def _authority(name: str, folder: str) -> Json:
    return {
        "@type": _TLS + "Secret",
        "name": name,
        "validation_context": {
            "trusted_ca": {"filename": f"{folder}/ca.crt"},
            "watched_directory": {"path": folder},
        },
    }
