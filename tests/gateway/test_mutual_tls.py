"""Between gateway and services: each shows a certificate, and neither speaks to whom it does not know."""

from __future__ import annotations

import concurrent.futures
import contextlib

import grpc
import pytest
from google.api import httpbody_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tollkeeper.proxy.v1 import wire_service_pb2_grpc

from tests.gateway.support.gateway_certificates import Authority, put

AUTHORITY = Authority()


class Models(wire_service_pb2_grpc.WireServiceServicer):
    def ListModels(self, _request, context):  # noqa: N802 (the contract's name)
        peer = context.auth_context().get("x509_subject_alternative_name", [b""])[0].decode()
        return httpbody_pb2.HttpBody(content_type="application/json", data=f'{{"peer":"{peer}"}}'.encode())


@contextlib.contextmanager
def service(pair):
    """A gRPC server with this certificate, that takes clients of the authority only."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    wire_service_pb2_grpc.add_WireServiceServicer_to_server(Models(), server)
    status = health.HealthServicer()
    status.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    credentials = grpc.ssl_server_credentials(
        [(pair.key, pair.certificate)], root_certificates=AUTHORITY.certificate, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def identity(folder, signed_by=AUTHORITY, trusts=AUTHORITY):
    pair = signed_by.pair("gateway.tollkeeper")
    put(folder, {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": trusts.certificate})
    return str(folder)


def test_gateway_and_service_know_each_other(make_gateway, tmp_path):
    with service(AUTHORITY.pair("127.0.0.1")) as port:
        answer = make_gateway(port, identity_folder=identity(tmp_path))("GET", "/v1/models")
        assert answer.status == 200
        assert answer.json == {"peer": "gateway.tollkeeper"}


@pytest.mark.parametrize("impostor", ["another name", "another authority"])
def test_service_that_is_not_the_one_meant_is_not_called(make_gateway, tmp_path, impostor):
    pair = AUTHORITY.pair("10.9.9.9") if impostor == "another name" else Authority().pair("127.0.0.1")
    with service(pair) as port:
        answer = make_gateway(port, identity_folder=identity(tmp_path))("GET", "/v1/models")
        assert answer.status == 503
        assert answer.json["error"]["message"] == "The service is not available now. Try again shortly."


def test_gateway_of_another_authority_is_not_served(make_gateway, tmp_path):
    with service(AUTHORITY.pair("127.0.0.1")) as port:
        stranger = identity(tmp_path, signed_by=Authority())
        assert make_gateway(port, identity_folder=stranger)("GET", "/v1/models").status == 503


def test_gateway_without_a_certificate_is_not_served(make_gateway):
    with service(AUTHORITY.pair("127.0.0.1")) as port:
        assert make_gateway(port)("GET", "/v1/models").status == 503


def test_new_identity_is_taken_up_without_a_restart(make_gateway, tmp_path, eventually):
    with service(AUTHORITY.pair("127.0.0.1")) as port:
        gateway = make_gateway(port, identity_folder=identity(tmp_path, signed_by=Authority()))
        assert gateway("GET", "/v1/models").status == 503
        identity(tmp_path)
        eventually(lambda: gateway("GET", "/v1/models").status == 200)
