"""Owns the tests of a server's life: binding, hooks, health, drain, reflection, TLS."""

import asyncio
import datetime as dt
import ipaddress
import re
import threading
import time
from functools import partial

import grpc
import kit_echo_pb2 as pb
import kit_echo_pb2_grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from kit_echo import AioEcho, SyncEcho
from prometheus_client import REGISTRY

from services.kit import tls
from services.kit.addresses import BindError
from services.kit.channels import aio_channel
from services.kit.serving import AioServer, SyncServer
from services.kit.settings import ServiceSettings

ADD = kit_echo_pb2_grpc.add_EchoServiceServicer_to_server
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel, service=""):
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return answer.status


async def test_health_is_serving_for_the_server_and_each_service(echo):
    assert await health_of(echo.channel) == SERVING
    assert await health_of(echo.channel, "kittest.v1.EchoService") == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(echo.channel, "kittest.v1.Nothing")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_nothing_is_served_before_the_start_hooks_have_ended(settings):
    seen = []
    server = AioServer(settings)
    server.register(ADD, AioEcho())

    async def hook():
        async with grpc.aio.insecure_channel(server.address) as channel:
            try:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=0.3)
            except grpc.aio.AioRpcError as error:
                seen.append(error.code())

    server.on_start(hook)
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        assert await health_of(channel) == SERVING
    assert seen in ([grpc.StatusCode.DEADLINE_EXCEEDED], [grpc.StatusCode.UNAVAILABLE])


async def test_hooks_run_in_order_and_stop_hooks_backwards(settings):
    async def asynchronous():
        ran.append("b")

    for make in (AioServer, SyncServer):
        ran = []
        server = make(settings)
        server.on_start(partial(ran.append, "a"))
        server.on_stop(partial(ran.append, "y"))
        server.on_stop(partial(ran.append, "x"))
        if make is AioServer:
            server.on_start(asynchronous)
            await server.start()
            await server.stop()
            await server.stop()
            assert ran == ["a", "b", "x", "y"]
        else:
            server.start()
            server.stop()
            server.stop()
            assert ran == ["a", "x", "y"]


async def test_a_failing_start_hook_leaves_nothing_running(settings):
    for make in (AioServer, SyncServer):
        stopped = []
        server = make(settings)
        server.on_start(lambda: 1 / 0)
        server.on_stop(partial(stopped.append, 1))
        with pytest.raises(ZeroDivisionError):
            await server.start() if make is AioServer else server.start()
        assert stopped == [1]


async def test_a_failing_stop_hook_does_not_keep_the_others_from_running(settings):
    stopped = []
    server = AioServer(settings)
    server.on_stop(lambda: stopped.append(1))
    server.on_stop(lambda: 1 / 0)
    async with server:
        pass
    assert stopped == [1]


async def test_a_taken_port_is_told_by_its_address(echo, settings):
    taken = settings.model_copy(update={"listen": echo.server.address})
    with pytest.raises(BindError, match=f"cannot listen on {echo.server.address}"):
        await AioServer(taken).start()
    with pytest.raises(BindError, match=f"cannot listen on {echo.server.address}"):
        SyncServer(taken).start()


@pytest.mark.parametrize("listen", ["203.0.113.7:0", "nowhere", "localhost:99999"])
async def test_an_address_that_is_not_ours_is_told(settings, listen):
    with pytest.raises(BindError, match=listen):
        await AioServer(settings.model_copy(update={"listen": listen})).start()


async def test_missing_tls_files_are_told(settings, tmp_path):
    tls = settings.model_copy(update={"tls_cert_file": tmp_path / "cert.pem", "tls_key_file": tmp_path / "key.pem"})
    with pytest.raises(BindError, match=r"cert\.pem|key\.pem"):
        await AioServer(tls).start()


@pytest.mark.parametrize("kind", ["aio", "sync"])
async def test_stopping_waits_for_running_calls_and_takes_no_new_ones(settings, bearer, kind):
    if kind == "aio":
        server, servicer = AioServer(settings), AioEcho()
        wait_for_start, stop = servicer.started.wait, server.stop
    else:
        server, servicer = SyncServer(settings), SyncEcho(threading.Event(), threading.Event())

        async def wait_for_start():
            await asyncio.to_thread(servicer.started.wait, 10)

        async def stop():
            await asyncio.to_thread(server.stop)

    server.register(ADD, servicer)
    stopped = []
    server.on_stop(lambda: stopped.append(server._gate.running))
    await server.start() if kind == "aio" else server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        running = stub.Account(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=20)
        await wait_for_start()
        began = time.monotonic()
        stopping = asyncio.ensure_future(stop())
        assert (await watch.read()).status == NOT_SERVING
        assert server.draining.is_set()
        await asyncio.sleep(0.5)
        assert not stopping.done()
        assert stopped == []
        async with grpc.aio.insecure_channel(server.address) as another:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await kit_echo_pb2_grpc.EchoServiceStub(another).Public(pb.PlainRequest(), timeout=2)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        servicer.release.set()
        assert (await running).text == "wait"
        # The watch of health is still open: it must not hold the server for the whole of its grace.
        await stopping
        assert time.monotonic() - began < 3
        assert stopped == [0]


async def test_calls_that_outlast_the_grace_are_cancelled(settings, bearer):
    servicer = AioEcho()
    server = AioServer(settings.model_copy(update={"grace_seconds": 0.3}))
    server.register(ADD, servicer)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        running = asyncio.ensure_future(
            _answer(stub.Account(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=20))
        )
        await servicer.started.wait()
        await asyncio.wait_for(server.stop(), 5)
        assert servicer.cancelled.is_set()
        with pytest.raises(grpc.aio.AioRpcError):
            await running


async def _answer(call):
    return await call


async def test_reflection_lists_what_is_served(echo):
    def listed():
        with grpc.insecure_channel(echo.server.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = set(database.get_services())
            file = database.FindFileContainingSymbol("kittest.v1.EchoService")
            return services, file.name

    services, file = await asyncio.to_thread(listed)
    assert services == {"kittest.v1.EchoService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert file == "kit_echo.proto"


async def test_reflection_can_be_turned_off(settings):
    server = AioServer(settings.model_copy(update={"reflection": False}))
    server.register(ADD, AioEcho())
    async with server:

        def listed():
            with grpc.insecure_channel(server.address) as channel:
                ProtoReflectionDescriptorDatabase(channel).get_services()

        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            await asyncio.to_thread(listed)


# --- TLS -------------------------------------------------------------------------------------------------------------


def _certificate(names, issuer=None):
    """A certificate (and its key) for some names, signed by `issuer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [*(x509.DNSName(name) for name in names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
    )
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    """Settings naming the TLS files of a party: `tls_files("ledger.internal")`."""
    folder = tmp_path_factory.mktemp("tls")
    authority = _certificate(["tollkeeper test CA"])
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "ca.pem").write_bytes(authority[0].public_bytes(pem))

    def make(name):
        certificate, key = _certificate([name], authority)
        cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        cert_file.write_bytes(certificate.public_bytes(pem))
        key_file.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password))
        return {"tls_cert_file": cert_file, "tls_key_file": key_file, "tls_ca_file": folder / "ca.pem"}

    return make


async def test_replica_at_an_address_shows_the_certificate_of_its_name(settings, tls_files, refused):
    server = AioServer(settings.model_copy(update=tls_files("ledger.internal")))
    server.register(ADD, AioEcho())
    callers = settings.model_copy(update=tls_files("proxy.internal"))
    async with server:
        async with aio_channel(server.address, callers, name="ledger.internal") as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            assert await stub.Public(pb.PlainRequest())
        async with aio_channel(server.address, callers, name="pricing.internal") as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            assert (await refused(stub.Public(pb.PlainRequest(), timeout=2))).code is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_names_services_and_a_credential_counts_first(settings, tls_files, bearer, refused):
    server_settings = settings.model_copy(
        update=tls_files("ledger.internal") | {"tls_service_names": ("proxy.internal",)}
    )
    server = AioServer(server_settings)
    server.register(ADD, AioEcho())
    async with server:
        async with aio_channel(server.address, settings.model_copy(update=tls_files("proxy.internal"))) as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            assert (await stub.Service(pb.EchoRequest(text="hi"))).role == "SERVICE"
            # What a gateway with a certificate passes on is the customer's call, not its own.
            answer = await stub.Account(pb.EchoRequest(text="hi"), metadata=bearer("ACCOUNT"))
            assert (answer.role, answer.account_id) == ("ACCOUNT", "acme")
            bad = bearer("ACCOUNT", ttl_seconds=-1)
            assert (await refused(stub.Account(pb.EchoRequest(), metadata=bad))).reason == "TOKEN_INVALID"
        async with aio_channel(server.address, settings.model_copy(update=tls_files("gateway.internal"))) as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            assert (await refused(stub.Service(pb.EchoRequest()))).reason == "CREDENTIAL_MISSING"
        stranger = settings.model_copy(update={"tls_ca_file": server_settings.tls_ca_file})
        async with aio_channel(server.address, stranger) as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            assert (await refused(stub.Public(pb.PlainRequest(), timeout=2))).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", [AioServer, SyncServer])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("tls_cert_file", "wrong.pem: holds no PEM certificate"),
        ("tls_key_file", "wrong.pem: not an unencrypted PEM private key"),
        ("tls_ca_file", "wrong.pem: holds no PEM certificate"),
    ],
)
async def test_tls_files_that_cannot_be_used_are_named(tls_files, tmp_path, kind, wrong, words):
    (tmp_path / "wrong.pem").write_text("")
    server = kind(ServiceSettings(**(tls_files("ledger.internal") | {wrong: tmp_path / "wrong.pem"})))
    with pytest.raises(BindError, match=re.escape(words)):
        await _begun(server)


@pytest.mark.parametrize("kind", [AioServer, SyncServer])
@pytest.mark.parametrize("missing", [["tls_cert_file"], ["tls_key_file"], ["tls_cert_file", "tls_key_file"]])
async def test_server_that_is_half_told_of_tls_does_not_serve_in_plain_text(settings, tls_files, kind, missing):
    files = tls_files("ledger.internal") | dict.fromkeys(missing)
    with pytest.raises(BindError, match="TLS_CERT_FILE"):
        await _begun(kind(settings.model_copy(update=files)))


async def _begun(server):
    begun = server.start()
    await (begun or asyncio.sleep(0))


def test_key_of_another_certificate_is_named(settings, tls_files):
    files = tls_files("ledger.internal") | {"tls_key_file": tls_files("pricing.internal")["tls_key_file"]}
    for made in (tls.server_credentials, tls.server_context, tls.channel_credentials, tls.channel_context):
        with pytest.raises(tls.TlsFileError, match=r"pricing\.internal\.key: not the key of .*ledger\.internal\.pem"):
            made(settings.model_copy(update=files))


def test_metric_says_when_the_certificate_that_is_shown_expires(settings, tls_files):
    files = settings.model_copy(update=tls_files("ledger.internal"))
    expires = x509.load_pem_x509_certificate(files.tls_cert_file.read_bytes()).not_valid_after_utc.timestamp()
    for made in (tls.server_credentials, tls.server_context, tls.channel_credentials, tls.channel_context):
        tls._EXPIRES.set(0)
        made(files)
        assert REGISTRY.get_sample_value("tollkeeper_tls_certificate_expires_timestamp_seconds") == expires
