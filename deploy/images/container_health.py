"""Owns a container's health check: asks the gRPC server in it whether it serves; exit status 0 where it does.

    python container_health.py [127.0.0.1:50051]

It lies in each service's image by itself, beside the code. Without an address it asks at the port that the server was
told, in `TOLLKEEPER_<SERVICE>_LISTEN`. Where `TOLLKEEPER_TLS_CERT_FILE`, `…_KEY_FILE` and
`…_CA_FILE` are set, it shows the server's own certificate and asks for the first name in it: kubelet's own gRPC probe
speaks no TLS.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SECONDS = 2.0
_TLS = ("TOLLKEEPER_TLS_CA_FILE", "TOLLKEEPER_TLS_KEY_FILE", "TOLLKEEPER_TLS_CERT_FILE")


def serving(address: str) -> bool:
    """Whether the server at host:port answers SERVING within two seconds."""
    with _channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(), timeout=_SECONDS
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str) -> grpc.Channel:
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0)]
    files = [Path(os.environ[name]) for name in _TLS if os.environ.get(name)]
    if len(files) < len(_TLS):
        return grpc.insecure_channel(address, options)
    authority, key, chain = (file.read_bytes() for file in files)
    names = x509.load_pem_x509_certificate(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    options.append(("grpc.ssl_target_name_override", names.get_values_for_type(x509.DNSName)[0]))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, chain), options)


def _told() -> str:
    """Where the server in this container was told to listen, as this container reaches it."""
    variables = [name for name in os.environ if name.startswith("TOLLKEEPER_") and name.endswith("_LISTEN")]
    (listen,) = (os.environ[name] for name in variables if not name.endswith("METRICS_LISTEN"))
    return f"127.0.0.1:{listen.rpartition(':')[2]}"


if __name__ == "__main__":
    sys.exit(0 if serving(sys.argv[1] if sys.argv[1:] else _told()) else 1)
