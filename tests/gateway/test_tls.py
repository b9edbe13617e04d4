"""TLS at the listener: what is spoken, and that a certificate is exchanged without losing a call."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509

from tests.gateway.support.gateway_certificates import Authority, put

AUTHORITY = Authority()
DEADLINE_SECONDS = 20


def put_certificate(folder, serial):
    pair = AUTHORITY.pair("localhost", serial=serial)
    put(folder, {"tls.crt": pair.certificate, "tls.key": pair.key})


def trusting(*protocols, version=None):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version:
        context.maximum_version = version
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def handshake(port, context):
    """The protocol agreed on by ALPN, the TLS version, and the certificate's serial number."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        certificate = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True))
        return secured.selected_alpn_protocol(), secured.version(), certificate.serial_number


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    put_certificate(folder, 1)
    return folder


@pytest.fixture(scope="module")
def secure(make_gateway, certificates):
    gateway = make_gateway(certificate_folder=str(certificates))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            handshake(gateway.port, trusting())
            return gateway
        time.sleep(0.1)
    raise AssertionError(gateway.log.read_text())


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1"), ((), None), (("spdy/1",), None)],
    ids=["both", "old", "none", "unknown"],
)
def test_http_version_is_agreed_on_in_the_handshake(secure, offered, agreed):
    assert handshake(secure.port, trusting(*offered))[0] == agreed


def test_tls_before_1_2_is_refused(secure):
    assert handshake(secure.port, trusting())[1] == "TLSv1.3"
    assert handshake(secure.port, trusting(version=ssl.TLSVersion.TLSv1_2))[1] == "TLSv1.2"
    context = trusting()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(secure.port, context)


def test_call_is_answered_over_tls_and_not_in_the_clear(secure, services):
    connection = http.client.HTTPSConnection("localhost", secure.port, timeout=10, context=trusting())
    connection.request("GET", "/v1/models")
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 200
    assert len(services.calls) == 1
    with contextlib.suppress(ConnectionResetError):
        assert b"HTTP/1.1 200" not in secure.raw(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert len(services.calls) == 1


def test_new_certificate_is_taken_up_while_calls_go_on(secure, certificates, services, eventually):
    open_before = http.client.HTTPSConnection("localhost", secure.port, timeout=10, context=trusting())
    open_before.request("GET", "/healthz")
    open_before.getresponse().read()
    statuses, stop = [], threading.Event()

    def call_on():
        while not stop.is_set():
            connection = http.client.HTTPSConnection("localhost", secure.port, timeout=10, context=trusting())
            connection.request("GET", "/v1/models")
            statuses.append(connection.getresponse().status)
            connection.close()

    caller = threading.Thread(target=call_on)
    caller.start()
    try:
        for serial in (2, 3):
            put_certificate(certificates, serial)
            eventually(lambda serial=serial: handshake(secure.port, trusting())[2] == serial)
    finally:
        stop.set()
        caller.join()
    assert statuses
    assert set(statuses) == {200}
    # The connection of before was neither closed nor asked to shake hands anew.
    open_before.request("GET", "/healthz")
    assert open_before.getresponse().status == 200
    open_before.close()


def test_broken_certificate_leaves_the_one_in_force(secure, certificates, eventually):
    serial = handshake(secure.port, trusting())[2]
    assert secure.stat("sds.edge_certificate.key_rotation_failed") == 0
    put(certificates, {"tls.crt": b"this is no certificate", "tls.key": b"nor a key"})
    eventually(lambda: secure.stat("sds.edge_certificate.key_rotation_failed") == 1)
    assert handshake(secure.port, trusting())[2] == serial
    put_certificate(certificates, serial + 1)
    eventually(lambda: handshake(secure.port, trusting())[2] == serial + 1)
