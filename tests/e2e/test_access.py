"""Every RPC of every running service, found by reflection, is refused to callers without the role it declares."""

import itertools

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tollkeeper.type.v1 import access_pb2

from services.kit.errors import RemoteError
from services.kit.identity import Identity, Role, TokenSigner

SERVICES = ("ledger", "pricing", "subscriptions", "proxy")
# What a server serves beside our contracts.
TRANSPORT = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
THIRD_PARTY = {"envoy.service.auth.v3.Authorization"}

REFUSED = {"CREDENTIAL_MISSING", "TOKEN_INVALID", "ROLE_TOO_LOW", "API_KEY_MISSING", "API_KEY_INVALID"}


def channel_to(suite, service):
    return grpc.insecure_channel(suite.env[f"TOLLKEEPER_{service.upper()}_ADDR"])


def reflected(channel):
    """Every method that a server says it has: path, access, streaming form, request class."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = descriptor_pool.DescriptorPool(database)
    for name in sorted(set(database.get_services()) - TRANSPORT - THIRD_PARTY):
        service = pool.FindServiceByName(name)
        for method in service.methods:
            proto = descriptor_pb2.MethodDescriptorProto()
            method.CopyToProto(proto)
            # The reflected options are of another pool's class: read them again with ours.
            options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
            request = message_factory.GetMessageClass(method.input_type)
            yield f"/{name}/{method.name}", options.Extensions[access_pb2.access], proto, request


def outcome(channel, path, proto, request, metadata=()):
    """How a server answers an empty request: the refusal, or None where it was let in."""
    pick = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[proto.client_streaming, proto.server_streaming]
    call = pick(path, request_serializer=lambda message: message.SerializeToString(), response_deserializer=bytes)
    sent = iter([request()]) if proto.client_streaming else request()
    try:
        answer = call(sent, metadata=metadata, timeout=5)
        if proto.server_streaming:
            next(iter(answer), None)
            answer.cancel()
    except grpc.RpcError as error:
        return RemoteError.from_rpc(error)
    return None


@pytest.fixture(scope="module")
def signer(suite):
    return TokenSigner((suite.home / "identity.pem").read_bytes())


@pytest.mark.parametrize("service", SERVICES)
def test_every_rpc_refuses_callers_without_its_role(suite, service, signer):
    roles = {
        Role.PUBLIC: (),
        Role.ACCOUNT: (("x-tollkeeper-identity", signer.sign(Identity(Role.ACCOUNT, "t", account_id="a"), 300)),),
        Role.ADMIN: (("x-tollkeeper-identity", signer.sign(Identity(Role.ADMIN, "t"), 300)),),
    }
    checked = 0
    with channel_to(suite, service) as channel:
        for path, access, proto, request in reflected(channel):
            assert access != access_pb2.ACCESS_UNSPECIFIED, path
            needed = Role(access)
            for role, metadata in roles.items():
                refusal = outcome(channel, path, proto, request, metadata)
                if role < needed:
                    assert refusal is not None, (path, role)
                    assert refusal.reason in REFUSED, (path, role, refusal)
                    assert refusal.kind.http_status in {401, 403}, (path, role, refusal)
                    checked += 1
                elif "WireService" not in path:  # which takes API keys alone
                    assert refusal is None or refusal.reason not in REFUSED, (path, role, refusal)
            forged = (("authorization", "Bearer forged"), ("x-tollkeeper-identity", "forged"))
            refusal = outcome(channel, path, proto, request, forged)
            if needed > Role.PUBLIC:
                assert refusal is not None, path
                assert refusal.kind.http_status == 401, (path, refusal)
    assert checked > 5


def test_every_rpc_of_the_contracts_is_served(suite):
    from docs.pages.status import contract_services  # noqa: PLC0415 (imports all services)
    from docs.reference import import_all  # noqa: PLC0415

    import_all()
    wanted = {service.full_name for service, _ in contract_services()}
    served = itertools.chain.from_iterable(
        ProtoReflectionDescriptorDatabase(channel_to(suite, service)).get_services() for service in SERVICES
    )
    assert wanted <= set(served)


def test_customer_cannot_name_another_account(suite):
    mine, other = suite.customer(credit_nanos=5), suite.customer(credit_nanos=7)
    for path in ("/api/credits/balance", "/api/billing/transactions", "/api/billing/usage"):
        answer = suite.get(f"{path}?accountId={other.account_id}", mine.key)
        assert (answer.status, answer.body["details"][0]["reason"]) == (403, "ACCOUNT_MISMATCH"), path
        assert suite.get(f"{path}?account_id={mine.account_id}", mine.key).status == 200
        assert suite.get(f"{path}?accountId={other.account_id}", suite.admin_key).status == 200


def test_forged_internal_headers_change_nothing(suite, signer):
    customer = suite.customer(credit_nanos=11)
    admin = signer.sign(Identity(Role.ADMIN, "forged"), 300)  # as if the very signing key were known outside
    headers = {
        "x-tollkeeper-identity": admin,
        "X-Tollkeeper-Account": "demo",
        "x-tollkeeper-role": "SERVICE",
        "x-tollkeeper-http-status": "200",
        "x-tollkeeper-reason": "NONE",
    }
    assert suite.get("/api/admin/accounts", customer.key, headers=headers).status == 403
    assert suite.get("/api/admin/accounts", headers=headers).status == 401
    assert suite.get("/v1/models", headers=headers).status == 401
    assert suite.get("/api/credits/balance", customer.key, headers=headers).body["accountId"] == customer.account_id
    refused = suite.post("/v1/chat/completions", {"model": "gpt-4o", "messages": []}, "nope", headers=headers)
    assert refused.status == 401
    assert not [name for name in refused.headers if name.lower() in {"x-tollkeeper-reason", "x-tollkeeper-http-status"}]


def test_service_token_does_not_open_the_gateway(suite):
    for path in ("/api/admin/accounts", "/api/credits/balance?accountId=demo", "/v1/models"):
        assert suite.get(path, suite.service_token).status == 401, path


def test_grpc_paths_are_not_reachable_from_outside(suite):
    answer = suite.post(
        "/tollkeeper.ledger.v1.LedgerService/Apply", b"\0\0\0\0\0", headers={"content-type": "application/grpc"}
    )
    assert (answer.status, answer.headers["grpc-status"], answer.body) == (200, "12", None)  # gRPC's form of not found


def test_revoked_key_is_refused_everywhere_within_a_second(suite, eventually):
    customer = suite.customer(credit_nanos=10**9)
    assert suite.get("/v1/models", customer.key).status == 200
    assert suite.get("/api/credits/balance", customer.key).status == 200
    assert suite.call("DELETE", f"/api/admin/keys/{customer.key_id}", suite.admin_key).status == 200
    eventually(lambda: suite.get("/v1/models", customer.key).status == 401, seconds=1)
    eventually(lambda: suite.get("/api/credits/balance", customer.key).status == 401, seconds=1)
