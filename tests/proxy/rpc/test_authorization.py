"""The gateway's question: a known key becomes an identity token, any other credential a 401 with its reason."""

import asyncio
import json
import time

import jwt
import pytest
from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationStub
from google.api import httpbody_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.proxy.v1 import key_service_pb2, wire_service_pb2

from services.kit.identity import Identity, Role


def check(proxy, headers):
    request = external_auth_pb2.CheckRequest()
    for name, value in headers.items():
        request.attributes.request.http.headers[name] = value
    return AuthorizationStub(proxy.channel).Check(request)


async def denied(proxy, headers):
    answer = await check(proxy, headers)
    assert answer.WhichOneof("http_response") == "denied_response"
    assert answer.denied_response.status.code == 401
    assert {h.header.key: h.header.value for h in answer.denied_response.headers} == {
        "content-type": "application/json"
    }
    body = answer.denied_response.body
    assert body.startswith('{"code":16,"message":"')  # the gateway reads it by scanning
    info = json.loads(body)["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    return info["reason"]


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-goog-api-key"])
async def test_known_key_becomes_an_identity_and_goes_no_further(proxy, authorize, header):
    made = await proxy.make_key(workspace="web")
    secret = f"Bearer {made.key}" if header == "authorization" else made.key
    answer = await check(proxy, {header: secret})
    assert set(answer.ok_response.headers_to_remove) == {"authorization", "x-api-key", "x-goog-api-key"}
    identity = await authorize(proxy, {header: secret})
    assert (identity.role, identity.account_id, identity.key_id) == (Role.ACCOUNT, "acme", made.key_id)
    assert identity.workspace == "web"


async def test_forged_identity_is_overwritten(proxy, key, authorize, signer):
    forged = signer.sign(Identity(Role.ADMIN, subject="x"), 60)
    answer = await check(proxy, {"x-api-key": key, "x-tollkeeper-identity": forged})
    option = answer.ok_response.headers[0]
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD
    assert option.header.value != forged
    assert await denied(proxy, {"x-tollkeeper-identity": forged}) == "CREDENTIAL_MISSING"


async def test_internal_keys_are_customers_and_admin_keys_operators(proxy, authorize):
    internal = await proxy.make_key(key_type="internal")
    admin = await proxy.make_key("", key_type="admin")
    assert (await authorize(proxy, {"x-api-key": internal.key})).role is Role.ACCOUNT
    assert (await authorize(proxy, {"x-api-key": admin.key})).role is Role.ADMIN


async def test_bad_credentials_are_denied_with_their_reason(proxy):
    made = await proxy.make_key()
    await proxy.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=made.key_id), metadata=proxy.admin)
    assert await denied(proxy, {}) == "CREDENTIAL_MISSING"
    assert await denied(proxy, {"authorization": "Bearer nonsense"}) == "API_KEY_INVALID"
    assert await denied(proxy, {"authorization": "Basic eDp5"}) == "API_KEY_INVALID"
    assert await denied(proxy, {"x-api-key": made.key}) == "API_KEY_REVOKED"


async def test_token_is_signed_once_and_given_again_while_it_is_fresh(proxy, key):
    first, second = [(await check(proxy, {"x-api-key": key})).ok_response.headers[0].header.value for _ in range(2)]
    assert first == second


async def test_token_of_a_key_that_ends_soon_ends_with_it(proxy, signer, authorize):
    moment = Timestamp()
    moment.FromMilliseconds(int((time.time() + 5) * 1000))
    made = await proxy.make_key(expires_at=moment)
    token = (await check(proxy, {"x-api-key": made.key})).ok_response.headers[0].header.value
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] <= moment.seconds + 1


async def test_token_of_a_rotated_key_ends_with_its_overlap(proxy):
    made = await proxy.make_key()
    before = (await check(proxy, {"x-api-key": made.key})).ok_response.headers[0].header.value
    rotated = await proxy.keys.RotateKey(
        key_service_pb2.RotateKeyRequest(key_id=made.key_id, overlap_seconds=20), metadata=proxy.admin
    )
    record = await proxy.keys.GetKey(key_service_pb2.GetKeyRequest(key_id=made.key_id), metadata=proxy.admin)
    after = (await check(proxy, {"x-api-key": made.key})).ok_response.headers[0].header.value
    ends = [jwt.decode(token, options={"verify_signature": False})["exp"] for token in (before, after)]
    assert ends[1] <= record.expires_at.seconds + 1 < ends[0]
    assert await check(proxy, {"x-api-key": rotated.key})


async def test_provider_route_takes_the_identity_of_the_gateway(proxy, key, ledger, provider, refused):
    token = (await check(proxy, {"x-api-key": key})).ok_response.headers[0].header.value
    body = json.dumps({"model": "gpt-4o", "max_tokens": 20, "messages": [{"role": "user", "content": "x"}]}).encode()

    def chat(name, metadata):
        request = wire_service_pb2.ProviderChatRequest(provider=name, body=httpbody_pb2.HttpBody(data=body))
        return proxy.wire.ProviderChat(request, metadata=metadata)

    pieces = [message.data async for message in chat("openai", (("x-tollkeeper-identity", token),))]
    answer = json.loads(b"".join(pieces))
    assert answer["credits"]["costNanos"] == str(ledger.bills[0].amount_nanos)
    assert answer["choices"]

    async def all_of(call):
        return [message async for message in call]

    assert (await refused(all_of(chat("openai", ())))).reason == "CREDENTIAL_MISSING"
    assert (await refused(all_of(chat("anthropic", (("x-tollkeeper-identity", token),))))).reason == "MODEL_NOT_PRICED"
    await proxy.entitle(providers=["anthropic"])
    await asyncio.sleep(1)
    refusal = await refused(all_of(chat("openai", (("x-tollkeeper-identity", token),))))
    assert refusal.reason == "PROVIDER_NOT_ALLOWED"
