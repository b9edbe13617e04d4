"""What a stranger's endpoint may try: one's own network, redirections, strange, endless and dripping answers, TLS."""

import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from subscriptions_alerts import add_endpoint, deliveries, make_due, raise_alert, send_all
from subscriptions_receivers import Receiver
from tollkeeper.subscriptions.v1 import operator_service_pb2 as pb

from services.subscriptions.alerts import store
from services.subscriptions.alerts.sending import Sender
from services.subscriptions.alerts.webhooks import NotSentError, WebhookSender


@pytest.fixture(autouse=True)
def account(operator):
    operator(operator.customers.CreateAccount, pb.CreateAccountRequest(account_id="acme"))


def test_private_address_is_refused_unless_allowed(database, receiver, sender):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    send_all(sender(alert_private_addresses=False))
    assert receiver.requests == []
    assert deliveries(database) == [("pending", 1, "the endpoint is not on a public address")]
    make_due(database)
    send_all(sender(alert_private_addresses=True))
    assert len(receiver.requests) == 1


def test_name_of_a_private_address_is_refused(database, receiver, sender):
    add_endpoint(database, receiver.url.replace("127.0.0.1", "localhost"))
    raise_alert(database)
    send_all(sender(alert_private_addresses=False))
    assert receiver.requests == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirection_is_not_followed(database, receiver, sender, status):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.answer = lambda handler: handler.plain(status, location=f"{receiver.url}/elsewhere")
    send_all(sender())
    assert [request.path for request in receiver.requests] == ["/"]
    assert deliveries(database) == [("pending", 1, f"the endpoint answered {status}")]


def write(handler, *pieces):
    for piece in pieces:
        handler.wfile.write(piece)
    handler.close_connection = True


STRANGE_ANSWERS = {
    "garbage": lambda handler: write(handler, b"\x00\xff garbage\r\n\r\n"),
    "nothing": write,
    "no-number": lambda handler: write(handler, b"HTTP/1.1 fine thanks\r\n\r\n"),
    "long-head": lambda handler: write(handler, b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"),
    "many-heads": lambda handler: write(handler, b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000 + b"\r\n"),
    "bad-length": lambda handler: write(handler, b"HTTP/1.1 500 No\r\ncontent-length: -5\r\n\r\n"),
}


@pytest.mark.parametrize("strange", sorted(STRANGE_ANSWERS))
def test_strange_answer_is_a_failed_attempt_and_jams_nothing(database, receiver, sender, strange):
    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.answer, sending = STRANGE_ANSWERS[strange], sender()
    send_all(sending)
    ((status, attempts, error),) = deliveries(database)
    assert (status, attempts) == ("pending", 1)
    assert error.startswith("the endpoint ")
    receiver.answer = 204
    make_due(database)
    send_all(sending)
    assert deliveries(database) == [("delivered", 2, "")]


def test_fault_of_our_own_is_a_failed_attempt_and_jams_nothing(database, settings):
    add_endpoint(database, "https://hooks.example.com/")
    raise_alert(database)

    def broken(_due):
        raise KeyError("with a secret in it")

    send_all(Sender(database.engine, settings(), webhook=broken))
    assert deliveries(database) == [("pending", 1, "unexpected KeyError")]


def test_endless_answer_is_not_read(database, receiver, sender):
    ended = threading.Event()

    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n")
        try:
            for _ in range(10_000):  # a gigabyte: more than any buffer between the two holds
                handler.wfile.write(b"x" * 100_000)
        except OSError:
            ended.set()

    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.answer = endless
    send_all(sender())
    assert deliveries(database) == [("delivered", 1, "")]
    assert ended.wait(20), "the sender hung up"


@pytest.mark.parametrize("drip", [b"HTTP/1.1 100 Continue\r\n\r\n", b"H"], ids=["continue", "byte"])
def test_endpoint_that_drips_is_cut_off_when_its_time_is_up(database, receiver, sender, drip):
    """Each piece comes within the time, and so would begin a socket's own timeout anew."""
    ended, stop = threading.Event(), threading.Event()

    def dripping(handler):
        try:
            while not stop.wait(0.05):
                handler.wfile.write(drip)
        except OSError:
            ended.set()

    add_endpoint(database, receiver.url)
    raise_alert(database)
    receiver.answer = dripping
    send_all(sender(alert_timeout_seconds=0.5))
    cut_off = ended.wait(20)
    stop.set()
    assert cut_off
    assert deliveries(database) == [("pending", 1, "the endpoint was not reached: TimeoutError")]


# TLS


def make_authority(folder, name):
    """A certificate authority of the test's own, and a server's context with a certificate for `name`."""
    now = datetime.now(UTC)

    def certificate(subject, key, issuer, issuer_key, *extensions):
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    def named(common):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate(named("test"), root_key, named("test"), root_key, x509.BasicConstraints(ca=True, path_length=0))
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    leaf = certificate(named(name), key, named("test"), root_key, names)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + leaf.public_bytes(serialization.Encoding.PEM)
    file = folder / "server.pem"
    file.write_bytes(pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    client = ssl.create_default_context(cadata=root.public_bytes(serialization.Encoding.PEM).decode())
    return server, client


@pytest.fixture
def claimed(database):
    """`claimed(url)`: a delivery to be made."""

    def claim(url):
        add_endpoint(database, url)
        raise_alert(database)
        with database.engine.begin() as connection:
            return store.claim_delivery(connection, lease=timedelta(minutes=1))

    return claim


def test_webhook_goes_over_tls_to_the_name_in_the_certificate(tmp_path, claimed):
    server, client = make_authority(tmp_path, "localhost")
    with Receiver().serve(server, "localhost") as receiver:
        due = claimed(f"{receiver.url}/hook")
        WebhookSender(timeout_seconds=5, private_addresses=True, tls=client)(due)
        assert receiver.requests[0].headers["host"] == receiver.url.removeprefix("https://")


def test_certificate_for_another_name_is_a_failure(tmp_path, claimed):
    """It is trusted, and for the machine; but not for what the address calls it."""
    server, client = make_authority(tmp_path, "localhost")
    with Receiver().serve(server, "127.0.0.1") as receiver:
        due = claimed(receiver.url)
        with pytest.raises(NotSentError, match="SSLCertVerificationError"):
            WebhookSender(timeout_seconds=5, private_addresses=True, tls=client)(due)
        assert receiver.requests == []


def test_certificate_that_nobody_here_trusts_is_a_failure(tmp_path, claimed):
    server, _ = make_authority(tmp_path, "localhost")
    with Receiver().serve(server, "localhost") as receiver:
        due = claimed(receiver.url)
        with pytest.raises(NotSentError, match="SSLCertVerificationError"):
            WebhookSender(timeout_seconds=5, private_addresses=True)(due)
        assert receiver.requests == []


def test_endpoint_that_never_shakes_hands_is_cut_off(claimed):
    """Its TLS is never begun: an HTTP server waits for a line that does not come."""
    with Receiver().serve() as receiver:
        due = claimed(receiver.url.replace("http:", "https:"))
        with pytest.raises(NotSentError):
            WebhookSender(timeout_seconds=0.5, private_addresses=True)(due)
        assert receiver.requests == []
