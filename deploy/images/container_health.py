"""Owns a container's health check: asks the gRPC server in it whether it serves; exit status 0 where it does.

    python container_health.py [--gauge NAME] [127.0.0.1:50051]

It lies in each service's image by itself, beside the code. With the name of a gauge that has to be 1 as well, for what
a server serves without, and is of no use without. Without an address it asks at the port that the server was told, in
`TOLLKEEPER_<SERVICE>_LISTEN`. Where `TOLLKEEPER_TLS_CERT_FILE`, `…_KEY_FILE` and `…_CA_FILE` are set, it shows the
server's own certificate and asks for the first name in it: kubelet's own gRPC probe speaks no TLS.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import urllib.request
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


def shows(address: str, gauge: str) -> bool:
    """Whether the process that serves its metrics at host:port has this gauge at 1."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{address}/metrics", timeout=_SECONDS) as answer:
            return bool(re.search(rf"^{re.escape(gauge)} 1(\.0)?$", answer.read().decode(), re.MULTILINE))
    except OSError:
        return False


def _told(*, metrics: bool = False) -> str:
    """Where the server in this container was told to listen, as this container reaches it."""
    variables = [name for name in os.environ if name.startswith("TOLLKEEPER_") and name.endswith("_LISTEN")]
    (listen,) = (os.environ[name] for name in variables if name.endswith("METRICS_LISTEN") == metrics)
    return f"127.0.0.1:{listen.rpartition(':')[2]}"


def main() -> int:
    """Ask as the command line says; 0 where all of it is well."""
    parser = argparse.ArgumentParser(description="Ask the server in this container whether it serves.")
    parser.add_argument("address", nargs="?", metavar="HOST:PORT")
    parser.add_argument("--gauge", metavar="NAME", help="that has to be 1 besides")
    chosen = parser.parse_args()
    well = serving(chosen.address or _told()) and (not chosen.gauge or shows(_told(metrics=True), chosen.gauge))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
