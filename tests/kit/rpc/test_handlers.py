"""Owns the tests of what happens around every method, over real connections, on both kinds of server."""

import asyncio
import gc
import io
import itertools
import json
import tracemalloc

import grpc
import kit_echo_pb2 as pb
import kit_echo_pb2_grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kit_echo import SECRET, AioEcho

from services.kit.call import current_request_id, remaining_seconds
from services.kit.errors import Kind
from services.kit.identity import Identity, Role, TokenSigner, make_keypair
from services.kit.logs import configure_logs
from services.kit.metrics import rpc_metrics
from services.kit.refusals import TokenInvalid
from services.kit.serving import AioServer

SERVICE = pb.DESCRIPTOR.services_by_name["EchoService"]
DECLARED = {
    **dict.fromkeys(["Public"], Role.PUBLIC),
    **dict.fromkeys(["Account", "Plain", "Down", "Up", "Both", "LaterDown", "LaterUp"], Role.ACCOUNT),
    **dict.fromkeys(["Admin", "Later"], Role.ADMIN),
    **dict.fromkeys(["Service"], Role.SERVICE),
}


async def requests(*messages):
    for message in messages:
        yield message


def call(stub, method, metadata=(), account_id="acme", text="hi", *, unread=False):
    """Call any RPC of the contract with one message naming the account, where it has a field for it.

    `unread` is for calls refused before a message is read: a request stream is then empty, since the aio client
    reports a failed write (INTERNAL) in place of the status that made it fail.
    """
    descriptor = SERVICE.methods_by_name[method]
    fields = {"text": text}
    if "account_id" in descriptor.input_type.fields_by_name:
        fields["account_id"] = account_id
    message = getattr(pb, descriptor.input_type.name)(**fields)
    streamed = descriptor.client_streaming
    messages = () if unread else (message,)
    return getattr(stub, method)(requests(*messages) if streamed else message, metadata=metadata, timeout=10)


async def answers(answer):
    return [message async for message in answer] if hasattr(answer, "__aiter__") else [await answer]


# --- request id ------------------------------------------------------------------------------------------------------


async def test_a_request_id_is_taken_along_and_comes_back(echo, bearer):
    sent = (*bearer("ACCOUNT"), ("x-request-id", "abc-1:2.3_4"))
    answer = echo.stub.Account(pb.EchoRequest(text="hi"), metadata=sent)
    assert (await answer).request_id == "abc-1:2.3_4"
    assert dict(await answer.trailing_metadata())["x-request-id"] == "abc-1:2.3_4"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "a/b", "${jndi}"])
async def test_a_request_id_that_is_not_sane_is_replaced(echo, bearer, bad):
    answer = await echo.stub.Account(pb.EchoRequest(text="hi"), metadata=(*bearer("ACCOUNT"), ("x-request-id", bad)))
    assert answer.request_id != bad
    assert len(answer.request_id) == 32


async def test_each_call_without_a_request_id_gets_its_own(echo, bearer, refused):
    made = {
        (await echo.stub.Account(pb.EchoRequest(text="hi"), metadata=bearer("ACCOUNT"))).request_id for _ in range(3)
    }
    made.add(
        (await refused(echo.stub.Account(pb.EchoRequest(text="refuse"), metadata=bearer("ACCOUNT")))).trailing[
            "x-request-id"
        ]
    )
    made.add((await refused(echo.stub.Account(pb.EchoRequest()))).trailing["x-request-id"])
    assert len(made) == 5


async def test_trailing_metadata_of_the_method_is_kept(echo, bearer):
    answer = echo.stub.Account(pb.EchoRequest(text="trailing"), metadata=bearer("ACCOUNT"))
    await answer
    trailing = dict(await answer.trailing_metadata())
    assert trailing["x-own"] == "1"
    assert len(trailing["x-request-id"]) == 32


# --- who may call what -----------------------------------------------------------------------------------------------


def test_the_table_of_this_test_is_the_contract():
    assert set(DECLARED) == {method.name for method in SERVICE.methods}


@pytest.mark.parametrize("role", ["PUBLIC", "ACCOUNT", "ADMIN", "SERVICE"])
async def test_every_rpc_is_refused_to_roles_below_its_own(echo, bearer, refused, role):
    metadata = () if role == "PUBLIC" else bearer(role)
    for method, needed in DECLARED.items():
        if Role[role] < needed:
            refusal = await refused(call(echo.stub, method, metadata, unread=True))
            expected = "CREDENTIAL_MISSING" if role == "PUBLIC" else "ROLE_TOO_LOW"
            assert (method, refusal.reason) == (method, expected)
            assert refusal.kind is (Kind.UNAUTHENTICATED if role == "PUBLIC" else Kind.DENIED)
        elif method.startswith("Later"):
            assert (await refused(call(echo.stub, method, metadata, unread=True))).reason == "NOT_IMPLEMENTED"
        else:
            assert await answers(call(echo.stub, method, metadata))


async def test_the_method_knows_its_caller(echo, bearer):
    for role in ("ACCOUNT", "ADMIN", "SERVICE"):
        assert (await call(echo.stub, "Account", bearer(role))).role == role
    assert (await call(echo.stub, "Public")).role == "PUBLIC"


async def test_two_credentials_in_headers_of_one_name_are_none(echo, bearer, refused):
    """Who reads the first and who reads the last would take the call for another's; the authorizer is given both."""
    for first, second in (("acme", "other"), ("other", "acme"), ("acme", "acme")):
        both = (*bearer("ACCOUNT", account_id=first), *bearer("ACCOUNT", account_id=second))
        assert (await refused(call(echo.stub, "Account", both))).reason == "TOKEN_INVALID"


@pytest.mark.parametrize("count", [1, 99])
async def test_all_that_the_gateway_lets_in_is_taken(echo, bearer, count):
    """64 KiB and 100 headers as it counts them, and the identity token that it adds."""
    size = 64 * 1024 // count
    headers = [(f"x-{number:02}", "v" * (size - 4)) for number in range(count)]
    (answer,) = await answers(call(echo.stub, "Account", (*headers, *bearer("ACCOUNT"))))
    assert answer.role == "ACCOUNT"


async def test_forged_token_is_refused(echo, keypair, refused):
    forger = TokenSigner(make_keypair()[0])
    forger.key_id = keypair[1]["keys"][0]["kid"]
    token = forger.sign(Identity(Role.SERVICE, subject="me"), 60)
    for metadata in ((("authorization", f"Bearer {token}"),), (("x-tollkeeper-identity", token),)):
        for method in DECLARED:
            if method != "Public":
                refusal = await refused(call(echo.stub, method, metadata, unread=True))
                assert (refusal.reason, refusal.code) == ("TOKEN_INVALID", grpc.StatusCode.UNAUTHENTICATED)


async def test_expired_token_is_refused(echo, bearer, refused):
    refusal = await refused(call(echo.stub, "Account", bearer("ACCOUNT", ttl_seconds=-1)))
    assert (refusal.reason, refusal.message) == ("TOKEN_INVALID", "the token has expired")


async def test_a_public_rpc_takes_a_bad_credential_for_none(echo, bearer):
    assert (await call(echo.stub, "Public", bearer("SERVICE", ttl_seconds=-1))).role == "PUBLIC"
    assert (await call(echo.stub, "Public", bearer("ADMIN"))).role == "ADMIN"


async def test_a_role_claimed_in_plain_metadata_changes_nothing(echo, refused):
    claims = (("x-tollkeeper-role", "SERVICE"), ("x-tollkeeper-account", "acme"), ("x-tollkeeper-identity", "SERVICE"))
    for metadata in itertools.combinations(claims, 2):
        assert (await refused(call(echo.stub, "Account", metadata))).kind is Kind.UNAUTHENTICATED


# --- whose account ---------------------------------------------------------------------------------------------------


async def test_a_customers_empty_account_is_its_own(echo, bearer):
    metadata = bearer("ACCOUNT", account_id="acme")
    for method in ("Account", "Down", "Up", "Both"):
        answered = await answers(call(echo.stub, method, metadata, account_id=""))
        assert {message.account_id for message in answered} == {"acme"}


async def test_another_account_is_refused(echo, bearer, refused):
    for method in ("Account", "Down", "Up", "Both", "LaterDown"):
        refusal = await refused(call(echo.stub, method, bearer("ACCOUNT", account_id="acme"), account_id="rival"))
        assert (method, refusal.reason, refusal.kind) == (method, "ACCOUNT_MISMATCH", Kind.DENIED)


async def test_every_message_of_a_stream_is_checked(echo, bearer, refused):
    metadata = bearer("ACCOUNT", account_id="acme")
    mixed = (pb.EchoRequest(text="1"), pb.EchoRequest(account_id="acme", text="2"), pb.EchoRequest(account_id="rival"))
    assert (await refused(echo.stub.Up(requests(*mixed), metadata=metadata))).reason == "ACCOUNT_MISMATCH"
    refusal = await refused(echo.stub.Both(requests(*mixed), metadata=metadata))
    assert ([message.text for message in refusal.answered], refusal.reason) == (["1", "2"], "ACCOUNT_MISMATCH")


@pytest.mark.parametrize("role", ["ADMIN", "SERVICE"])
async def test_operators_and_services_have_to_name_an_account(echo, bearer, refused, role):
    for method in ("Account", "Down", "Up", "Both"):
        assert await answers(call(echo.stub, method, bearer(role), account_id="anyone"))
        refusal = await refused(call(echo.stub, method, bearer(role), account_id=""))
        assert (refusal.kind, [v.field for v in refusal.violations]) == (Kind.INVALID, ["account_id"])
    assert await call(echo.stub, "Plain", bearer(role))  # has no field to name it in
    assert await call(echo.stub, "Admin", bearer(role), account_id="")  # is not a customer's RPC


# --- not implemented -------------------------------------------------------------------------------------------------


async def test_not_implemented_says_so_after_the_access_check(echo, bearer, refused):
    for method, role in (("Later", "ADMIN"), ("LaterDown", "ACCOUNT"), ("LaterUp", "ACCOUNT")):
        assert (await refused(call(echo.stub, method, unread=True))).reason == "CREDENTIAL_MISSING"
        refusal = await refused(call(echo.stub, method, bearer(role), unread=True))
        assert (refusal.reason, refusal.code) == ("NOT_IMPLEMENTED", grpc.StatusCode.UNIMPLEMENTED)
        assert refusal.trailing["x-tollkeeper-http-status"] == "501"


async def test_a_method_the_contract_does_not_have_is_refused(echo, bearer, refused):
    unknown = echo.channel.unary_unary("/kittest.v1.EchoService/Nothing")
    assert (await refused(unknown(b"", metadata=bearer("SERVICE")))).code is grpc.StatusCode.UNIMPLEMENTED


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_a_refusal_tells_its_reason_in_every_form(echo, bearer, refused):
    refusal = await refused(call(echo.stub, "Account", bearer("ACCOUNT"), text="refuse"))
    assert (refusal.code, refusal.kind) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Kind.PAYMENT_REQUIRED)
    assert (refusal.domain, refusal.reason) == ("tollkeeper.echo", "OUT_OF_ECHO")
    assert (refusal.message, refusal.metadata) == ("no echo left", {"available_nanos": "12"})
    assert refusal.retry_after_seconds == 1.2
    plain = {key: refusal.trailing[key] for key in ("x-tollkeeper-reason", "x-tollkeeper-http-status", "retry-after")}
    assert plain == {"x-tollkeeper-reason": "OUT_OF_ECHO", "x-tollkeeper-http-status": "402", "retry-after": "2"}


async def test_all_violations_are_named_at_once(echo, bearer, refused):
    refusal = await refused(call(echo.stub, "Account", bearer("ACCOUNT"), text="invalid"))
    assert refusal.kind is Kind.INVALID
    assert [v.field for v in refusal.violations] == ["account_id", "number"]


async def test_a_refusal_too_large_for_the_wire_still_arrives(echo, bearer, refused):
    refusal = await refused(call(echo.stub, "Account", bearer("ACCOUNT"), text="huge"))
    assert (refusal.reason, refusal.kind) == ("OUT_OF_ECHO", Kind.PAYMENT_REQUIRED)
    assert refusal.message.startswith("éééé")


@pytest.mark.parametrize("method", ["Account", "Down", "Up", "Both", "Public"])
async def test_an_unknown_exception_leaks_nothing_and_is_logged(echo, bearer, refused, method):
    log = io.StringIO()
    configure_logs("kittest", "info", log)
    refusal = await refused(call(echo.stub, method, bearer("ACCOUNT"), text="crash"))
    assert (refusal.reason, refusal.code) == ("INTERNAL", grpc.StatusCode.INTERNAL)
    assert SECRET not in repr(vars(refusal))
    assert "RuntimeError" not in repr(vars(refusal))
    request_id = refusal.trailing["x-request-id"]
    assert refusal.metadata == {"request_id": request_id}
    assert request_id in refusal.message
    entry = json.loads(log.getvalue().splitlines()[-1])
    assert (entry["request_id"], entry["level"]) == (request_id, "error")
    assert entry["rpc"] == f"/kittest.v1.EchoService/{method}"
    assert SECRET in entry["exception"]


@pytest.mark.parametrize("method", ["Account", "Down", "Up", "Both", "Public"])
async def test_a_call_that_an_outage_fails_is_logged_in_a_short_line(echo, bearer, refused, method):
    """Every call fails while a database is away: tracebacks of each would turn all else out of the logs."""
    log = io.StringIO()
    configure_logs("kittest", "info", log)
    refusal = await refused(call(echo.stub, method, bearer("ACCOUNT"), text="storage"))
    assert refusal.reason == "STORAGE_UNAVAILABLE"
    line = log.getvalue().splitlines()[-1]
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["reason"]) == ("call failed", "error", "STORAGE_UNAVAILABLE")
    assert entry["error"] == "OperationalError: connection failed: Connection refused"
    assert "exception" not in entry
    assert len(line) < 1000


async def test_an_answer_of_the_wrong_type_is_an_internal_error(echo, bearer, refused):
    for method in ("Account", "Both"):
        assert (await refused(call(echo.stub, method, bearer("ACCOUNT"), text="none"))).reason == "INTERNAL"


async def test_a_methods_own_abort_passes(echo, bearer, refused):
    refusal = await refused(call(echo.stub, "Account", bearer("ACCOUNT"), text="abort"))
    assert (refusal.code, refusal.message) == (grpc.StatusCode.DATA_LOSS, "own abort")


async def test_malformed_bytes_are_the_callers_error(echo, bearer, refused):
    for method in ("Account", "Public"):
        raw = echo.channel.unary_unary(f"/kittest.v1.EchoService/{method}")
        refusal = await refused(raw(b"\xff\xff\xff", metadata=bearer("ACCOUNT")))
        assert (refusal.reason, refusal.kind) == ("MALFORMED_REQUEST", Kind.INVALID)
    stream = echo.channel.stream_unary("/kittest.v1.EchoService/Up")
    assert (await refused(stream(requests(b"", b"\xff"), metadata=bearer("ACCOUNT")))).reason == "MALFORMED_REQUEST"


async def test_nothing_is_decoded_for_a_caller_without_access(echo, refused):
    raw = echo.channel.unary_unary("/kittest.v1.EchoService/Account")
    assert (await refused(raw(b"\xff\xff\xff"))).reason == "CREDENTIAL_MISSING"


async def test_a_stream_can_be_refused_at_its_start_and_in_its_middle(echo, bearer, refused):
    for text, before, reason in (("refuse", [], "OUT_OF_ECHO"), ("crash", ["0", "1", "2"], "INTERNAL")):
        refusal = await refused(echo.stub.Down(pb.EchoRequest(text=text), metadata=bearer("ACCOUNT")))
        assert ([message.text for message in refusal.answered], refusal.reason) == (before, reason)


async def test_a_message_over_the_limit_is_refused(serve, settings, bearer, refused):
    async with serve(settings.model_copy(update={"max_message_bytes": 10_000})) as echo:
        assert await call(echo.stub, "Account", bearer("ACCOUNT"), text="x" * 9_000)
        refusal = await refused(call(echo.stub, "Account", bearer("ACCOUNT"), text="x" * 11_000))
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(echo.stub, "Account", bearer("ACCOUNT"))


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_calls_above_the_limit_are_refused_and_health_still_answers(serve, settings, bearer, refused):
    async with serve(settings.model_copy(update={"max_concurrent": 2})) as echo:
        waiting = [
            asyncio.ensure_future(answers(call(echo.stub, "Account", bearer("ACCOUNT"), text="wait"))) for _ in range(2)
        ]
        await echo.running(2)
        for method in ("Account", "Public", "Down", "Up"):
            refusal = await refused(call(echo.stub, method, bearer("ACCOUNT"), unread=True))
            assert (refusal.reason, refusal.kind) == ("OVERLOADED", Kind.EXHAUSTED)
            assert refusal.retry_after_seconds == 1
        health = health_pb2_grpc.HealthStub(echo.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        echo.release()
        await asyncio.gather(*waiting)
        assert await call(echo.stub, "Account", bearer("ACCOUNT"))


async def test_every_way_a_call_ends_makes_room_again(serve, settings, bearer, refused):
    async with serve(settings.model_copy(update={"max_concurrent": 1})) as echo:
        for text in ("refuse", "crash", "abort", "none", "invalid") * 2:
            assert (await refused(call(echo.stub, "Account", bearer("ACCOUNT"), text=text))).reason != "OVERLOADED"
            assert (await refused(call(echo.stub, "Account"))).reason != "OVERLOADED"
        assert await answers(call(echo.stub, "Down", bearer("ACCOUNT")))
        assert await answers(call(echo.stub, "Account", bearer("ACCOUNT")))


async def test_an_abandoned_call_makes_room_again(serve, settings, bearer):
    async with serve(settings.model_copy(update={"max_concurrent": 1})) as echo:
        abandoned = call(echo.stub, "Account", bearer("ACCOUNT"), text="wait")
        await echo.started()
        abandoned.cancel()
        echo.release()
        await echo.running(0)
        assert await call(echo.stub, "Account", bearer("ACCOUNT"))


# --- only aio --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def aio(settings):
    servicer = AioEcho()
    server = AioServer(settings.model_copy(update={"deadline_seconds": 0.3}))
    server.register(kit_echo_pb2_grpc.add_EchoServiceServicer_to_server, servicer)
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        yield kit_echo_pb2_grpc.EchoServiceStub(channel), servicer, server


async def test_a_call_without_a_deadline_gets_one(aio, bearer, refused):
    stub, servicer, _ = aio
    refusal = await refused(stub.Account(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT")))
    assert (refusal.reason, refusal.kind) == ("DEADLINE_EXCEEDED", Kind.DEADLINE)
    assert servicer.cancelled.is_set()


async def test_a_deadline_of_the_caller_is_not_shortened(aio, bearer):
    stub, servicer, _ = aio
    answer = stub.Account(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=10)
    asyncio.get_running_loop().call_later(0.6, servicer.release.set)
    assert (await answer).text == "wait"


async def test_a_passed_deadline_of_the_caller_stops_the_method(aio, bearer, refused):
    stub, servicer, server = aio
    refusal = await refused(stub.Account(pb.EchoRequest(text="wait"), metadata=bearer("ACCOUNT"), timeout=0.2))
    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(servicer.cancelled.wait(), 5)
    assert server._gate.running == 0


async def test_streams_get_no_deadline(aio, bearer):
    stub, servicer, _ = aio
    stream = stub.Down(pb.EchoRequest(text="endless", number=1), metadata=bearer("ACCOUNT"))
    assert (await stream.read()).text == "0"
    await asyncio.sleep(0.6)
    assert not servicer.cleaned.is_set()
    stream.cancel()
    await asyncio.wait_for(servicer.cleaned.wait(), 5)


async def test_streams_leave_places_to_calls_that_are_answered_at_once(settings, bearer, refused):
    server = AioServer(settings.model_copy(update={"max_concurrent": 8}))
    server.register(kit_echo_pb2_grpc.add_EchoServiceServicer_to_server, AioEcho())
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        streams = [stub.Down(pb.EchoRequest(text="endless", number=1), metadata=bearer("ACCOUNT")) for _ in range(7)]
        assert [(await stream.read()).text for stream in streams] == ["0"] * 7
        assert (await refused(call(stub, "Down", bearer("ACCOUNT")))).reason == "OVERLOADED"
        assert await call(stub, "Account", bearer("ACCOUNT"))
        for stream in streams:
            stream.cancel()


async def test_a_timeout_within_the_method_is_not_the_calls_deadline(aio, bearer, refused):
    stub, *_ = aio
    refusal = await refused(stub.Account(pb.EchoRequest(text="timeout"), metadata=bearer("ACCOUNT")))
    assert refusal.reason == "INTERNAL"


async def test_a_refusal_from_a_task_group_is_that_refusal(aio, bearer, refused):
    stub, *_ = aio
    assert (
        await refused(stub.Account(pb.EchoRequest(text="group"), metadata=bearer("ACCOUNT")))
    ).reason == "OUT_OF_ECHO"


async def test_a_client_that_goes_away_closes_the_stream_and_is_counted_as_cancelled(aio, bearer):
    stub, servicer, server = aio
    counts = rpc_metrics("/kittest.v1.EchoService/Down")._outcomes
    before = counts.get(("CANCELLED", ""), 0)
    stream = stub.Down(pb.EchoRequest(text="x", number=1_000_000), metadata=bearer("ACCOUNT"))
    await stream.read()
    assert server._gate.running == 1
    stream.cancel()
    while server._gate.running:  # noqa: ASYNC110 (there is no event to wait for)
        await asyncio.sleep(0.01)
    # Its clean-up is part of the call, not something that comes at some time after it.
    assert servicer.cleaned.is_set()
    assert counts[("CANCELLED", "")] == before + 1


async def test_a_task_that_outlives_its_call_is_not_bound_by_its_deadline(settings, bearer):
    seen = []

    class Settling(AioEcho):
        async def Account(self, request, context):  # noqa: N802, ARG002
            async def later():
                seen.append(remaining_seconds())
                await asyncio.sleep(0.3)
                seen.append((remaining_seconds(), current_request_id()))

            self.task = asyncio.ensure_future(later())
            await asyncio.sleep(0)
            return pb.EchoResponse()

    servicer = Settling()
    server = AioServer(settings)
    server.register(kit_echo_pb2_grpc.add_EchoServiceServicer_to_server, servicer)
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        sent = (*bearer("ACCOUNT"), ("x-request-id", "req-1"))
        await kit_echo_pb2_grpc.EchoServiceStub(channel).Account(pb.EchoRequest(), metadata=sent, timeout=5)
        await servicer.task
    assert 0 < seen[0] < 6
    assert seen[1] == (None, "req-1")


class KeyAuthenticator:
    """As the proxy's: reads a key where there is one, asynchronously."""

    async def authenticate(self, _method, metadata):
        await asyncio.sleep(0)
        match metadata.get("x-api-key"):
            case None:
                return None
            case "good":
                return Identity(Role.ACCOUNT, account_id="acme", key_id="good")
        raise TokenInvalid("no such key")


async def test_a_service_can_bring_its_own_authenticator(settings, bearer, refused):
    server = AioServer(settings)
    server.register(kit_echo_pb2_grpc.add_EchoServiceServicer_to_server, AioEcho(), authenticator=KeyAuthenticator())
    async with server, grpc.aio.insecure_channel(server.address) as channel:
        stub = kit_echo_pb2_grpc.EchoServiceStub(channel)
        assert (await call(stub, "Account", (("x-api-key", "good"),), account_id="")).account_id == "acme"
        assert (await refused(call(stub, "Account", (("x-api-key", "bad"),)))).reason == "TOKEN_INVALID"
        assert (await call(stub, "Public", (("x-api-key", "bad"),))).role == "PUBLIC"
        # A token is nothing to this authenticator.
        assert (await refused(call(stub, "Account", bearer("SERVICE")))).reason == "CREDENTIAL_MISSING"


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Account", "Down"])
@pytest.mark.parametrize("text", ["nobody", "refuse", "keep"])
async def test_refused_call_leaves_nothing_of_its_request_in_memory(echo, bearer, refused, method, text):
    """Or whoever sends large requests without a credential fills the memory until Python looks for cycles."""
    of_no_known_field = b"\x7a\x80\x80\x40" + b"x" * 2**20
    request = pb.EchoRequest.FromString(pb.EchoRequest(text=text).SerializeToString() + of_no_known_field)
    metadata = () if text == "nobody" else bearer("ACCOUNT")
    await refused(getattr(echo.stub, method)(request, metadata=metadata))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(8):
            await refused(getattr(echo.stub, method)(request, metadata=metadata))
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert left < 2 * 2**20
