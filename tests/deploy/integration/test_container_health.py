"""A container's health check, run as an image runs it, against real gRPC servers."""

import os
import subprocess
import sys
from concurrent import futures

import grpc
import pytest
from deploy_certificates import put_certificate
from deploy_manifests import REPOSITORY
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Gauge, start_http_server

SCRIPT = REPOSITORY / "deploy" / "images" / "container_health.py"


def check(port: int, *options: str, metrics: int = 1, **environ: str) -> int:
    listening = {"TOLLKEEPER_LEDGER_LISTEN": f"0.0.0.0:{port}", "TOLLKEEPER_METRICS_LISTEN": f"0.0.0.0:{metrics}"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, *([] if environ else [f"127.0.0.1:{port}"])],
        env={"PATH": os.defpath, **listening, **environ},
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert not done.stderr
    return done.returncode


@pytest.fixture
def server():
    made = grpc.server(futures.ThreadPoolExecutor(2))
    made.health = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(made.health, made)
    yield made
    made.stop(None)


def test_a_server_is_healthy_while_it_serves_and_not_while_it_drains(server):
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    assert check(port) == 0
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert check(port) == 1
    server.stop(None).wait()
    assert check(port) == 1


def test_a_server_that_asks_for_a_certificate_is_shown_its_own(server, tmp_path):
    certificate, private = put_certificate(tmp_path, "tollkeeper-ledger")
    credentials = grpc.ssl_server_credentials([(private, certificate)], certificate, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    files = {"CERT": "tls.crt", "KEY": "tls.key", "CA": "tls.crt"}
    environ = {f"TOLLKEEPER_TLS_{name}_FILE": str(tmp_path / file) for name, file in files.items()}
    assert check(port, **environ) == 0
    assert check(port) == 1


def test_a_server_that_is_of_no_use_yet_is_not_healthy(server):
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    registry = CollectorRegistry()
    known = Gauge("tollkeeper_known", "Whether what is needed is known.", registry=registry)
    Gauge("tollkeeper_known_other", "Another.", registry=registry).set(1)
    httpd, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        options = {"metrics": httpd.server_port}
        assert check(port, "--gauge=tollkeeper_known", **options) == 1
        known.set(1)
        assert check(port, "--gauge=tollkeeper_known", **options) == 0
        assert check(port, "--gauge=tollkeeper_unknown", **options) == 1
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
    assert check(port, "--gauge=tollkeeper_known") == 1
