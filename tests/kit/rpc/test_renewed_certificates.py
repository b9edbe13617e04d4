"""Owns the tests of certificates that are replaced while servers and channels are in use, as cert-manager does."""

import asyncio
import gc
import time

import grpc
import kit_echo_pb2 as pb
import kit_echo_pb2_grpc
import pytest
from kit_echo import AioEcho, SyncEcho
from prometheus_client import REGISTRY

from services.kit import tls
from services.kit.channels import aio_channel, sync_channel, unary_channel
from services.kit.serving import AioServer, SyncServer, limits
from tests.gateway.support.gateway_certificates import Authority, put

ADD = kit_echo_pb2_grpc.add_EchoServiceServicer_to_server
NAME = "ledger.internal"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    """Files are looked at for each handshake, and connections end before the tests do."""
    monkeypatch.setattr(tls, "_RECHECK_SECONDS", 0)
    monkeypatch.setattr(limits, "CONNECTION_SECONDS", 0.3)


class Party:
    """A service with a certificate, in a folder as Kubernetes mounts a Secret."""

    def __init__(self, settings, folder, authority, *names):
        self._folder = folder
        folder.mkdir()
        self.show(authority, *names)
        files = {"tls_cert_file": "tls.crt", "tls_key_file": "tls.key", "tls_ca_file": "ca.crt"}
        found = {field: folder / file for field, file in files.items()}
        self.settings = settings.model_copy(update={**found, "tls_service_names": ("proxy.new",)})

    def show(self, authority, *names):
        """Replace all files at once by others of this authority, whose peers alone are trusted then."""
        pair = authority.pair(*names)
        put(self._folder, {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate})

    def replace(self, name, content):
        """Replace one file by itself."""
        (self._folder / "fresh").write_bytes(content)
        (self._folder / "fresh").replace(self._folder / name)


@pytest.fixture(params=["aio", "sync"])
async def server(request, settings, tmp_path):
    party = Party(settings, tmp_path / "server", Authority(), "127.0.0.1", NAME)
    made = AioServer(party.settings) if request.param == "aio" else SyncServer(party.settings)
    made.register(ADD, AioEcho() if request.param == "aio" else SyncEcho())
    await _finished(made.start())
    yield made, party
    await (made.stop() if request.param == "aio" else asyncio.to_thread(made.stop))


async def _finished(result):
    return await result if result is not None and hasattr(result, "__await__") else result


@pytest.fixture(params=["aio_channel", "sync_channel", "unary_channel"])
async def client(request, server, settings, tmp_path):
    """A channel to the server that trusts nobody yet, and who calls through it: `await role()`."""
    party = Party(settings, tmp_path / "client", Authority(), "proxy.old")
    address = f"127.0.0.1:{server[0].port}"
    if request.param == "sync_channel":
        channel = sync_channel(address, party.settings)
    else:
        channel = {"aio_channel": aio_channel, "unary_channel": unary_channel}[request.param](address, party.settings)
    stub = kit_echo_pb2_grpc.EchoServiceStub(channel)

    async def role():
        """SERVICE, or the status of a call that was refused."""
        try:
            if request.param == "sync_channel":
                return (await asyncio.to_thread(stub.Service, pb.EchoRequest(), timeout=5)).role
            return (await stub.Service(pb.EchoRequest(), timeout=5)).role
        except grpc.RpcError as error:
            return error.code().name

    yield party, role
    await _finished(channel.close())


async def _until(role, expected):
    ends = time.monotonic() + 30
    while (found := await role()) != expected:
        assert time.monotonic() < ends, f"{found}, not {expected}"
        await asyncio.sleep(0.05)


async def test_replaced_certificates_are_in_use_on_both_sides_without_a_restart(server, client):
    _, server_party = server
    client_party, role = client
    first, second = Authority(), Authority()
    assert await role() == "UNAVAILABLE"  # neither knows the other
    client_party.show(first, "proxy.old")
    assert await role() == "UNAVAILABLE"  # the client alone has changed
    server_party.show(first, "127.0.0.1", NAME)
    await _until(role, "UNAUTHENTICATED")  # both have, and the certificate is of no service
    client_party.show(first, "proxy.new")
    await _until(role, "SERVICE")
    server_party.show(second, "127.0.0.1", NAME)
    await _until(role, "UNAVAILABLE")  # an authority that is no longer in the file is not trusted any more
    client_party.show(second, "proxy.new")
    await _until(role, "SERVICE")


async def test_half_replaced_certificate_leaves_the_one_before_in_use(server, settings, tmp_path):
    running, server_party = server
    authority = Authority()
    server_party.show(authority, "127.0.0.1", NAME)
    client_party = Party(settings, tmp_path / "client", authority, "proxy.new")
    address = f"127.0.0.1:{running.port}"

    async def role():
        async with aio_channel(address, client_party.settings) as channel:
            try:
                return (await kit_echo_pb2_grpc.EchoServiceStub(channel).Service(pb.EchoRequest(), timeout=5)).role
            except grpc.RpcError as error:
                return error.code().name

    assert await role() == "SERVICE"
    other = Authority()
    new = other.pair("127.0.0.1", NAME)
    server_party.replace("tls.crt", new.certificate)  # with the key of the one before
    assert await role() == "SERVICE"
    server_party.replace("tls.key", new.key)
    server_party.replace("ca.crt", other.certificate)
    assert await role() == "UNAVAILABLE"
    client_party.show(other, "proxy.new")
    assert await role() == "SERVICE"


@pytest.mark.parametrize("kind", ["aio", "sync"])
async def test_call_under_way_goes_on_when_certificates_are_replaced(server, settings, tmp_path, bearer, kind):
    running, server_party = server
    first, second = Authority(), Authority()
    server_party.show(first, "127.0.0.1", NAME)
    client_party = Party(settings, tmp_path / "client", first, "proxy.new")
    address = f"127.0.0.1:{running.port}"
    gone_on = asyncio.Event()

    async def requests():
        yield pb.EchoRequest(account_id="acme", text="before")
        await gone_on.wait()
        yield pb.EchoRequest(account_id="acme", text="after")

    def replaced():
        server_party.show(second, "127.0.0.1", NAME)
        client_party.show(second, "proxy.new")

    def over_threads():
        with sync_channel(address, client_party.settings) as channel:
            stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
            released = []
            call = stub.Both(_given(released), metadata=bearer("ACCOUNT"))
            assert next(call).text == "before"
            replaced()
            assert stub.Service(pb.EchoRequest(), timeout=10).role == "SERVICE"
            gc.collect()
            released.append(True)
            assert [answer.text for answer in call] == ["after"]

    if kind == "sync":
        await asyncio.to_thread(over_threads)
        return
    async with aio_channel(address, client_party.settings) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        call = stub.Both(requests(), metadata=bearer("ACCOUNT"))
        assert (await call.read()).text == "before"
        replaced()
        assert (await stub.Service(pb.EchoRequest(), timeout=10)).role == "SERVICE"
        gc.collect()
        gone_on.set()
        assert (await call.read()).text == "after"
        assert await call.code() is grpc.StatusCode.OK


def _given(released):
    yield pb.EchoRequest(account_id="acme", text="before")
    ends = time.monotonic() + 30
    while not released and time.monotonic() < ends:
        time.sleep(0.01)
    yield pb.EchoRequest(account_id="acme", text="after")


def test_metric_tells_of_the_certificate_that_is_shown_now(settings, tmp_path):
    def expires():
        return REGISTRY.get_sample_value("tollkeeper_tls_certificate_expires_timestamp_seconds")

    party = Party(settings, tmp_path / "party", Authority(), NAME)
    asked = tls.channel_context(party.settings)
    tls._EXPIRES.set(0)
    asked()
    assert expires() == 0
    party.show(Authority(), NAME)
    asked()
    assert expires() > time.time()
