"""Owns the tests of identity tokens: what holds, what does not, and that a verdict never outlives its reasons."""

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from services.kit import identity as identity_module
from services.kit.call import current_identity
from services.kit.identity import (
    ANONYMOUS,
    Identity,
    KeyFileError,
    Role,
    TokenAuthenticator,
    TokenSigner,
    TokenVerifier,
    make_keypair,
)
from services.kit.refusals import TokenInvalid

ACME = Identity(
    Role.ACCOUNT, subject="key:k1", account_id="acme", key_id="k1", workspace="web", scopes=frozenset({"read", "call"})
)


@pytest.fixture
def verifier(keypair):
    return TokenVerifier(keypair[1])


@pytest.fixture
def count_decodes(monkeypatch):
    """How many signatures were computed."""
    decodes = []
    real = jwt.decode
    monkeypatch.setattr(identity_module.jwt, "decode", lambda *a, **k: decodes.append(1) or real(*a, **k))
    return decodes


def claims_token(keypair, claims, *, named=True):
    """A token with our key and any claims."""
    key = serialization.load_pem_private_key(keypair[0].encode(), password=None)
    now = int(time.time())
    base = {"iss": "tollkeeper", "aud": "tollkeeper", "exp": now + 60, "role": "ADMIN", "sub": "x"}
    claims = {k: v for k, v in (base | claims).items() if v is not None}
    header = {"kid": keypair[1]["keys"][0]["kid"]} if named else {}
    return jwt.encode(claims, key, algorithm="EdDSA", headers=header)


@pytest.mark.parametrize("known", [ACME, Identity(Role.SERVICE, subject="ledger"), Identity(Role.ADMIN)])
def test_a_token_says_who_it_was_signed_for(signer, verifier, known):
    assert verifier.verify(signer.sign(known, 60)) == known


def test_no_call_no_identity():
    assert current_identity() is ANONYMOUS
    assert ANONYMOUS.role is Role.PUBLIC


def test_forged_token_is_refused(keypair, verifier):
    other_pem, _ = make_keypair()
    forger = TokenSigner(other_pem)
    forger.key_id = keypair[1]["keys"][0]["kid"]  # the right name on the wrong key
    with pytest.raises(TokenInvalid):
        verifier.verify(forger.sign(Identity(Role.SERVICE), 60))


def test_token_of_an_unknown_key_is_refused(verifier):
    other_pem, _ = make_keypair()
    with pytest.raises(TokenInvalid, match="key that is not known"):
        verifier.verify(TokenSigner(other_pem).sign(Identity(Role.SERVICE), 60))


def test_changed_payload_is_refused(signer, verifier):
    head, payload, signature = signer.sign(ACME, 60).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["role"] = "SERVICE"
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    with pytest.raises(TokenInvalid):
        verifier.verify(f"{head}.{payload}.{signature}")


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_other_algorithms_are_refused(keypair, verifier, algorithm):
    public = keypair[1]["keys"][0]
    claims = {"iss": "tollkeeper", "aud": "tollkeeper", "exp": int(time.time()) + 60, "role": "SERVICE"}
    # The public key as an HMAC secret is the classic way in.
    secret = "" if algorithm == "none" else public["x"] * 2
    token = jwt.encode(claims, secret or None, algorithm=algorithm, headers={"kid": public["kid"]})
    with pytest.raises(TokenInvalid):
        verifier.verify(token)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "someone"},
        {"aud": "someone"},
        {"iss": None},
        {"aud": None},
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"nbf": 4_000_000_000},  # in 2096: not soon after the tests were collected
        {"role": "ROOT"},
        {"role": None},
        {"role": 4},
        {"role": ["SERVICE"]},
        {"role": "ACCOUNT"},
        {"sub": 5},
        {"account": {}},
        {"scope": ["a"]},
    ],
)
def test_claims_that_do_not_hold_are_refused(keypair, verifier, claims):
    with pytest.raises(TokenInvalid):
        verifier.verify(claims_token(keypair, claims))


def test_token_without_key_id_is_refused(keypair, verifier):
    with pytest.raises(TokenInvalid):
        verifier.verify(claims_token(keypair, {}, named=False))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "..",
        "a.b.c",
        "tb_prod_0123456789abcdef",
        "é.é.é",
        "\ud800.a.b",
        base64.urlsafe_b64encode(b'{"a":' + b"[" * 2900).decode() + ".e30.e30",
        "a" * 100_000,
    ],
)
def test_junk_is_refused_as_any_bad_token(verifier, token):
    with pytest.raises(TokenInvalid):
        verifier.verify(token)


def test_a_verdict_does_not_outlive_its_token(signer, verifier, monkeypatch):
    token = signer.sign(ACME, 60)
    assert verifier.verify(token) == ACME
    decoded = []
    monkeypatch.setattr(verifier, "_decode", lambda *_: decoded.append(1) or (ACME, time.time() + 60))
    verifier.verify(token)
    assert not decoded
    after_its_expiry = time.time() + 61
    monkeypatch.setattr(identity_module.time, "time", lambda: after_its_expiry)
    verifier.verify(token)
    assert decoded


def test_short_lived_token_expires(signer, verifier):
    token = signer.sign(ACME, 1)
    assert verifier.verify(token) == ACME
    time.sleep(1.1)
    with pytest.raises(TokenInvalid, match="expired"):
        verifier.verify(token)


def test_a_token_seen_before_is_not_computed_again(signer, verifier, count_decodes):
    token = signer.sign(ACME, 60)
    for _ in range(5):
        verifier.verify(token)
    assert len(count_decodes) == 1


def test_remembered_verdicts_are_bounded(signer, verifier, monkeypatch):
    monkeypatch.setattr(identity_module, "_MAX_VERDICTS", 10)
    for n in range(30):
        verifier.verify(signer.sign(Identity(Role.ADMIN, subject=str(n)), 60))
    assert len(verifier._verdicts) == 10


def test_refused_tokens_are_not_remembered(verifier):
    for n in range(30):
        with pytest.raises(TokenInvalid):
            verifier.verify(f"a.{n}.c")
    assert not verifier._verdicts


def _without_waiting(monkeypatch):
    monkeypatch.setattr(identity_module, "_RECHECK_SECONDS", 0)


def test_keys_are_read_again_when_their_file_changes(tmp_path, monkeypatch):
    _without_waiting(monkeypatch)
    (old_pem, old_jwks), (new_pem, new_jwks) = make_keypair(), make_keypair()
    old, new = TokenSigner(old_pem).sign(ACME, 60), TokenSigner(new_pem).sign(ACME, 60)
    file = tmp_path / "keys.jwks"
    file.write_text(json.dumps(old_jwks))
    verifier = TokenVerifier(file=file)
    assert verifier.verify(old) == ACME
    with pytest.raises(TokenInvalid):
        verifier.verify(new)
    file.write_text(json.dumps({"keys": old_jwks["keys"] + new_jwks["keys"]}))
    assert verifier.verify(new) == verifier.verify(old) == ACME
    file.write_text(json.dumps(new_jwks))
    assert verifier.verify(new) == ACME
    with pytest.raises(TokenInvalid):  # its verdict was remembered; the key it rested on is gone
        verifier.verify(old)


def test_keys_are_looked_at_once_a_second_at_most(jwks_file, signer, monkeypatch):
    verifier = TokenVerifier(file=jwks_file)
    stats = []
    real = identity_module._stamp
    monkeypatch.setattr(identity_module, "_stamp", lambda file: stats.append(1) or real(file))
    token = signer.sign(ACME, 60)
    for _ in range(100):
        verifier.verify(token)
    assert stats == []
    verifier._checked -= 1
    for _ in range(100):
        verifier.verify(token)
    assert len(stats) == 1


def test_a_key_file_caught_half_written_changes_nothing(jwks_file, signer, monkeypatch):
    _without_waiting(monkeypatch)
    verifier = TokenVerifier(file=jwks_file)
    token = signer.sign(ACME, 60)
    whole = jwks_file.read_text()
    for broken in (whole[:20], "", "[]", '{"keys": 1}', '{"keys": [{"kty": "OKP"}]}', '{"keys": [5]}'):
        jwks_file.write_text(broken)
        assert verifier.verify(token) == ACME
    jwks_file.unlink()
    assert verifier.verify(token) == ACME


def test_unusable_key_files_are_told_by_name(tmp_path):
    with pytest.raises(KeyFileError, match=r"none\.jwks"):
        TokenVerifier(file=tmp_path / "none.jwks")
    file = tmp_path / "bad.jwks"
    for broken in ("", "{}", '{"keys": [{"kty": "OKP"}]}'):
        file.write_text(broken)
        with pytest.raises(KeyFileError, match=r"bad\.jwks"):
            TokenVerifier(file=file)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        lambda: ec.generate_private_key(ec.SECP256R1()),
    ],
)
def test_only_ed25519_signs(make):
    pem = make().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        TokenSigner(pem)
    with pytest.raises(KeyFileError, match="not an unencrypted PEM"):
        TokenSigner("-----BEGIN PRIVATE KEY-----")


def test_a_jwks_holds_public_keys_only(keypair):
    assert all("d" not in key for key in keypair[1]["keys"])
    assert TokenSigner(keypair[0]).jwks == keypair[1]


class TestAuthenticator:
    @pytest.fixture
    def authenticate(self, verifier):
        authenticator = TokenAuthenticator(verifier)
        return lambda metadata: authenticator.authenticate("/x.Y/Z", metadata)

    def test_no_credential(self, authenticate):
        assert authenticate({}) is None

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    def test_bearer(self, authenticate, signer, scheme):
        assert authenticate({"authorization": f"{scheme} {signer.sign(ACME, 60)}"}) == ACME

    def test_the_customers_token_counts_before_the_gateways_own(self, authenticate, signer):
        gateway = signer.sign(Identity(Role.SERVICE, subject="gateway"), 60)
        metadata = {"x-tollkeeper-identity": signer.sign(ACME, 60), "authorization": f"Bearer {gateway}"}
        assert authenticate(metadata) == ACME
        with pytest.raises(TokenInvalid):  # and a bad one is not made good by the other
            authenticate(metadata | {"x-tollkeeper-identity": "junk"})

    @pytest.mark.parametrize("value", ["", "Basic dTpw", "Bearer", "Bearer ", "junk"])
    def test_what_is_no_bearer_token_is_refused(self, authenticate, value):
        with pytest.raises(TokenInvalid):
            authenticate({"authorization": value})
