"""Tokens of a configured identity provider open `/api/*` as their claims say, and nothing else does."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationStub

from services.kit.identity import Role

ISSUER = "https://login.example"


class Provider:
    """An identity provider: its keys over HTTP, and tokens signed with any of them."""

    def __init__(self):
        self.keys, self.fetched, self.away = {}, 0, False
        self.answering = threading.Event()
        self.answering.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.fetched += 1
                provider.answering.wait(10)
                self.send_response(503 if provider.away else 200)
                self.end_headers()
                self.wfile.write(b"" if provider.away else json.dumps(provider.jwks()).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        self.add("first")

    def add(self, name):
        self.keys[name] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwks(self):
        algorithm = jwt.algorithms.RSAAlgorithm
        return {
            "keys": [
                algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": name, "alg": "RS256", "use": "sig"}
                for name, key in self.keys.items()
            ]
        }

    def token(self, key="first", signed_by=None, **claims):
        now = int(time.time())
        said = {"iss": ISSUER, "aud": "tollkeeper", "sub": "ada", "exp": now + 300, "tollkeeper_account": "acme"}
        said = {name: value for name, value in (said | claims).items() if value is not None}
        return jwt.encode(said, signed_by or self.keys[key], algorithm="RS256", headers={"kid": key})


@pytest.fixture
def provider():
    provider = Provider()
    thread = threading.Thread(target=provider.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()
    thread.join()


@pytest.fixture
async def trusting(start_proxy, provider):
    return await start_proxy(oidc_issuer=ISSUER, oidc_jwks_url=provider.url)


async def refused_with(proxy, token):
    request = external_auth_pb2.CheckRequest()
    request.attributes.request.http.headers["authorization"] = f"Bearer {token}"
    answer = await AuthorizationStub(proxy.channel).Check(request)
    assert answer.WhichOneof("http_response") == "denied_response"
    return json.loads(answer.denied_response.body)["details"][0]["reason"]


async def test_token_acts_for_the_account_that_it_names(trusting, provider, authorize):
    identity = await authorize(trusting, {"authorization": f"Bearer {provider.token()}"})
    assert (identity.role, identity.account_id, identity.subject) == (Role.ACCOUNT, "acme", "oidc:ada")
    assert identity.key_id == ""


@pytest.mark.parametrize("role", ["admin", ["reader", "admin"]], ids=["one role", "several"])
async def test_operators_role_makes_an_operator(trusting, provider, authorize, role):
    token = provider.token(tollkeeper_role=role)
    assert (await authorize(trusting, {"authorization": f"Bearer {token}"})).role is Role.ADMIN


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": None},
        {"iss": "https://elsewhere.example"},
        {"aud": "another-service"},
        {"tollkeeper_account": None},
        {"tollkeeper_account": ""},
        {"tollkeeper_account": ["acme"]},
        {"tollkeeper_account": "acme\n"},
        {"tollkeeper_account": "a/../acme"},
        {"exp": str(int(time.time()) + 300)},
        {"exp": 10**13},
        {"exp": 10**300},
        {"sub": "a" * 256},
        {"tollkeeper_account": None, "tollkeeper_role": "administrator"},
    ],
    ids=", ".join,
)
async def test_token_with_other_claims_is_refused(trusting, provider, claims):
    assert await refused_with(trusting, provider.token(**claims)) == "TOKEN_INVALID"


async def test_forged_tokens_are_refused(trusting, provider):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert await refused_with(trusting, provider.token(signed_by=stranger)) == "TOKEN_INVALID"
    head, body, signature = provider.token().split(".")
    assert await refused_with(trusting, f"{head}.{body}.{signature[:-6]}AAAAAA") == "TOKEN_INVALID"
    claims = {
        "iss": ISSUER,
        "aud": "tollkeeper",
        "sub": "x",
        "exp": int(time.time()) + 60,
        "tollkeeper_account": "acme",
    }
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": "first"})
    assert await refused_with(trusting, unsigned) == "TOKEN_INVALID"
    modulus = provider.jwks()["keys"][0]["n"]
    by_public_key = jwt.encode(claims, modulus, algorithm="HS256", headers={"kid": "first"})
    assert await refused_with(trusting, by_public_key) == "TOKEN_INVALID"


async def test_keys_are_fetched_once_however_many_tokens_come(trusting, provider, authorize):
    for number in range(20):
        await authorize(trusting, {"authorization": f"Bearer {provider.token(sub=str(number))}"})
        assert await refused_with(trusting, provider.token(key="first", aud="x")) == "TOKEN_INVALID"
    provider.add("unknown")
    for _ in range(5):
        await refused_with(trusting, provider.token(key="unknown"))
    assert provider.fetched <= 2


async def test_stranger_who_names_an_unknown_key_makes_nobody_wait(
    trusting, provider, authorize, monkeypatch, eventually
):
    await authorize(trusting, {"authorization": f"Bearer {provider.token()}"})
    monkeypatch.setattr("services.proxy.oidc._AGAIN_SECONDS", 0)
    provider.answering.clear()
    of_no_key = provider.token(key="unknown", signed_by=provider.keys["first"])
    stranger = asyncio.create_task(refused_with(trusting, of_no_key))
    await eventually(lambda: provider.fetched == 2)
    identity = await authorize(trusting, {"authorization": f"Bearer {provider.token(sub='bob')}"})
    assert identity.subject == "oidc:bob"
    assert not stranger.done()
    provider.answering.set()
    assert await stranger == "TOKEN_INVALID"


async def test_old_keys_hold_while_new_ones_are_waited_for(trusting, provider, authorize, monkeypatch, eventually):
    headers = {"authorization": f"Bearer {provider.token()}"}
    await authorize(trusting, headers)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 400)
    monkeypatch.setattr("services.proxy.oidc.time", later)
    provider.answering.clear()
    assert (await authorize(trusting, headers)).subject == "oidc:ada"
    await eventually(lambda: provider.fetched == 2)
    assert not provider.answering.is_set()
    provider.answering.set()


async def test_provider_that_is_away_is_no_verdict(start_proxy, provider, refused):
    provider.away = True
    proxy = await start_proxy(oidc_issuer=ISSUER, oidc_jwks_url=provider.url)
    request = external_auth_pb2.CheckRequest()
    request.attributes.request.http.headers["authorization"] = f"Bearer {provider.token()}"
    refusal = await refused(AuthorizationStub(proxy.channel).Check(request))
    assert refusal.reason == "IDENTITY_PROVIDER_UNAVAILABLE"


async def test_api_keys_go_on_as_before(trusting, authorize):
    made = await trusting.make_key()
    assert (await authorize(trusting, {"x-api-key": made.key})).key_id == made.key_id


async def test_without_a_provider_a_token_is_no_credential(proxy, provider):
    assert await refused_with(proxy, provider.token()) == "API_KEY_INVALID"
    assert provider.fetched == 0
